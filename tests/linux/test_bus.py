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
    cut = "import os, sys; os.truncate(sys.argv[1], 4096)"
    subprocess.run([sys.executable, "-c", cut, str(file)], check=True)
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
