"""Where the engine keeps the x86_64 CPU state that its API does not show, found by behaviour.

Two things about an x86 fault have no register id: the error code and `old_exception`, which the
engine forgets to clear (the second page fault would arrive as a double fault, the third would end
the run silently). Both sit in the CPU state, whose copy a saved context holds. No offset is
compiled in: a scratch CPU runs known faults, and a field is the one place whose value did what
the field must do. `locate` then finds the live state of another CPU in this process, so that a
field costs a memoryview read. Where that search fails, the context copy serves (slower).
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from functools import lru_cache
from typing import Any

from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_HOOK_INTR, UC_MODE_64, UC_PROT_ALL, x86_const

from aether_emu.arch.x86_64 import registers as regs
from aether_emu.arch.x86_64.stage1 import NX, P, U, W
from aether_emu.errors import EngineError
from aether_emu.interruption import Undisturbed
from aether_emu.machine import native
from aether_emu.machine.unicorn import engine
from aether_emu.machine.unicorn.locate import SENTINELS, locate, only, places, still
from aether_emu.records import dataclass

MODEL = x86_const.UC_CPU_X86_EPYC_ROME

GENERAL = (
    x86_const.UC_X86_REG_RAX,
    x86_const.UC_X86_REG_RCX,
    x86_const.UC_X86_REG_RDX,
    x86_const.UC_X86_REG_RBX,
    x86_const.UC_X86_REG_RSP,
    x86_const.UC_X86_REG_RBP,
    x86_const.UC_X86_REG_RSI,
    x86_const.UC_X86_REG_RDI,
    *(x86_const.UC_X86_REG_R8 + i for i in range(8)),
)


@dataclass(frozen=True, slots=True)
class Layout:
    """Byte offsets of state fields from the first general register; `context` is that one's own
    offset inside a saved context. `shadow` is the bit of hflags that says: behind a load of SS, where
    no interrupt may come. The engine makes the next instruction a block of its own, and clears it."""

    context: int
    rip: int
    hflags: int
    cr2: int
    error_code: int
    is_int: int
    old_exception: int
    pkru: int
    shadow: int


class _Scratch:
    """A tiny machine with one user page of code that can be made to fault on demand."""

    CODE, STUBS, READ_ONLY, STACK = 0x10_1000, 0x10_2000, 0x10_3000, 0x10_4000

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 0x10000)
        self.uc = engine.open_engine(UC_ARCH_X86, UC_MODE_64, MODEL)
        self.handle = engine.handle_of(self.uc)
        host = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.uc.mem_map_ptr(0, 0x10000, UC_PROT_ALL, host)
        words = memoryview(self.memory).cast("Q")
        words[0x1000 // 8] = 0x2000 | P | W | U
        words[0x2000 // 8] = 0x3000 | P | W | U
        words[0x3000 // 8] = 0x4000 | P | W | U
        for va, bits in (
            (self.CODE, P | U),
            (self.STUBS, P | W),
            (self.READ_ONLY, P | U | NX),
            (self.STACK, P | W | NX),
        ):
            words[(0x4000 + (va >> 12 & 511) * 8) // 8] = (va & 0xF000) + 0x8000 | bits
        words.release()
        enable_paging(self.uc, 0x1000)
        gdt = struct.pack("<8Q", *regs.GDT)
        self.memory[0xA100 : 0xA100 + len(gdt)] = gdt
        self.uc.reg_write(x86_const.UC_X86_REG_GDTR, (0, self.STUBS + 0x100, len(gdt) - 1, 0))
        self.memory[0xA000:0xA002] = bytes.fromhex("48cf")  # iretq
        self.context = self.uc.context_save()
        self.address = native.address_of(self.context.context)
        self.vectors: list[int] = []
        self._hook = engine.INTERRUPT(self._on_interrupt)
        engine.hook_add(self.handle, UC_HOOK_INTR, self._hook)
        self._ignore = engine.INSTRUCTION(lambda _uc, _data: None)
        engine.hook_add(self.handle, UC_HOOK_INSN, self._ignore, x86_const.UC_X86_INS_SYSCALL)

    def _on_interrupt(self, _uc: int, vector: int, _data: int) -> None:
        self.vectors.append(vector)
        engine.emu_stop(self.handle)

    def dump(self) -> bytes:
        """The CPU state as a saved context holds it."""
        engine.context_save(self.handle, self.context.context)
        return ctypes.string_at(self.address, self.context.size)

    def patch(self, offset: int, value: bytes) -> None:
        """Write `value` into the CPU state at a context offset."""
        engine.context_save(self.handle, self.context.context)
        ctypes.memmove(self.address + offset, value, len(value))
        engine.context_restore(self.handle, self.context.context)

    def enter_user(self) -> None:
        """Reach CPL 3 by `iretq`; its target is absent, so the first fetch faults."""
        frame = struct.pack("<5Q", 0x666000, regs.USER_CODE, 2, self.STACK + 0xF00, regs.USER_DATA)
        self.memory[0xCF00 : 0xCF00 + 40] = frame
        self.uc.reg_write(x86_const.UC_X86_REG_RSP, self.STACK + 0xF00)
        self.start(self.STUBS)

    def start(self, pc: int) -> int:
        """Run from `pc` to the first exception; its vector."""
        self.vectors.clear()
        with Undisturbed():
            engine.emu_start(self.handle, pc, 0, 0, 0)
        return self.vectors[0] if self.vectors else -1

    def code(self, offset: int, code: bytes) -> int:
        self.memory[0x9000 + offset : 0x9000 + offset + len(code)] = code
        return self.CODE + offset


def enable_paging(uc: Any, root: int, levels: int = 4) -> None:
    """Bring a fresh 64-bit engine up with our control registers (by reg_write, in any order)."""
    five = regs.CR4_LA57 if levels == 5 else 0
    uc.reg_write(x86_const.UC_X86_REG_CR4, regs.CR4_KERNEL | five)
    uc.reg_write(x86_const.UC_X86_REG_MSR, (regs.EFER, regs.EFER_KERNEL))
    uc.reg_write(x86_const.UC_X86_REG_MSR, (regs.MSR_PAT, regs.PAT_VALUE))
    uc.reg_write(x86_const.UC_X86_REG_CR3, root)
    uc.reg_write(x86_const.UC_X86_REG_FPCW, regs.FPU_CONTROL)
    uc.reg_write(x86_const.UC_X86_REG_FPTAG, regs.FPU_TAGS)
    uc.reg_write(x86_const.UC_X86_REG_MXCSR, regs.MXCSR)
    uc.reg_write(x86_const.UC_X86_REG_CR0, regs.CR0_KERNEL)
    # `until` would be translated after each run and leave a page fault pending.
    uc.ctl_exits_enabled(True)
    uc.ctl_set_exits([])


@lru_cache(maxsize=1)
def measure() -> Layout:
    """Find every field on a scratch CPU. Raises EngineError when one cannot be told apart.

    Cached: the layout belongs to the loaded library, not to one CPU.
    """
    scratch = _Scratch()
    saved = scratch.uc.context_save()
    for register, value in zip(GENERAL, SENTINELS, strict=True):
        scratch.uc.reg_write(register, value)
    base = scratch.dump().find(struct.pack("<16Q", *SENTINELS))
    scratch.uc.context_restore(saved)
    if base < 0:
        raise EngineError("calibration: no general registers in a saved context")
    ring0 = scratch.dump()
    quiet = places(ring0, "i", lambda value: value == -1)
    scratch.enter_user()
    ring3 = scratch.dump()
    old = _old_exception(scratch, quiet & places(ring3, "i", lambda value: value == 14))
    hflags = only(
        "hflags",
        {
            place
            for place in places(ring3, "I", lambda value: value & 3 == 3)
            if (word := struct.unpack_from("<I", ring0, place)[0]) & 3 == 0
            and word | 3 == struct.unpack_from("<I", ring3, place)[0]
            and word >> 4  # hflags says more than the privilege
        },
    )
    rip, cr2, error, is_int = _fault_fields(scratch, old)
    pkru = _pkru(scratch, old)
    shadow = _shadow(scratch, old, hflags)
    return Layout(
        context=base,
        rip=rip - base,
        hflags=hflags - base,
        cr2=cr2 - base,
        error_code=error - base,
        is_int=is_int - base,
        old_exception=old - base,
        pkru=pkru - base,
        shadow=shadow,
    )


def _old_exception(scratch: _Scratch, candidates: set[int]) -> int:
    """The field that, set to -1, lets a second page fault arrive as a page fault."""
    pc = scratch.code(0, bytes.fromhex("488b07"))  # mov rax, [rdi]
    good = set()
    for place in sorted(candidates):
        scratch.patch(place, struct.pack("<i", -1))
        first = scratch.start(pc)
        second = scratch.start(pc)
        scratch.patch(place, struct.pack("<i", -1))
        third = scratch.start(pc)
        if (first, second, third) == (14, 8, 14):
            good.add(place)
        else:
            scratch.patch(place, struct.pack("<i", -1))
    return only("old_exception", good)


def _pkru(scratch: _Scratch, old: int) -> int:
    """The field that WRPKRU writes."""
    scratch.uc.reg_write(
        x86_const.UC_X86_REG_CR4, scratch.uc.reg_read(x86_const.UC_X86_REG_CR4) | regs.CR4_PKE
    )
    found = None
    for offset, value in ((0x200, 0x1234_5678), (0x220, 0x0BAD_CAFC), (0x240, 0)):
        scratch.patch(old, struct.pack("<i", -1))
        scratch.uc.reg_write(x86_const.UC_X86_REG_RAX, value)
        # xor ecx, ecx; xor edx, edx; wrpkru; mov eax, 1; int 0x20
        scratch.start(scratch.code(offset, bytes.fromhex("31c931d20f01efb801000000cd20")))
        found = still(found, scratch.dump(), "I", value)
    return only("pkru", found or set())


def _shadow(scratch: _Scratch, old: int, hflags: int) -> int:
    """The bit of hflags that is set between a load of SS and the end of the instruction behind it."""
    words = []
    for offset, code in (
        (0x1C0, "90488b07"),
        (0x1E0, "8ed0488b07"),
    ):  # nop or mov ss, eax; a faulting load
        scratch.patch(old, struct.pack("<i", -1))
        scratch.uc.reg_write(x86_const.UC_X86_REG_RAX, regs.USER_DATA)
        scratch.start(scratch.code(offset, bytes.fromhex(code)))
        words.append(int.from_bytes(scratch.dump()[hflags : hflags + 4], "little"))
    return only("the interrupt shadow", {words[0] ^ words[1]} - {0})


def _fault_fields(scratch: _Scratch, old: int) -> tuple[int, int, int, int]:
    """Places of rip, cr2, error code and is_int, from a series of different exceptions."""
    # loads and stores at rdi+16, so that CR2 is not also a register; after nops, so that rip moves
    load, store = bytes.fromhex("90488b4710"), bytes.fromhex("909048894710")
    soft = bytes.fromhex("cd20")  # int 0x20
    cases = (
        # code offset, code, rdi, rip at the exception, error code (None: not a page fault)
        (0x140, soft, 0, 0x142, None),
        (0x100, load, 0x0123_4000, 0x101, 0x04),
        (0x120, store, 0x0234_5678, 0x122, 0x06),
        (0x160, store, scratch.READ_ONLY + 0x10, 0x162, 0x07),
        (0x180, load, scratch.STUBS + 8, 0x181, 0x05),
        (0x1A0, soft, 0, 0x1A2, None),
    )
    rips = cr2s = errors = ints = None
    for offset, code, rdi, rip, error in cases:
        pc = scratch.code(offset, code)
        scratch.patch(old, struct.pack("<i", -1))
        scratch.uc.reg_write(x86_const.UC_X86_REG_RDI, rdi)
        scratch.start(pc)
        dump = scratch.dump()
        rips = still(rips, dump, "Q", scratch.CODE + rip)
        ints = still(ints, dump, "i", int(error is None))
        if error is not None:
            cr2s = still(cr2s, dump, "Q", rdi + 16)
            errors = still(errors, dump, "i", error)
    return (
        only("rip", rips or set()),
        only("cr2", cr2s or set()),
        only("the error code", errors or set()),
        only("is_int", ints or set()),
    )


def find_state(uc: Any) -> int | None:
    """Host address of rax in the live CPU state of `uc`, or None."""
    return locate(uc, GENERAL)
