"""What an exception of the engine is on an x86_64 CPU, and what it never raises of itself.

The engine's exceptions differ from a CPU's where it decodes loosely: it has no #SS, takes ICEBP for
undefined, admits `int 1`, and returns far with the wrong rights. `X86Traps` looks at the instruction at pc
then, and tells the kernel the exception that the manual names.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

from aether_emu.arch.x86_64 import registers as regs
from aether_emu.arch.x86_64 import syndrome
from aether_emu.errors import EngineError
from aether_emu.machine.cpu import Trap, TrapKind
from aether_emu.machine.unicorn import engine, x86_blocks, x86_operand, x86_overread, x86_rare
from aether_emu.machine.unicorn.cpu import MASK, PROT_EXECUTE, PROT_READ, PROT_WRITE, UnicornCpu
from aether_emu.machine.unicorn.x86_blocks import Instruction
from aether_emu.machine.unicorn.x86_operand import Operand
from aether_emu.machine.unicorn.x86_rare import Access
from aether_emu.machine.unicorn.x86_state import Field, State

_ICEBP, _IRET, _FAR_RETURN, _FAR_RETURN_RELEASE = 0xF1, 0xCF, 0xCB, 0xCA
_NEG_BYTE, _LAHF = 0xF6, 0x9F
_LONGEST_OPERAND = 16
_LONGEST = 15  # bytes of an instruction

_KINDS: dict[int, TrapKind] = {
    syndrome.VECTOR_DIVIDE: TrapKind.DIVIDE,
    syndrome.VECTOR_DEBUG: TrapKind.DEBUG,
    syndrome.VECTOR_BREAKPOINT: TrapKind.BREAKPOINT,
    syndrome.VECTOR_OVERFLOW: TrapKind.OVERFLOW,
    syndrome.VECTOR_INVALID_OPCODE: TrapKind.ILLEGAL,
    syndrome.VECTOR_PROTECTION: TrapKind.PROTECTION,
    syndrome.VECTOR_X87: TrapKind.FLOAT,
    syndrome.VECTOR_ALIGNMENT: TrapKind.ALIGNMENT,
    syndrome.VECTOR_SIMD: TrapKind.FLOAT,
}
ILLEGAL = Trap(TrapKind.ILLEGAL, syndrome.VECTOR_INVALID_OPCODE)
PROTECTION = Trap(TrapKind.PROTECTION, syndrome.VECTOR_PROTECTION)
_STACK = Trap(TrapKind.STACK, syndrome.VECTOR_STACK)
_DEBUGGER = Trap(TrapKind.DEBUGGER, syndrome.VECTOR_DEBUG)
_BY_KIND = {trap.kind: trap for trap in (ILLEGAL, PROTECTION, _STACK)}


def _forged(vector: int) -> Trap:
    """`int vector` by a user, whom its gate does not admit (Intel SDM 3A 7.12.1.2)."""
    return Trap(TrapKind.PROTECTION, syndrome.VECTOR_PROTECTION, vector * 8 + 2)


class X86Traps(UnicornCpu):
    """The part of an x86_64 CPU that turns the engine's exceptions into a CPU's."""

    general: Field
    _state: State
    _address_bits: int
    """Bits of an address that mean something: 48, or 57."""

    def _exception(self, vector: int) -> None:
        """Everything but a page fault and #UD."""
        state = self._state
        if state.is_int[0]:
            if vector in (syndrome.VECTOR_BREAKPOINT, syndrome.VECTOR_OVERFLOW):
                self.on_trap(Trap(_KINDS[vector], vector))
                return
            state.rip[0] = state.rip[0] - 2 & MASK  # a fault, so at the instruction
            self.on_trap(_forged(vector))
            return
        kind = _KINDS.get(vector)
        if kind is None:
            raise EngineError(f"unexpected exception vector {vector:#x} at {state.rip[0]:#x}")
        if vector == syndrome.VECTOR_PROTECTION:
            error = state.error_code[0]
            self.on_trap(Trap(kind, vector, error) if error else self._protection())
        else:
            self.on_trap(Trap(kind, vector))

    def _protection(self) -> Trap:
        """What the engine's #GP without a selector is."""
        instruction, operand = self._decode(self._code_here())
        return _BY_KIND[x86_rare.protection_kind(instruction, operand, self.general, self._address_bits)]

    def _illegal(self) -> None:
        """#UD. The engine raises it for `int 6` too, and for ICEBP, which is a trap (Intel SDM 2A INT n)."""
        if self._state.is_int[0]:
            self.on_trap(_forged(syndrome.VECTOR_INVALID_OPCODE))
            return
        instruction, _operand = self._decode(self._code_here())
        if instruction is not None and instruction.opcode == _ICEBP:
            self.pc = self.pc + instruction.size
            self.on_trap(_DEBUGGER)
        else:
            self.on_trap(ILLEGAL)

    def settle(self, va: int) -> bool:
        code = self._code_here()
        found, operand = self._decode(code)
        if found is None:
            return False
        return self._leaves_the_half(found, operand, va) or (
            operand is not None and self._overread(code, found, operand, va)
        )

    def _leaves_the_half(self, found: Instruction, operand: Operand | None, va: int) -> bool:
        """An access that begins in the last bytes of the lower half and ends outside it is no page fault.

        Linux has no program map the last page there, so that every such access gets here.
        """
        end = 1 << self._address_bits - 1
        if not end - _LONGEST_OPERAND < va < end:
            return False
        if operand is not None and operand.address == va:
            length, stack = x86_operand.length(found), operand.stack
        elif x86_rare.uses_stack(found):
            length, stack = 2 if 0x66 in found.prefixes else 8, True
        else:
            return False
        if va + length <= end:
            return False
        self.on_trap(_STACK if stack else PROTECTION)
        return True

    def _overread(self, code: bytes, found: Instruction, operand: Operand, va: int) -> bool:
        """Do the instruction here if the engine's load is longer than its own, which `va` does not need."""
        done = x86_overread.operation(found)
        if done is None or not done.size <= va - operand.address < x86_overread.LOADED:
            return False
        data = int.from_bytes(self.copy_from_user(operand.address, done.size), "little")
        name = f"xmm{found.modrm >> 3 & 7 | (found.rex & 4) << 1}"
        value = done.result(data, self.read(name), code[found.size - 1], self.read("mxcsr"))
        self.write(name, value)
        self.pc = self.pc + found.size
        return True

    # ---- far returns

    def _far_return(self) -> None:
        """A user's far return, by the user's rights (Intel SDM 2A IRET, RET); what else gets here is a #GP.

        The privilege stays, so RET pops an address and CS, and IRET the flags and the stack as well.
        """
        code = self._code_here()
        found, _operand = self._decode(code)
        if found is None or found.opcode not in (_IRET, _FAR_RETURN, _FAR_RETURN_RELEASE):
            self.on_trap(PROTECTION)
            return
        width = 8 if found.rex & 8 else 2 if 0x66 in found.prefixes else 4
        count = 5 if found.opcode == _IRET else 2
        reads = [Access(self.sp, width * count, write=False, stack=True)]
        if found.opcode == _IRET:  # what the recorded CPUs read first
            reads.insert(0, Access(self.sp + 2 * width & MASK, width, write=False, stack=True))
        if not self._ask(reads):
            return
        raw = self.copy_from_user(self.sp, width * count)
        words = [int.from_bytes(raw[i : i + width], "little") for i in range(0, len(raw), width)]
        stack = words[4] if found.opcode == _IRET else regs.USER_DATA
        selectors = words[1] & 0xFFFF, stack & 0xFFFF
        if selectors != (regs.USER_CODE, regs.USER_DATA):
            wrong = selectors[selectors[0] == regs.USER_CODE]
            self.on_trap(Trap(TrapKind.PROTECTION, syndrome.VECTOR_PROTECTION, wrong & 0xFFFC))
            return
        if not x86_operand.canonical(words[0], self._address_bits):
            self.on_trap(PROTECTION)
            return
        self.pc = words[0]
        if found.opcode == _IRET:
            self.sp = words[3]
            allowed = regs.RFLAGS_USER & (0xFFFF if width == 2 else MASK)
            self.write("rflags", self.read("rflags") & ~allowed | words[2] & allowed)
        else:
            released = code[found.size - 2 : found.size] if found.opcode == _FAR_RETURN_RELEASE else b""
            self.sp = self.sp + width * 2 + int.from_bytes(released, "little")

    # ---- instructions that are asked about before they execute, or done instead

    def _negate(self, code: bytes) -> None:
        """LOCK NEG of memory, with the flags of the result (Intel SDM 2B NEG)."""
        found, operand = self._decode(code)
        assert found is not None and operand is not None, "it was found, in memory"
        width = 1 if found.opcode == _NEG_BYTE else 8 if found.rex & 8 else 2 if 0x66 in found.prefixes else 4
        if not self._ask([Access(operand.address, width, write=True, stack=operand.stack)]):
            return
        old = int.from_bytes(self.copy_from_user(operand.address, width), "little")
        bits = 8 * width
        new = -old & (1 << bits) - 1
        self.copy_to_user(operand.address, new.to_bytes(width, "little"))
        flags = regs.RFLAGS_CF if old else regs.RFLAGS_ZF
        flags |= 0 if (new & 0xFF).bit_count() & 1 else regs.RFLAGS_PF
        flags |= regs.RFLAGS_AF if old & 15 else 0
        flags |= regs.RFLAGS_SF if new >> bits - 1 else 0
        flags |= regs.RFLAGS_OF if old == 1 << bits - 1 else 0
        self.write("rflags", self.read("rflags") & ~regs.RFLAGS_ARITHMETIC | flags)
        self.pc = self.pc + found.size

    def _move_flags(self, code: bytes) -> None:
        """LAHF or SAHF (Intel SDM 2A, 2B): the lower half of the arithmetic flags, and AH."""
        found, _operand = self._decode(code)
        assert found is not None, "it was found"
        moved = regs.RFLAGS_ARITHMETIC & 0xFF
        flags, rax = self.read("rflags"), self.general[0]
        if found.opcode == _LAHF:
            self.general[0] = rax & ~0xFF00 | (flags & moved | regs.RFLAGS_FIXED) << 8
        else:
            self.write("rflags", flags & ~moved | rax >> 8 & moved)
        self.pc = self.pc + found.size

    def _touch(self, code: bytes) -> bool:
        """Ask for all that the instruction at pc, whose bytes are `code`, touches. Whether it may execute."""
        instruction, operand = self._decode(code)
        assert instruction is not None, "it was found"
        return self._ask(x86_rare.accesses(code, instruction, operand, self.general))

    def _touches_what_is_there(self) -> bool:
        """In front of the instruction at pc: whether it is only asked about, and may have all it touches.

        The engine need not stop then: the dynamic loader saves all registers at each function's first call.
        """
        if engine.vmem_read(self._handle, self.pc, PROT_EXECUTE, self._buffer_address, _LONGEST):
            self._forget_probe()
            return False
        code = bytes(self._buffer_view[:_LONGEST])
        found = x86_blocks.first_special(code)
        if found is None or found.offset or found.special is not x86_blocks.Special.TOUCH:
            return False
        instruction, operand = self._decode(code)
        assert instruction is not None, "it was found"
        return all(
            x86_operand.canonical(va, self._address_bits) and self._error_of(va, write=access.write) is None
            for access in x86_rare.accesses(code, instruction, operand, self.general)
            for va in access.parts
        )

    def _ask(self, accesses: Iterable[Access]) -> bool:
        """Whether all of this can be accessed; else the kernel was told what cannot."""
        for access in accesses:
            for va in access.parts:
                if not x86_operand.canonical(va, self._address_bits):
                    self.on_trap(_STACK if access.stack else PROTECTION)
                    return False
                error = self._error_of(va, write=access.write)
                if error is not None:
                    self.on_fault(va, syndrome.ACCESS_OF_ERROR[error & 63])
                    return False
        return True

    def _error_of(self, va: int, *, write: bool) -> int | None:
        """The error code of the page fault that an access would make; None if it would make none."""
        spare = ctypes.c_uint64()
        kind = PROT_WRITE if write else PROT_READ
        if not engine.vmem_translate(self._handle, va, kind, ctypes.addressof(spare)):
            return None
        error = self._state.error_code[0]
        self._forget_probe()
        return error

    # ---- the instruction at pc

    def _code_here(self) -> bytes:
        """The bytes at pc that can be fetched: the longest instruction, less near the end of a page."""
        for size in range(_LONGEST, 0, -1):
            if not engine.vmem_read(self._handle, self.pc, PROT_EXECUTE, self._buffer_address, size):
                return bytes(self._buffer_view[:size])
            self._forget_probe()
        return b""

    def _decode(self, code: bytes) -> tuple[Instruction | None, Operand | None]:
        """The instruction at pc, whose bytes are `code`, and its memory operand."""
        instruction = x86_blocks.first_instruction(code)
        if instruction is None:
            return None, None
        return instruction, x86_operand.operand(code, instruction, self.pc, self.general, self.read)
