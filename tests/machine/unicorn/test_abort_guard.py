"""Code that makes the engine abort ends its run, and nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from aether_emu.errors import EngineError
from aether_emu.linux.files.streams import BufferStream
from aether_emu.machine.cpu import ExitReason
from aether_emu.machine.unicorn import abort_guard
from aether_emu.mm.protection import Protection
from aether_emu.system import Machine
from tests.guests.running import program
from tests.machine.unicorn.bare_arm64 import BareArm64
from tests.machine.unicorn.bare_x86 import CODE, DATA, READ_WRITE, BareX86
from tests.machine.unicorn.flat_guest import assemble

# LOCK before BT, BTS, BTR and BTC of a register, by a register and by a number.
ABORTING = [
    bytes.fromhex(code) for code in ("f00fa3c0", "f0480fabd8", "f0420fb3e7", "f00fbbc0", "f00fbae803")
]


@pytest.mark.parametrize("code", ABORTING, ids=bytes.hex)
def test_code_that_the_translator_cannot_digest_ends_the_run(code: bytes) -> None:
    bare = BareX86()
    ended = bare.run(b"\x90" + code)
    assert (ended.reason, ended.detail) == (ExitReason.ENGINE, "the engine cannot translate the code there")
    assert bare.cpu.pc == CODE
    bare.cpu.close()
    other = BareX86()
    assert other.run("mov ebx, 3\nsyscall").reason is ExitReason.STOPPED
    assert other["rbx"] == 3


def test_so_does_such_code_on_arm64() -> None:
    bare = BareArm64()
    bare.fill(bare.code, bytes.fromhex("9c7a794e"))
    assert bare.go().reason is ExitReason.ENGINE
    bare.cpu.close()


def test_a_run_inside_the_run_does_not_take_its_place() -> None:
    bare = BareX86()

    def repair(va: int, _access: int) -> None:
        bare.map(va & -4096, READ_WRITE)
        bare.cpu.flush_page(va)

    bare.cpu.on_fault = repair
    bare["rdi"] = DATA + 0x10_0000
    ended = bare.run(assemble("mov [rdi], rax\njmp over\nover: nop") + ABORTING[0])
    assert ended.reason is ExitReason.ENGINE


def test_a_program_with_such_code_ends_with_a_line() -> None:
    machine = Machine("x86_64")
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    process = machine.load(program("x86_64", "hello"), ["hello"], streams=streams)
    everything = Protection.READ | Protection.WRITE | Protection.EXECUTE
    process.mm.insert(process.mm.new_area(0x1000_0000, 0x1000_1000, everything))
    machine.cpu.copy_to_user(0x1000_0000, ABORTING[0])
    machine.cpu.pc = 0x1000_0000
    with pytest.raises(EngineError, match="at 0x10000000: the engine cannot translate"):
        machine.run()
    machine.close()


def test_other_aborts_end_the_process() -> None:
    code = "import os, tests.machine.unicorn.bare_x86 as b; b.BareX86(); os.abort()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGABRT


def test_the_handler_returns_behind_the_call() -> None:
    before = abort_guard.SOURCE.split("leave:")[0]
    assert abort_guard.CODE.startswith(assemble(before))
    assert len(assemble(before)) == abort_guard._LEAVE
