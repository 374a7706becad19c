"""`aether verify` from outside: what it prints, its files, its exit status."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest
from click.testing import CliRunner

from aether_emu.cli.app import app
from aether_emu.machine.probe.prober import Operation
from aether_emu.machine.probe.x86_64 import X86Prober
from aether_emu.verify.cases import suites, workers
from aether_emu.verify.cases.comparison import Case, Tally
from aether_emu.verify.cases.tlb import Finding, TlbTally
from aether_emu.verify.report import html, junit
from aether_emu.verify.spec import x86_64 as spec
from tests.cli.command import aether, one_line

SMALL = ("--cases", "600", "--suite", "permissions")


@dataclass(frozen=True)
class Ran:
    """What a run printed and how it ended."""

    status: int
    output: str
    errors: str


def verify(*arguments: str) -> Ran:
    ran = aether("verify", *arguments)
    return Ran(ran.returncode, ran.stdout.decode(), ran.stderr.decode())


def test_each_format_and_suite_has_a_line_and_the_last_one_is_the_verdict() -> None:
    ran = verify("x86_64-5level", "--cases", "300")
    assert ran.status == 0
    lines = [line for line in ran.output.splitlines() if not line.startswith(" ")]
    assert [line.split()[:2] for line in lines[:-1]] == [["x86_64-5level", suite] for suite in suites.SUITES]
    assert all(" 0 differences" in line for line in lines[:-1])
    assert lines[-1].endswith("cases: nothing is left to explain")
    assert ran.errors == ""


def test_the_same_seed_gives_the_same_files_by_one_process_or_two(tmp_path: Path) -> None:
    made = []
    for jobs in ("1", "2"):
        xml, page = tmp_path / f"{jobs}.xml", tmp_path / f"{jobs}.html"
        files = ("--junit", str(xml), "--report", str(page))
        assert verify("arm64-4K-39bit", "--cases", "400", "--jobs", jobs, *files).status == 0
        made.append((xml.read_bytes(), page.read_bytes()))
    assert made[0] == made[1]


def test_another_seed_chooses_other_cases(tmp_path: Path) -> None:
    pages = []
    for seed in ("1", "2"):
        page = tmp_path / f"{seed}.html"
        assert verify("x86_64-4level", *SMALL, "--seed", seed, "--report", str(page)).status == 0
        pages.append(page.read_text().replace(f"--seed {seed}", ""))
    assert pages[0] != pages[1]


def test_junit_has_a_case_for_each_feature(tmp_path: Path) -> None:
    path = tmp_path / "report.xml"
    assert verify("x86_64-4level", "--cases", "300", "--junit", str(path)).status == 0
    root = ElementTree.parse(path).getroot()
    assert [suite.get("name") for suite in root] == [f"x86_64-4level.{suite}" for suite in suites.SUITES]
    names = {case.get("name") for case in root.iter("testcase")}
    assert {
        "4K page: PT entry",
        "2M page: not present",
        "present cleared",
        "flush policy: write removed",
    } <= names
    assert root.get("failures") == "0"
    assert root.get("tests") == str(len(list(root.iter("testcase"))))


def test_the_page_tells_of_each_cell_how_to_see_it_again(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert verify("x86_64-4level", *SMALL, "--report", str(page)).status == 0
    text = page.read_text()
    assert "{{" not in text
    assert not re.search(r"(src|href)=", text), "it needs nothing from elsewhere"
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    details = json.loads(found[1])
    assert set(re.findall(r'data-key="([^"]+)"', text)) == set(details)
    detail = next(iter(details.values()))
    assert detail["entries"][0].startswith("level 4: 0x")
    assert {"address", "controls", "specification", "seen", "title"} < set(detail)
    command = detail["command"].split(" --only ")
    assert command[0] == "aether verify x86_64-4level --suite permissions --cases 600 --seed 0"
    again = verify(*command[0].split()[2:], "--only", command[1].strip("'"))
    assert again.status == 0
    assert 0 < int(again.output.split()[2]) < 600


def test_only_chooses_among_edits_too() -> None:
    ran = verify("x86_64-4level", "--suite", "tlb", "--only", "write removed")
    assert ran.status == 0
    assert "15,552 cases" not in ran.output
    assert 0 < int(ran.output.split()[2].replace(",", "")) < 20_000


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("riscv",), "WHAT riscv is not allowed: x86_64, arm64, all, or one of"),
        (("--suite", "speed"), "--suite speed is not allowed: encodings, entries, permissions, tlb or all"),
        (("--cases", "0"), "--cases"),
        (("--full", "--cases", "5"), "--cases 5 is not allowed: left out with --full"),
        (("x86_64-4level", "--suite", "tlb", "--only", "nonsense"), "--only nonsense is not allowed"),
        (("arm64-4K-upper", "--suite", "encodings"), "--suite encodings is not allowed: another one"),
        (("x86_64", "--report", "/nowhere/x.html"), "cannot be written: No such file or directory"),
        (("x86_64", "--junit", "/nowhere/x.xml"), "cannot be written: No such file or directory"),
    ],
)
def test_a_wrong_option_is_one_line(arguments: tuple[str, ...], complaint: str) -> None:
    assert complaint in one_line(aether("verify", *arguments), 2)


# ---- what happens when something is wrong: in this process, with a walker or a CPU that errs


def wrong_walker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A specification that lets users write what is read-only."""
    true = spec.judge

    def judge(found: spec.Translation, *rest: object) -> spec.Verdict:
        found.writable[:] |= found.user
        return true(found, *rest)  # type: ignore[arg-type]  # handed on as they came

    monkeypatch.setattr(spec, "judge", judge)


