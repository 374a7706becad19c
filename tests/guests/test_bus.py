"""Pages that have nothing behind them are the guest's SIGBUS, and the machine goes on."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aether_emu.arch.paging import Access
from aether_emu.grants import Grants
from aether_emu.linux.files.streams import BufferStream
from aether_emu.mm.protection import Protection
from aether_emu.system import Machine
from tests.guests.running import LARGE_PAGES, TARGETS, Target, program
from tests.mm.board import fault_in

NOWHERE = 0x7F_0000_0000
DATA = 0x2000_0000


@contextlib.contextmanager
def _loaded(
    target: Target, cwd: Path, *, live_state: bool = True
) -> Iterator[tuple[Machine, dict[str, BufferStream]]]:
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    machine = Machine(target.isa, page_size=target.page_size, live_state=live_state)
    try:
        machine.load(program(target.isa, "hello"), ["hello"], streams=streams, grants=Grants(cwd=cwd))
        yield machine, streams
    finally:
        machine.close()


@pytest.mark.parametrize("live_state", [True, False], ids=["live state", "state by API"])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_code_behind_a_broken_entry_is_a_bus_error(target: Target, live_state: bool, tmp_path: Path) -> None:
    with _loaded(target, tmp_path, live_state=live_state) as (machine, streams):
        process = machine.process
        assert process is not None
        space, entry = process.mm, process.program.entry
        fault_in(space, entry, int(Access.USER | Access.EXECUTE))
        found = space.table.find(entry & -target.page_size)
        assert found is not None
        words, good = machine.ram.words, found.entry
        words[found.slot] = good & ~space.table.format.address_mask | NOWHERE
        ended = machine.run()
        words[found.slot] = good
    assert ended.signal == signal.SIGBUS
    assert not streams["stdout"].written


# Load from the address in rdi, or x1, for ever.
_LOOPS = {
    "x86_64": (bytes.fromhex("488b07ebfb"), "rdi", "rax"),  # l: mov rax, [rdi]; jmp l
    "arm64": (bytes.fromhex("200040f9ffffff17"), "x1", "x0"),  # l: ldr x0, [x1]; b l
}
_CODE = 0x1000_0000


@contextlib.contextmanager
def _reading(target: Target, file: Path, offset: int) -> Iterator[Machine]:
    """A machine whose guest loads from `offset` of `file` over and over, some thousand blocks into that."""
    with _loaded(target, file.parent) as (machine, _):
        process = machine.process
        assert process is not None
        code, pointer, _result = _LOOPS[target.isa]
        everything = Protection.READ | Protection.WRITE | Protection.EXECUTE
        process.mm.insert(process.mm.new_area(_CODE, _CODE + target.page_size, everything))
        machine.cpu.copy_to_user(_CODE, code)
        with file.open("rb") as opened:
            process.mm.map_file(opened, DATA, 4 * target.page_size, Protection.READ)
        machine.cpu.pc = _CODE
        machine.cpu.write(pointer, DATA + offset)
        assert machine.run_for(1000) is None
        yield machine


def _cut(file: Path, size: int) -> None:
    program = f"import os, sys; os.truncate(sys.argv[1], {size})"
    subprocess.run([sys.executable, "-c", program, file], check=True)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_page_that_another_process_cuts_off_is_a_bus_error(target: Target, tmp_path: Path) -> None:
    page, file = target.page_size, tmp_path / "file"
    file.write_bytes(b"x" * 2 * page)
    with _reading(target, file, page) as machine:
        _cut(file, page)
        ended = machine.run()
    assert ended.signal == signal.SIGBUS
    assert f"{DATA + page:#x}" in ended.why


@pytest.mark.parametrize("target", LARGE_PAGES, ids=str)
def test_a_page_that_another_process_cuts_short_reads_zero(target: Target, tmp_path: Path) -> None:
    """The file still has this page, though not that part of it: Linux gives zeros up to the page's end."""
    page, file = target.page_size, tmp_path / "file"
    file.write_bytes(b"x" * 2 * page)
    with _reading(target, file, 2 * page - 8) as machine:
        _cut(file, page + 100)
        assert machine.run_for(1000) is None
        assert machine.cpu.read(_LOOPS[target.isa][2]) == 0
        assert machine.cpu.copy_from_user(DATA + page, 200) == b"x" * 100 + bytes(100)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_page_that_another_process_adds_is_seen(target: Target, tmp_path: Path) -> None:
    page, file = target.page_size, tmp_path / "file"
    file.write_bytes(b"x" * 100)
    with _reading(target, file, 0) as machine:
        assert machine.cpu.copy_from_user(DATA, page) == (b"x" * 100).ljust(page, b"\0")
        with file.open("r+b") as opened:
            opened.seek(page)
            opened.write(b"y" * 100)
        assert machine.cpu.copy_from_user(DATA + page, page) == (b"y" * 100).ljust(page, b"\0")
