"""`aether pt diff`, `aether pt who`, filters and documents as users meet them, in a pipe."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import COMMAND, PATIENCE, aether, environment, one_line
from tests.cli.terminal import at_terminal
from tests.cli.test_pt import crafted_image
from tests.guests.running import Target
from tests.verify.crafted_images import CODE, PAGE, Crafted
from tests.verify.guest_cores import stopped_core

UPPER = 0xFFFF_FFFF_8000_0000


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Of each ISA two cores of one program, at two moments of its run."""
    made = {}
    for target in (Target("x86_64", 4096), Target("arm64", 4096)):
        early, late = (tmp_path_factory.mktemp(target.isa) for _ in range(2))
        made[target.isa] = (
            stopped_core(early, target, "tour", blocks=1000),
            stopped_core(late, target, "tour", blocks=6_000),
        )
    return made


def document(*arguments: str | Path, status: int = 0) -> Any:
    result = aether(*arguments)
    assert (result.returncode, result.stderr) == (status, b"")
    return json.loads(result.stdout)


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_cores_of_two_moments_differ_as_listings_of_both_do(
    moments: dict[str, tuple[Path, Path]], isa: str
) -> None:
    old, new = moments[isa]
    assert aether("pt", "diff", old, old).stdout == b""
    assert document("pt", "diff", "--json", old, old)["same"] is True
    found = document("pt", "diff", "--json", old, new, status=1)
    assert (found["old"]["image"], found["new"]["image"]) == (str(old), str(new))
    kinds = {one["how"] for one in found["ranges"]}
    assert kinds <= {"mapped", "unmapped", "changed"}

    def pages(path: Path) -> dict[int, tuple[str, str]]:
        return {
            page: (one["user"], one["kernel"])
            for one in document("pt", "show", "--json", path)["ranges"]
            for page in range(
                int(one["start"], 16), min(int(one["end"], 16), int(one["start"], 16) + (1 << 24)), 4096
            )
        }

    before, after = pages(old), pages(new)
    for one in found["ranges"]:
        start = int(one["start"], 16)
        assert (start in before, start in after) == (one["how"] != "mapped", one["how"] != "unmapped")
        if one["how"] == "changed":
            assert ("protection" in one["what"]) == (before[start] != after[start])
    text = aether("pt", "diff", old, new)
    assert (text.returncode, text.stderr) == (1, b"")
    signs = [line[0] for line in text.stdout.decode().splitlines()[1:-1] if line[0] in "+-~"]
    assert len(signs) == len(found["ranges"])
    status, narrow = at_terminal("pt", "diff", old, new, "--no-pager")
    assert status == 1
    assert max(map(len, narrow.splitlines())) <= 80


def test_what_the_limit_left_out_is_told_as_that(tmp_path: Path) -> None:
    crafted = Crafted("x86_64-4level")
    for place in (0x5000, 0x200000 + 0x5000):  # in two tables of the last level
        crafted.leaf(place, 0x35000)
    options = crafted_image(tmp_path, crafted)
    assert b"--limit" not in aether("pt", "show", *options).stdout
    limited = aether("pt", "show", "--limit", "1", *options).stdout
    assert b"1 table was not looked at, beyond --limit: this is not all" in limited
    assert b"wrong" not in limited


def test_two_roots_of_one_image_are_compared(tmp_path: Path) -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0x5000, 0x35000)
    crafted.words[2 * 512] = crafted.words[512]  # the second root, at page 2, shares all but
    options = crafted_image(tmp_path, crafted)
    same = aether("pt", "diff", *options, "--other-root", "2000")
    assert (same.returncode, same.stdout, same.stderr) == (0, b"", b"")
    crafted.words[2 * 512 + 1] = crafted.words[512]
    other = aether("pt", "diff", *crafted_image(tmp_path, crafted), "--other-root", "2000")
    assert other.returncode == 1
    assert other.stdout.decode().splitlines()[1].split()[:3] == [
        "+", f"{(1 << 39) + 0x5000:016x}", f"{(1 << 39) + 0x6000:016x}",
    ]  # fmt: skip


def test_a_use_is_a_difference_unless_it_is_ignored(tmp_path: Path) -> None:
    for name, bits in (("old", 0x7), ("new", 0x67)):
        crafted = Crafted("x86_64-4level")
        crafted.leaf(0x5000, 0x35000, bits)
        crafted.words.tofile(tmp_path / name)
    both: list[str | Path] = [
        tmp_path / "old",
        tmp_path / "new",
        "--format",
        "x86_64-4level",
        "--root",
        "1000",
    ]
    assert aether("pt", "diff", *both).returncode == 1
    ignored = aether("pt", "diff", "--ignore-accessed", *both)
    assert (ignored.returncode, ignored.stdout) == (0, b"")
    for more, status in ((["--range", "5000-6000"], 1), (["--range", "6000-7000"], 0), (["--executable"], 1)):
        assert aether("pt", "diff", *more, *both).returncode == status