def test_differences_are_red_in_every_report(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_walker(monkeypatch)
    outcome = suites.perform(suites.Task("x86_64-4level", "permissions", 3000, 0))
    assert outcome.tally.different > 0
    assert not suites.verdict(outcome)
    root = ElementTree.fromstring(junit.as_xml([outcome]))
    failures = [case for case in root.iter("testcase") if case.find("failure") is not None]
    assert failures and int(root.get("failures", "0")) == len(failures)
    text = failures[0].findtext("failure")
    assert text is not None and "specification: " in text and "seen: " in text
    page = html.as_html([outcome])
    assert "<td class=red>" in page and "there are differences" in page


def test_a_flush_that_does_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    true = X86Prober.run

    def run(self: X86Prober, root: int, addresses: object, operation: object, **more: object) -> object:
        if operation is Operation.INVALIDATE:
            return None
        return true(self, root, addresses, operation, **more)  # type: ignore[arg-type]  # handed on

    monkeypatch.setattr(X86Prober, "run", run)
    outcome = suites.perform(suites.Task("x86_64-4level", "tlb", None, 0, "present cleared"))
    assert outcome.tally.different > 0
    assert {case.access.split(", ")[1] for case in outcome.tally.differences} == {"page flush"}


def test_a_known_difference_that_is_gone_is_a_failure() -> None:
    tally = Tally()
    tally.gone["rmw-reads-first"] = 2
    outcome = suites.Outcome(suites.Task("x86_64-4level", "entries", 10, 0), tally)
    assert not suites.verdict(outcome)
    failure = ElementTree.fromstring(junit.as_xml([outcome])).find(".//failure")
    assert failure is not None and failure.get("message") == "gone in 2 cases"


# ---- the command in this process, with outcomes of the test's own


def outcome(tally: Tally, *lines: str) -> suites.Outcome:
    return suites.Outcome(suites.Task("x86_64-4level", "entries", 10, 0), tally, list(lines))


def fill(monkeypatch: pytest.MonkeyPatch, tally: Tally) -> None:
    """Let every task end with that tally."""

    def perform(_task: suites.Task, _progress: object, into: suites.Outcome) -> None:
        into.tally = tally

    monkeypatch.setattr(workers, "perform", perform)


def commanded(monkeypatch: pytest.MonkeyPatch, tally: Tally, *arguments: str) -> tuple[int, list[str]]:
    """Exit status and lines of a run whose only task ends with that tally."""
    fill(monkeypatch, tally)
    ran = CliRunner().invoke(app, ["verify", "x86_64-4level", "--suite", "entries", *arguments])
    return ran.exit_code, ran.output.splitlines()


def test_what_is_clean_is_exit_0(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = Tally(cases=5, set_aside=3)
    tally.known["rmw-reads-first"] = 2
    status, lines = commanded(monkeypatch, tally)
    assert status == 0
    assert lines[0].endswith("5 cases, 0 differences, 3 set aside, rmw-reads-first 2")
    assert lines[1] == "5 cases: nothing is left to explain"


def test_a_known_difference_that_was_not_met_is_exit_1_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = Tally(cases=5)
    tally.known["rmw-reads-first"] = 2  # met in two cases, but not in one
    tally.gone["rmw-reads-first"] = 1
    assert not tally.clean
    status, lines = commanded(monkeypatch, tally)
    assert status == 1
    assert lines[0].endswith("rmw-reads-first 2, GONE: rmw-reads-first in 1")
    assert lines[1] == "5 cases: there are differences"


def test_differences_are_exit_1_and_three_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cases = [Case("PT entry", "read user", {}, 0x1000 * n, 1, (n,), "a page", "a fault") for n in range(5)]
    tally = Tally(cases=9, different=5, differences=cases)
    tally.cells["PT entry", "read user"] = 9
    tally.red["PT entry", "read user"] = 5
    tally.examples["PT entry", "read user"] = cases[0]
    xml, page = tmp_path / "x.xml", tmp_path / "x.html"
    status, lines = commanded(monkeypatch, tally, "--junit", str(xml), "--report", str(page))
    assert status == 1
    assert sum("a fault" in line for line in lines) == 3
    assert ElementTree.parse(xml).getroot().get("failures") == "1"
    assert "there are differences" in page.read_text()


def test_a_flush_that_the_policy_lacks_is_exit_1(monkeypatch: pytest.MonkeyPatch) -> None:
    for missing, needless, expected in ((2, 0, 1), (0, 2, 0)):
        tally = TlbTally(cases=5, findings={"write removed": Finding(missing=missing, needless=needless)})
        status, lines = commanded(monkeypatch, tally)
        assert status == expected
        assert lines[1] == f"  write removed: flush missing after {missing}, needless after {needless} edits"


@pytest.mark.parametrize("arguments", [("--only", "nonsense"), ("--report", "/nowhere/x.html")])
def test_what_is_refused_leaves_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str, str]
) -> None:
    made, kept = tmp_path / "x.xml", tmp_path / "kept.xml"
    kept.write_bytes(b"before")
    for path in (made, kept):
        with pytest.raises(click.UsageError, match=arguments[1]):
            runs(monkeypatch, Tally(), "--junit", str(path), *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.xml"]
    assert kept.read_bytes() == b"before"


def test_an_interrupted_verification_says_what_it_has_and_gives_no_verdict(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("older")

    def perform(task: suites.Task, _progress: object, into: suites.Outcome) -> None:
        into.tally.cases = 1500
        if task.suite == "entries":
            into.tally.different = 2
            raise KeyboardInterrupt

    monkeypatch.setattr(workers, "perform", perform)
    ran = CliRunner().invoke(app, ["verify", "x86_64-4level", "--report", str(old), "--junit", str(new)])
    assert ran.exit_code
    assert ran.stdout.splitlines() == [
        "x86_64-4level      encodings         1,500 cases, 0 differences",
        "x86_64-4level      entries     stopped after 1,500 cases, 2 differences so far",
        "interrupted: 1 of 4 suites are complete; nothing is said about the rest",
        f"{new} is not written",
        f"{old} is not written",
    ]
    assert old.read_text() == "older"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def runs(monkeypatch: pytest.MonkeyPatch, tally: Tally, *arguments: str) -> None:
    """As `commanded`, for one that raises."""
    fill(monkeypatch, tally)
    app(["verify", "x86_64-4level", "--suite", "entries", *arguments], standalone_mode=False)


def test_the_page_tells_how_many_cases_were_set_aside() -> None:
    for aside, words in ((0, "4,000 cases, 0 differences"), (1234, "4,000 cases, 1,234 set aside, 0 diff")):
        outcome = suites.Outcome(
            suites.Task("x86_64-4level", "entries", 4000, 0), Tally(cases=4000, set_aside=aside), []
        )
        assert f"<p>{words}" in html.as_html([outcome])


def test_names_are_escaped() -> None:
    outcome = suites.Outcome(suites.Task("x86_64-4level", "entries", 10, 0), Tally(), ["<b>&</b>"])
    assert "<b>" not in html.as_html([outcome]).replace("<body>", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["x86_64-4level", "x86_64-5level", "arm64-4K", "arm64-16K-47bit", "arm64-64K"]
)
def test_the_whole_matrix_has_no_difference(name: str) -> None:
    for suite in ("entries", "permissions"):
        outcome = suites.perform(suites.Task(name, suite, None, 0))
        assert outcome.tally.cases >= 1_000_000
        assert suites.verdict(outcome)
