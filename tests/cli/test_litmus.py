"""`aether litmus` from outside: its table, its files, its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from aether_emu.cli.app import app
from aether_emu.litmus import explore
from tests.cli.command import aether, one_line

MINE = """\
name: mine
isa: x86_64
published: {}
source: nobody
memory
  pa1 = 7
map
  x -> pa1
thread 0
  set pte(x) = invalid
{}  r0 = load x
exists 0:r0 = 7
"""


def test_each_verdict_stands_beside_the_published_one() -> None:
    ran = aether("litmus", "shootdown", "shootdown.early", "SB")
    assert ran.returncode == 0, ran.stderr.decode()
    heading, *rows, last = ran.stdout.decode().splitlines()
    assert heading.split() == ["isa", "test", "published", "ours", "states", "executed", "shape"]
    assert [row.split()[1] for row in rows] == ["shootdown", "shootdown.early", "SB"]
    assert ["forbidden  not reached" in rows[0], "allowed    reached" in rows[1]] == [True, True]
    assert "allowed    out of reach" in rows[2]
    assert last.startswith("3 tests, each end as published, 1 out of reach, ")


@pytest.mark.parametrize(
    ("published", "flush", "said"),
    [
        ("forbidden", "", ["REACHED", "by a stale [pa1]: 7"]),
        ("allowed", "  invlpg x\n", ["NOT REACHED", "no end has 0:r0 = 7"]),
    ],
)
def test_a_difference_is_told_and_ends_with_status_1(
    tmp_path: Path, published: str, flush: str, said: list[str]
) -> None:
    (tmp_path / "mine.litmus").write_text(MINE.format(published, flush))
    ran = aether("litmus", "mine.litmus", cwd=tmp_path)
    text = ran.stdout.decode()
    assert ran.returncode == 1
    assert all(words in text for words in said), text
    assert text.splitlines()[-1].startswith("1 test, 1 finding, ")


def test_json_has_all_ends_and_the_steps(tmp_path: Path) -> None:
    assert aether("litmus", "MP.unmap+invlpg", "--json", "out", cwd=tmp_path).returncode == 0
    (test,) = json.loads((tmp_path / "out").read_bytes())["tests"]
    assert (test["name"], test["published"], test["reached"]) == ("MP.unmap+invlpg", "allowed", True)
    assert test["source"] == "Intel SDM 3A 4.10.5"
    assert len(test["ends"]) > 3
    assert test["steps"][-1].startswith("thread 1: r1 = load x, by a stale")


def test_the_list_names_the_source_of_each_verdict_and_runs_nothing() -> None:
    lines = aether("litmus", "--list", "--isa", "arm64").stdout.decode().splitlines()
    assert len(lines) >= 40
    assert {line.split()[0] for line in lines} == {"arm64"}
    (one,) = (line for line in lines if line.split()[1] == "coRR-pte9")
    assert "forbidden" in one
    assert "herdtools7" in one


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shootdwn"], ["shootdwn: a litmus file or a name", "did you mean shootdown?"]),
        (["shootdown", "--isa", "arm64"], ["shootdown", "--list was expected"]),
        (["no/such.litmus"], ["no/such.litmus: cannot be read: No such file"]),
        (["wrong.litmus"], ["wrong.litmus:11: y: a virtual page"]),
        (["--isa", "vax"], ["--isa vax"]),
        (["--states", "0"], ["--states 0"]),
        (["shootdown", "--json", "no/dir"], ["--json no/dir cannot be written"]),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    (tmp_path / "wrong.litmus").write_text(MINE.format("allowed", "  invlpg y\n"))
    one_line(aether("litmus", *arguments, cwd=tmp_path), 2, words)


def test_a_test_that_is_too_large_ends_with_a_line() -> None:
    ran = aether("litmus", "shootdown.three", "--states", "10")
    assert ran.returncode == 2
    assert b"shootdown.three has more than 10 states" in ran.stderr
    assert ran.stderr.count(b"\n") == 1


def test_ctrl_c_tells_how_many_tests_were_run(monkeypatch: pytest.MonkeyPatch) -> None:
    real = explore.explore
    done: list[int] = []

    def interrupted(*arguments: object, **options: object) -> object:
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return real(*arguments, **options)  # type: ignore[arg-type]  # handed on as they came

    monkeypatch.setattr(explore, "explore", interrupted)
    ran = CliRunner().invoke(app, ["litmus", "shootdown", "unmap+po"])
    assert "interrupted: 1 of 2 tests were run" in ran.output
