"""An ARM64 CPU with a few hand-made pages and no kernel: events are written down and end the run."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable

from aether_emu.arch.arm64.format import (
    ACCESSED,
    INNER_SHAREABLE,
    NOT_GLOBAL,
    PXN,
    READ_ONLY,
    TABLE,
    USER,
    UXN,
    VALID,
)
from aether_emu.machine.cpu import Exit, Trap
from aether_emu.machine.unicorn_arm64 import ArmCpu
from tests.machine.flat_guest import keystone

MEMORY = 1 << 20
CODE, CODE2, DATA, STACK, TOP = 0x40_0000, 0x40_1000, 0x60_0000, 0x70_0000, 0x70_1000
TEXT = 0xFFFF_FFFF_8000_0000
_PAGE = VALID | TABLE | ACCESSED | INNER_SHAREABLE
READ_EXECUTE_LEAF = _PAGE | USER | READ_ONLY | NOT_GLOBAL | PXN
READ_WRITE_LEAF = _PAGE | USER | NOT_GLOBAL | PXN | UXN
READ_ONLY_LEAF = READ_WRITE_LEAF | READ_ONLY
ANY_LEAF = _PAGE | USER | NOT_GLOBAL | PXN
KERNEL_TEXT_LEAF, KERNEL_DATA_LEAF = _PAGE | READ_ONLY | UXN, _PAGE | PXN | UXN


def assemble(source: str, address: int = 0) -> bytes:
    """ARM64 machine code."""
    engine = keystone.Ks(keystone.KS_ARCH_ARM64, keystone.KS_MODE_LITTLE_ENDIAN)
    return bytes(engine.asm(source, address)[0])


class BareArm64:
    """The CPU, its physical memory at 0, and what happened. One root serves both halves."""

    def __init__(
        self, live_state: bool = True, *, time_stamp: Callable[[], int] = lambda: 0x1234_5678
    ) -> None:
        self.memory = mmap.mmap(-1, MEMORY)
        self.words = memoryview(self.memory).cast("Q")
        self.faults: list[tuple[int, int, int]] = []  # va, access, pc
        self.traps: list[tuple[Trap, int]] = []
        self.calls: list[tuple[int, int]] = []  # number, pc
        self._free = 0x1000
        self.root = self.frame()
        host = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.cpu = ArmCpu(
            [(0, host, MEMORY)], time_stamp=time_stamp, frequency=62_500_000, live_state=live_state
        )
        self.fill(self.map(TEXT, KERNEL_TEXT_LEAF), ArmCpu.text_page())
        self.slot(CODE)
        self.code = self.map(CODE, READ_EXECUTE_LEAF)
        self.map(CODE2, READ_EXECUTE_LEAF)
        self.data = self.map(DATA, READ_WRITE_LEAF)
        self.map(STACK, READ_WRITE_LEAF)
        self.cpu.boot(self.root, TEXT, 0)
        self.cpu.set_root(self.root)
        self.cpu.on_fault, self.cpu.on_trap = self._fault, self._trap
        self.cpu.on_system_call = self._call
        self.cpu.sp = TOP

    def frame(self) -> int:
        """The physical address of a fresh page."""
        self._free += 0x1000
        return self._free - 0x1000

    def slot(self, va: int) -> int:
        """Index in `words` of the leaf entry of `va`; tables are made on the way."""
        table = self.root
        for shift in (39, 30, 21):
            index = (table >> 3) + (va >> shift & 511)
            if not self.words[index]:
                self.words[index] = self.frame() | TABLE | VALID
            table = self.words[index] & ~0xFFF
        return (table >> 3) + (va >> 12 & 511)

    def map(self, va: int, bits: int, pa: int | None = None) -> int:
        """Map a page, by default a fresh one. Returns its physical address."""
        pa = self.frame() if pa is None else pa
        self.words[self.slot(va)] = pa | bits
        return pa

    def fill(self, pa: int, content: bytes) -> None:
        """Write physical memory as the host does."""
        self.memory[pa : pa + len(content)] = content

    def run(self, source: str, *, at: int = CODE, budget: int | None = None) -> Exit:
        """Put code at `at` in the code page, forget old translations, and run it."""
        self.fill(self.code + at - CODE, assemble(source, at))
        self.cpu.flush_code()
        return self.go(at, budget=budget)

    def go(self, pc: int = CODE, *, budget: int | None = None) -> Exit:
        """Run from `pc` with what is there."""
        self.cpu.pc = pc
        return self.cpu.run(budget)

    def __getitem__(self, register: str) -> int:
        return self.cpu.read(register)

    def __setitem__(self, register: str, value: int) -> None:
        self.cpu.write(register, value)

    def _fault(self, va: int, access: int) -> None:
        self.faults.append((va, access, self.cpu.pc))
        self.cpu.stop()

    def _trap(self, trap: Trap) -> None:
        self.traps.append((trap, self.cpu.pc))
        self.cpu.stop()

    def _call(self, number: int, *_arguments: int) -> None:
        self.calls.append((number, self.cpu.pc))
        self.cpu.stop()
