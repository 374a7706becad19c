"""Our lines are those that strace writes of the same program on Linux (`record` has them)."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu.linux.abi.arm64_calls import SYSTEM_CALLS
from aether_emu.observe.strace.selection import select
from tests.observe.strace.lines import as_on_arm64, comparable, without_prefix
from tests.observe.strace.record import EXPECTED, NAMES, PROGRAMS
from tests.observe.strace.tracing import traced
from tests.programs.workplace import furnish

_CALLS_AND_SIGNALS = select(["syscall", "signal"])


@pytest.mark.parametrize("name", NAMES)
def test_lines_are_those_of_strace(name: str, tmp_path: Path) -> None:
    furnish(tmp_path)
    text = traced(PROGRAMS / "x86_64" / name, "x86_64", tmp_path, selection=_CALLS_AND_SIGNALS)
    assert comparable(without_prefix(text)) == (EXPECTED / f"{name}.txt").read_text().splitlines()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "calls"])
def test_lines_on_arm64_are_those_of_the_same_source_on_x86_64(name: str, tmp_path: Path) -> None:
    furnish(tmp_path)
    text = traced(PROGRAMS / "arm64" / name, "arm64", tmp_path, selection=_CALLS_AND_SIGNALS)
    native = (EXPECTED / f"{name}.txt").read_text().splitlines()
    assert as_on_arm64(comparable(without_prefix(text))) == as_on_arm64(native)


def test_lines_of_many_calls_on_arm64_are_the_same(tmp_path: Path) -> None:
    """The program makes the same calls there, but for the old ones and what the C library does first."""
    furnish(tmp_path)
    text = traced(PROGRAMS / "arm64" / "calls", "arm64", tmp_path, selection=_CALLS_AND_SIGNALS)
    ours = comparable(without_prefix(text))
    native = (EXPECTED / "calls.txt").read_text().splitlines()
    first, last = _place(native, "openat("), _place(native, "socket(")
    assert ours[_place(ours, "openat(") :][: last + 1 - first] == native[first : last + 1]
    assert set(SYSTEM_CALLS.values()).isdisjoint({"open", "poll", "select"})
    assert ours[-3:] == native[-3:]


def _place(lines: list[str], start: str) -> int:
    return next(index for index, line in enumerate(lines) if line.startswith(start))