def test_trouble_with_a_comparison_is_exit_2(tmp_path: Path) -> None:
    crafted = Crafted("x86_64-4level")
    options = crafted_image(tmp_path, crafted)
    one_line(aether("pt", "diff", *options), 2, ["OTHER or --other-root is needed"])
    one_line(aether("pt", "diff", *options, tmp_path / "missing"), 2, ["missing: No such file"])
    (tmp_path / "empty").touch()
    one_line(aether("pt", "diff", *options, tmp_path / "empty"), 2, ["is empty"])
    one_line(aether("pt", "diff", *options, "--other-root", "zzz"), 2, ["--other-root zzz "])
    looped = Crafted("x86_64-4level", 3)
    looped.words[512:1024] = looped.root | 0x27
    looped.words.tofile(tmp_path / "looped")
    one_line(
        aether("pt", "diff", *options, tmp_path / "looped", "--limit", "1000000"),
        2,
        ["limit", "shared tables"],
    )


def test_who_tells_addresses_and_tables(tmp_path: Path) -> None:
    crafted = Crafted("x86_64-4level")
    at = crafted.leaf(0x5000, 0x35000)
    crafted.leaf(UPPER + 0x7000, 0x35000, CODE["x86_64"])
    options = crafted_image(tmp_path, crafted)
    result = aether("pt", "who", *options, "0x35010", f"{at:x}")
    assert (result.returncode, result.stderr) == (0, b"")
    lines = result.stdout.decode().splitlines()
    assert lines[0] == "0x35010: mapped at 2 addresses"
    assert [line.split()[0] for line in lines[2:4]] == [f"{0x5010:016x}", f"{UPPER + 0x7010:016x}"]
    assert lines[4] == f"{at:#x}: not mapped, a page table"
    assert "PT table at" in lines[5]
    data = document("pt", "who", "--json", *options, "35010", f"{at:x}")
    assert [one["virtual"] for one in data["pages"][0]["mappings"]] == ["0x5010", hex(UPPER + 0x7010)]
    assert data["pages"][1]["tables"][0]["translates"] == "0x5000"
    nobody = aether("pt", "who", *options, "35000", "36000")
    assert (nobody.returncode, nobody.stdout.decode().splitlines()[-1]) == (1, "0x36000: not mapped")
    one_line(aether("pt", "who", *options, "1" + "0" * 13), 2, ["PADDR 10000000000000 ", "52 bits"])
    one_line(aether("pt", "who", *options, "nobody"), 2, ["PADDR nobody "])


def test_filters_choose_what_is_shown_and_say_so(tmp_path: Path) -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0x5000, 0x35000)
    crafted.leaf(0x6000, 0x36000, PAGE["x86_64"] & ~2)
    crafted.leaf(UPPER, 0x37000, CODE["x86_64"])
    options = crafted_image(tmp_path, crafted)

    def starts(*more: str) -> list[int]:
        lines = aether("pt", "show", *options, *more).stdout.decode().splitlines()
        ranges = document("pt", "show", "--json", *options, *more)["ranges"]
        shown = [int(line.split()[0], 16) for line in lines[1 : 1 + len(ranges)]]
        assert shown == [int(one["start"], 16) for one in ranges]
        assert any(line.startswith("shown: ") for line in lines) == bool(more)
        assert lines[-2] == "12K mapped: 3 of 4K"
        return shown

    assert starts() == [0x5000, 0x6000, UPPER]
    assert starts("--writable") == [0x5000]
    assert starts("--user") == [0x5000, 0x6000]
    assert starts("--executable") == [UPPER]
    assert starts("--user", "--executable") == []
    assert starts("--range", "6000+1", "--range", "ffffffff80000000-0") == [0x6000, UPPER]
    assert b"shown: 4K in 1 range\n" in aether("pt", "show", *options, "--writable").stdout
    for wrong in ("5000", "6000-5000", "x-y"):
        one_line(aether("pt", "show", *options, "--range", wrong), 2, [f"--range {wrong} ", "START-END"])


def test_a_walk_that_leads_nowhere_is_a_document_and_exit_1(tmp_path: Path) -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0x5000, 0x35000)
    options = crafted_image(tmp_path, crafted)
    one, other = document("pt", "walk", "--json", *options, "5123", "6000", status=1)["walks"]
    assert (one["physical"], one["steps"][3]["fields"]["RW"]) == ("0x35123", 1)
    assert (other["physical"], other["page"]) == (None, None)


def test_beside_a_document_the_engines_answer_goes_to_stderr(tmp_path: Path) -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0x5000, 0x35000)
    result = aether("pt", "show", "--json", "--execute", *crafted_image(tmp_path, crafted))
    assert result.returncode == 0
    assert len(json.loads(result.stdout)["ranges"]) == 1
    assert result.stderr.startswith(b"executed: ")


def test_whoever_closes_or_leaves_stdout_gets_no_traceback(tmp_path: Path) -> None:
    crafted = Crafted("x86_64-4level")
    for number in range(4096):  # more lines than a pipe holds
        crafted.leaf(0x1000 * number, 0x20000, PAGE["x86_64"] & ~(number % 2 << 1))
    options = crafted_image(tmp_path, crafted)
    for redirection, status in ((">&-", 2), ("| head -n 1", 0), ("> /dev/full", 2)):
        script = f'"$@" {redirection}'
        result = subprocess.run(
            ["sh", "-c", script, "sh", *COMMAND, "pt", "show", *map(str, options)],
            capture_output=True, timeout=PATIENCE, env=environment(), check=False,
        )  # fmt: skip
        assert result.returncode == status
        assert b"Traceback" not in result.stderr
        assert result.stderr.count(b"\n") <= 1
