"""A file that another process cuts short under a running guest: the guest's SIGBUS, never ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from aether_emu import Protection
from aether_emu.address import VirtAddr
from aether_emu.linux.abi.signal import SIGBUS
from aether_emu.linux.files.streams import BufferStream
from aether_emu.machine.cpu import Exit, ExitReason
from aether_emu.system import Machine

GUESTS = Path(__file__).parents[2] / "guest" / "bin"
CODE, DATA = 0x1000_0000, 0x2000_0000
# Load from the second page of the file, for ever. The address is in rdi, or x1.
LOOPS = {
    "x86_64": (bytes.fromhex("488b07ebfb"), "rdi"),  # l: mov rax, [rdi]; jmp l
    "arm64": (bytes.fromhex("200040f9ffffff17"), "x1"),  # l: ldr x0, [x1]; b l
}


def _spinning(isa: str, file: Path) -> Machine:
    """A machine whose guest reads the second page of `file` over and over."""
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    machine = Machine(isa)
    process = machine.load(GUESTS / isa / "hello", ["hello"], streams=streams)
    code, register = LOOPS[isa]
    everything = Protection.READ | Protection.WRITE | Protection.EXECUTE
    process.mm.insert(process.mm.new_area(CODE, CODE + 4096, everything))
    machine.cpu.copy_to_user(CODE, code)
    with file.open("rb") as opened:
        assert isinstance(process.mm.map_file(opened, VirtAddr(DATA), 8192, Protection.READ), VirtAddr)
    machine.cpu.pc = CODE
    machine.cpu.write(register, DATA + 4096)
    return machine


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_truncation_by_another_process_is_the_guests_sigbus(isa: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 8192)
    machine = _spinning(isa, file)
    assert machine.run_for(1000) is None
    _cut(file, 4096)
    ended = machine.run()
    assert ended.signal == SIGBUS
    assert f"{DATA + 4096:#x}" in ended.why
    machine.close()


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_a_file_that_grows_back_is_mapped_again(isa: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 4096)
    machine = _spinning(isa, file)
    with file.open("ab") as opened:
        opened.write(b"y" * 4096)
    assert machine.run_for(1000) is None
    result = machine.cpu.read("rax" if isa == "x86_64" else "x0")
    assert result == int.from_bytes(b"y" * 8, "little")
    machine.close()


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_a_stop_that_nobody_meant_does_not_hurt_the_guest(isa: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"z" * 8192)
    machine = _spinning(isa, file)
    run, entries = machine.cpu.run, []

    def stray_first(budget: int | None = None) -> Exit:
        entries.append(budget)
        return Exit(ExitReason.STRAY) if len(entries) == 1 else run(budget)

    machine.cpu.run = stray_first  # type: ignore[method-assign]  # an engine that came back for no reason
    assert machine.run_for(1000) is None
    assert len(entries) == 2
    machine.close()


# Increment the word at the address in rdi, or x1; then nothing to do; and a loop for ever.
STRAIGHT = {
    "x86_64": (bytes.fromhex("ff07"), bytes.fromhex("90"), bytes.fromhex("ebfe"), "rdi"),
    "arm64": (bytes.fromhex("200040b900040011200000b9"), bytes.fromhex("1f2003d5"), b"\0\0\0\x14", "x1"),
}


def _running_into(isa: str, file: Path) -> tuple[Machine, bytes]:
    """A machine whose guest increments, and goes on into the second page of `file`; and what that holds."""
    work, nop, loop, register = STRAIGHT[isa]
    second = nop * 8 + loop
    file.write_bytes((nop * 4096)[: 4096 - 64] + (work + nop * 64)[:64] + second)
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    machine = Machine(isa)
    process = machine.load(GUESTS / isa / "hello", ["hello"], streams=streams)
    process.mm.insert(process.mm.new_area(DATA, DATA + 4096, Protection.READ | Protection.WRITE))
    with file.open("rb") as opened:
        process.mm.map_file(opened, VirtAddr(CODE), 8192, Protection.READ | Protection.EXECUTE)
    machine.cpu.copy_from_user(CODE, 8192)  # both pages are there
    machine.cpu.write(register, DATA)
    machine.cpu.pc = CODE + 4096 - 64
    return machine, second


def _cut(file: Path, length: int) -> None:
    code = "import os, sys; os.truncate(sys.argv[1], int(sys.argv[2]))"
    subprocess.run([sys.executable, "-c", code, str(file), str(length)], check=True)


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_code_that_a_file_lost_is_met_when_it_is_executed(isa: str, tmp_path: Path) -> None:
    machine, _second = _running_into(isa, tmp_path / "file")
    _cut(tmp_path / "file", 4096)
    ended = machine.run()
    assert (ended.signal, machine.cpu.pc) == (SIGBUS, CODE + 4096)
    assert f"{CODE + 4096:#x}" in ended.why
    assert machine.cpu.copy_from_user(DATA, 1) == b"\1"
    machine.close()


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_code_that_a_file_got_back_runs(isa: str, tmp_path: Path) -> None:
    machine, second = _running_into(isa, tmp_path / "file")
    _cut(tmp_path / "file", 4096)
    assert machine.run_for(1) is None
    with (tmp_path / "file").open("ab") as opened:
        opened.write(second)
    for _ in range(2):  # first the page comes back, then both are one block again
        machine.cpu.pc = CODE + 4096 - 64
        assert machine.run_for(1000) is None
        assert machine.cpu.pc == CODE + 4096 + len(second) - len(STRAIGHT[isa][2])
    machine.close()
