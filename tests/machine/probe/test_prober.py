"""The probers' machine code is what stands beside it."""

from __future__ import annotations

import capstone
import pytest

from aether_emu.machine.probe import arm64 as prober_arm64
from aether_emu.machine.probe import x86_64 as prober_x86
from aether_emu.machine.probe.prober import Operation
from tests.machine.unicorn import bare_arm64
from tests.machine.unicorn.flat_guest import assemble

X86 = [*prober_x86.ACCESSES.values(), prober_x86.HEAD, prober_x86.NEXT, prober_x86._KEYS]
ARM = [(source, bytes.fromhex(code)) for source, code in
       (*prober_arm64._SOURCES.values(), prober_arm64._HEAD, prober_arm64._NEXT)]  # fmt: skip


@pytest.mark.parametrize(("source", "code"), X86, ids=[source for source, _code in X86])
def test_x86_64_code_is_what_its_source_assembles_to(source: str, code: bytes) -> None:
    assert assemble(source) == code


@pytest.mark.parametrize(("source", "code"), ARM, ids=[source for source, _code in ARM])
def test_arm64_code_is_what_its_source_assembles_to(source: str, code: bytes) -> None:
    known = "; ".join(
        part for part in source.split("; ") if not part.startswith("ldadd")
    )  # keystone has none
    rest = code[4:] if known != source else code
    assert bare_arm64.assemble(known) == rest
    if known != source:
        (one,) = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM).disasm(code[:4], 0)
        assert f"{one.mnemonic} {one.op_str}" == source.split("; ", maxsplit=1)[0]


def disassembled(code: bytes) -> list[str]:
    """ARM64 code, an instruction a string."""
    found = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_LITTLE_ENDIAN).disasm(code, 0)
    return [f"{one.mnemonic} {one.op_str}".strip() for one in found]


def test_landings_come_back() -> None:
    assert assemble("jmp r15") == prober_x86.LANDING_CODE
    words = list(
        capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM).disasm(prober_arm64.LANDING_CODE, 0)
    )
    assert [f"{one.mnemonic} {one.op_str}".strip() for one in words] == ["bti jc", "br x4"]


def test_each_isa_has_the_operations_that_it_can_make() -> None:
    only_arm = {Operation.UNPRIVILEGED_READ, Operation.UNPRIVILEGED_WRITE}
    assert set(prober_arm64._SOURCES) == set(Operation)
    assert set(prober_x86.ACCESSES) == set(Operation) - only_arm
