"""The signal that each ARM64 exception becomes (Linux arch/arm64/kernel/traps.c, mm/fault.c)."""

from __future__ import annotations

import pytest

from aether_emu.arch.arm64 import id_registers
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.arm64 import ArmAbi
from tests.machine.unicorn.bare_arm64 import CODE, DATA, BareArm64


@pytest.mark.parametrize(
    ("source", "target", "number", "code", "address"),
    [
        ("nop\nbrk #7", 0, sig.SIGTRAP, sig.TRAP_BRKPT, CODE + 4),
        ("nop\n.long 0", 0, sig.SIGILL, sig.ILL_ILLOPC, CODE + 4),
        ("nop\nhvc #0", 0, sig.SIGILL, sig.ILL_ILLOPC, CODE + 4),
        ("nop\nsmc #0", 0, sig.SIGILL, sig.ILL_ILLOPC, CODE + 4),
        ("nop\nmrs x0, ttbr0_el1", 0, sig.SIGILL, sig.ILL_ILLOPC, CODE + 4),
        ("nop\n.long 0x04bf5020", 0, sig.SIGILL, sig.ILL_ILLOPC, CODE + 4),  # rdvl x0, #1
        ("br x1", CODE + 0x102, sig.SIGBUS, sig.BUS_ADRALN, CODE + 0x102),
        ("br x1", 0x1234_5001, sig.SIGBUS, sig.BUS_ADRALN, 0x1234_5001),
        ("ldxr x0, [x1]", DATA + 4, sig.SIGBUS, sig.BUS_ADRALN, DATA + 4),
        (".long 0xf8200022", DATA + 1, sig.SIGBUS, sig.BUS_ADRALN, DATA + 1),  # ldadd x0, x2, [x1]
        ("ldxr x0, [x1]", 0x5A << 56 | DATA + 4, sig.SIGBUS, sig.BUS_ADRALN, 0x5A << 56 | DATA + 4),
    ],
)
def test_an_exception_becomes_its_signal(
    source: str, target: int, number: int, code: int, address: int
) -> None:
    bare = BareArm64()
    bare["x1"] = target
    bare.run(source)
    ((trap, _pc),) = bare.traps
    info = ArmAbi().trap_signal(bare.cpu, trap)
    assert (info.number, info.code, info.address, info.is_fault) == (number, code, address, True)


@pytest.mark.parametrize(
    ("source", "target", "record"),
    [
        ("brk #7", 0, None),  # the last fault's stays
        (".long 0", 0, sig.FaultRecord()),
        ("br x1", CODE + 0x102, sig.FaultRecord(error=0x8A00_0000)),  # no fault address
        ("ldxr x0, [x1]", DATA + 4, sig.FaultRecord(error=0x9200_0021, address=DATA + 4)),
        ("ldxr x0, [x1]", 0x5A << 56 | DATA + 4, sig.FaultRecord(error=0x9200_0021, address=DATA + 4)),
        (".long 0xf8200022", DATA + 1, sig.FaultRecord(error=0x9200_0021, address=DATA + 1)),  # ldadd
    ],
)
def test_an_exception_leaves_what_frames_show(
    source: str, target: int, record: sig.FaultRecord | None
) -> None:
    bare = BareArm64()
    bare["x1"] = target
    bare.run(source)
    ((trap, _pc),) = bare.traps
    assert ArmAbi().trap_signal(bare.cpu, trap).record == record


def test_a_fault_tells_its_tag_but_records_none() -> None:
    bare = BareArm64()
    bare["x1"] = tagged = 0x5A << 56 | 0x1234_5008
    bare.run("ldr x0, [x1]")
    ((va, access, _pc),) = bare.faults
    info = ArmAbi().fault_signal(bare.cpu, sig.SIGSEGV, sig.SEGV_MAPERR, va, access)
    assert (info.address, info.record) == (tagged, sig.FaultRecord(error=0x9200_0006, address=0x1234_5008))


def test_a_program_is_told_what_the_id_registers_say() -> None:
    bare = BareArm64()
    assert ArmAbi().hardware_capabilities(bare.cpu) == id_registers.hardware_capabilities()
