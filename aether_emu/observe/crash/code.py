"""The instructions around a place, by capstone."""

from __future__ import annotations

from dataclasses import dataclass

import capstone

from aether_emu.observe.peek import PeekMemory

_BEFORE, _AFTER = 4, 4
_FARTHEST = 4096  # bytes between a function's start and a place in it
_LONGEST = 15  # bytes of an instruction
_MASK = (1 << 64) - 1
_MODES = {
    "x86_64": (capstone.CS_ARCH_X86, capstone.CS_MODE_64),
    "arm64": (capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM),
}


@dataclass(frozen=True)
class Instruction:
    """One of them. `text` is "(bad)" for bytes that are none."""

    address: int
    code: bytes
    text: str


def around(memory: PeekMemory, isa: str, pc: int, start: int | None) -> list[Instruction]:
    """Instructions from a few before `pc` to a few behind it; none if nothing can be read at `pc`.

    `start` is where the function begins. Without it the instructions before `pc` are a guess on x86_64.
    """
    engine = capstone.Cs(*_MODES[isa])
    engine.skipdata = True
    behind = memory.read_up_to(pc, _LONGEST * (_AFTER + 1))
    if not behind:
        return []
    return [*_before(engine, memory, isa, pc, start), *_decoded(engine, behind, pc)[: _AFTER + 1]]


def _before(
    engine: capstone.Cs, memory: PeekMemory, isa: str, pc: int, start: int | None
) -> list[Instruction]:
    if isa == "arm64":
        first = max(pc - 4 * _BEFORE, start or 0)
        return _from(engine, memory, first, pc) or []
    if start is not None and 0 <= pc - start <= _FARTHEST:
        return (_from(engine, memory, start, pc) or [])[-_BEFORE:]
    for length in range(_LONGEST * _BEFORE, 0, -1):
        found = _from(engine, memory, pc - length, pc)
        if found is not None and not any(one.text == "(bad)" for one in found):
            return found[-_BEFORE:]
    return []


def _from(engine: capstone.Cs, memory: PeekMemory, first: int, pc: int) -> list[Instruction] | None:
    """The instructions of `[first, pc)`, if they end there."""
    if first < 0:
        return None
    data = memory.read_up_to(first, pc - first)
    if len(data) < pc - first:
        return None
    found = _decoded(engine, data, first)
    ended = found[-1].address + len(found[-1].code) if found else first
    return found if ended == pc else None


def _decoded(engine: capstone.Cs, data: bytes, address: int) -> list[Instruction]:
    return [
        Instruction(
            one.address, bytes(one.bytes), f"{one.mnemonic} {one.op_str}".strip() if one.id else "(bad)"
        )
        for one in engine.disasm(data, address)
    ]


def used(memory: PeekMemory, pc: int, state: dict[str, int]) -> tuple[str, list[int]]:
    """The x86_64 instruction at `pc`, and the addresses that it uses: those of its operands in memory, and
    where it goes. ("", []) if there is none.
    """
    engine = capstone.Cs(*_MODES["x86_64"])
    engine.detail = True
    one = next(engine.disasm(memory.read_up_to(pc, _LONGEST), pc), None)
    if one is None:
        return "", []
    found = []
    for operand in one.operands:
        if operand.type == capstone.x86.X86_OP_MEM:
            parts = operand.mem
            base = _register(one.reg_name(parts.base), state, pc + one.size) if parts.base else 0
            index = _register(one.reg_name(parts.index), state, 0) if parts.index else 0
            segment = state.get(f"{one.reg_name(parts.segment)}_base", 0) if parts.segment else 0
            found.append(base + index * parts.scale + parts.disp + segment & _MASK)
        elif operand.type == capstone.x86.X86_OP_REG and (
            one.group(capstone.CS_GRP_CALL) or one.group(capstone.CS_GRP_JUMP)
        ):
            found.append(_register(one.reg_name(operand.reg), state, 0))
    if one.group(capstone.CS_GRP_RET):
        found.append(int.from_bytes(memory.read_up_to(state["rsp"], 8), "little"))
    return f"{one.mnemonic} {one.op_str}".strip(), found


def _register(name: str, state: dict[str, int], next_pc: int) -> int:
    return next_pc if name == "rip" else state.get(name, 0)
