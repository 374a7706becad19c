"""`aether pt` at a terminal of 80 columns, and through a pager."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.command import PROGRAMS, aether
from tests.cli.terminal import at_terminal
from tests.cli.test_pt import crafted_image
from tests.verify.crafted_images import CODE, KERNEL, Crafted

UPPER = 0xFFFF_FFFF_8000_0000
_COLOUR = re.compile("\x1b\\[[0-9;]*m")


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of ours, with five levels: addresses of 57 bits."""
    path = tmp_path_factory.mktemp("core") / "core"
    assert aether("run", "--la57", "--core", path, PROGRAMS / "x86_64" / "hello").returncode == 0
    return path


def long_image(folder: Path, ranges: int = 60) -> list[str | Path]:
    """Tables of that many ranges, none beside another."""
    crafted = Crafted("x86_64-4level")
    for number in range(ranges):
        crafted.leaf(0x10000 + 0x2000 * number, 0x20000)
    return crafted_image(folder, crafted)


def test_all_that_a_pipe_gets_is_at_80_columns_too(core: Path) -> None:
    for command in (["show"], ["walk", "400000", "ffffffff80000000"], ["lint"], ["who", "0", "100000"]):
        piped = aether("pt", command[0], core, *command[1:])
        status, text = at_terminal("pt", command[0], core, *command[1:], "--no-pager")
        assert status == piped.returncode
        lines = _COLOUR.sub("", text).splitlines()
        assert max(map(len, lines)) <= 80
        long = set(re.findall(r"\b(?:0x)?([0-9a-f]{12,16})\b", piped.stdout.decode()))
        assert long <= set(re.findall(r"\b(?:0x)?([0-9a-f]{12,16})\b", " ".join(lines))), command


def test_a_wide_terminal_gets_the_columns_of_a_pipe(core: Path) -> None:
    _status, text = at_terminal("pt", "show", core, "--no-pager", columns=160)
    assert _COLOUR.sub("", text) == aether("pt", "show", core).stdout.decode()


def test_writable_code_is_red_at_a_terminal_that_has_colours(tmp_path: Path) -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0x5000, 0x20000, 0x67)
    crafted.leaf(UPPER, 0x21000, CODE["x86_64"])
    options = crafted_image(tmp_path, crafted)
    red = at_terminal("pt", "show", *options)[1].splitlines()
    assert [line.startswith("\x1b[1;31m") for line in red[:3]] == [False, True, False]
    for variables in ({"NO_COLOR": "1"}, {"TERM": "dumb"}, {"PAGER": "more"}):
        assert "\x1b[" not in at_terminal("pt", "show", *options, variables=variables)[1]
    assert b"\x1b" not in aether("pt", "show", *options).stdout


def test_long_output_goes_through_the_pager_and_short_output_does_not(tmp_path: Path) -> None:
    paged, options = tmp_path / "paged", long_image(tmp_path)
    pager = f"cat > {paged}"
    status, text = at_terminal("pt", "show", *options, variables={"PAGER": pager})
    assert (status, text) == (0, "")
    lines = paged.read_text().splitlines()
    assert len(lines) == 1 + 60 + 2
    assert max(map(len, lines)) <= 80
    for rows, more in ((100, []), (24, ["--no-pager"]), (24, ["--range", "10000-12000"])):
        paged.unlink(missing_ok=True)
        status, text = at_terminal("pt", "show", *options, *more, rows=rows, variables={"PAGER": pager})
        assert status == 0
        assert "0000000000010000" in text
        assert not paged.exists()
    assert aether("pt", "show", *options).stdout.count(b"\n") == 1 + 60 + 2
    assert not paged.exists()


@pytest.mark.parametrize("pager", ["", "cat", "no-such-program-anywhere", "'"])
def test_no_pager_is_a_plain_print(tmp_path: Path, pager: str) -> None:
    status, text = at_terminal("pt", "show", *long_image(tmp_path), variables={"PAGER": pager})
    assert (status, len(text.splitlines())) == (0, 63)


def test_less_is_told_to_show_colours_and_to_stay_on_the_screen(tmp_path: Path) -> None:
    told, options = tmp_path / "told", long_image(tmp_path)
    pager = f"printenv LESS > {told}; cat > /dev/null"
    at_terminal("pt", "show", *options, variables={"PAGER": pager})
    assert told.read_text() == "FRX\n"
    at_terminal("pt", "show", *options, variables={"PAGER": pager, "LESS": "i"})
    assert told.read_text() == "i\n"


def test_who_quits_the_pager_early_has_read_enough(tmp_path: Path) -> None:
    crafted = Crafted("x86_64-4level", 300)
    for number in range(100_000):  # more than a pipe holds
        slot = crafted.slot(crafted.table_of(UPPER + 0x1000 * number, 1), UPPER + 0x1000 * number, 1)
        crafted.words[slot : slot + 1] = (number * 7919 % 1024) << 12 | KERNEL["x86_64"] & ~(number % 2 << 1)
    options = crafted_image(tmp_path, crafted)
    status, text = at_terminal("pt", "show", *options, variables={"PAGER": "head -n 1"})
    assert (status, text.count("\n")) == (0, 1)


def test_ctrl_c_belongs_to_the_pager(tmp_path: Path) -> None:
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\ntrap 'echo heard' INT\ncat > /dev/null\necho ready\nread line < /dev/tty\n"
                     "read line < /dev/tty\necho over\n")  # fmt: skip
    pager.chmod(0o755)
    status, text = at_terminal(
        "pt", "show", *long_image(tmp_path),
        typed=[(b"ready", b"\x03"), (b"heard", b"a\nb\n")], variables={"PAGER": str(pager)},
    )  # fmt: skip
    assert status == 0
    assert text.rstrip().endswith("over")


def test_a_document_is_not_wrapped(tmp_path: Path) -> None:
    options = long_image(tmp_path, 3)
    _status, text = at_terminal("pt", "show", *options, "--json")
    assert text == aether("pt", "show", *options, "--json").stdout.decode()
    assert max(map(len, text.splitlines())) > 80
