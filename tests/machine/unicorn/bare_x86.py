"""An x86_64 CPU with a few hand-made pages and no kernel: events are written down and end the run."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable

from aether_emu.arch.x86_64.stage1 import NX, P, U, W
from aether_emu.machine.cpu import Exit, Trap
from aether_emu.machine.unicorn.x86_64 import X86Cpu
from tests.machine.unicorn.flat_guest import assemble

MEMORY = 1 << 20
CODE, CODE2, DATA, STACK, TOP = 0x40_0000, 0x40_1000, 0x60_0000, 0x70_0000, 0x70_1000
TEXT, TABLES = 0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_8000_1000
READ_EXECUTE, READ_ONLY, READ_WRITE, ANY = P | U, P | U | NX, P | U | W | NX, P | U | W


class BareX86:
    """The CPU, its physical memory at 0, and what happened."""

    def __init__(
        self,
        live_state: bool = True,
        *,
        time_stamp: Callable[[], int] = lambda: 0x1122_3344_5566_7788,
        random: Callable[[], int] = lambda: 0xFEDC_BA98_7654_3210,
        memory: mmap.mmap | None = None,
    ) -> None:
        self.memory = memory if memory is not None else mmap.mmap(-1, MEMORY)
        self.words = memoryview(self.memory).cast("Q")
        self.faults: list[tuple[int, int, int]] = []  # va, access, pc
        self.traps: list[tuple[Trap, int]] = []
        self.calls: list[tuple[int, int]] = []  # number, pc
        self._free = 0x1000 if memory is None else MEMORY // 2
        self.root = self.frame()
        host = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.cpu = X86Cpu([(0, host, MEMORY)], time_stamp=time_stamp, random=random, live_state=live_state)
        self.fill(self.map(TEXT, P), X86Cpu.text_page())
        self.fill(self.map(TABLES, P | W | NX), X86Cpu.data_page(TABLES))
        self.slot(CODE)  # makes the tables, so that the two pages of code lie together
        self.code = self.map(CODE, READ_EXECUTE)
        self.map(CODE2, READ_EXECUTE)
        self.data = self.map(DATA, READ_WRITE)
        self.map(STACK, READ_WRITE)
        self.cpu.boot(self.root, TEXT, TABLES)
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
                self.words[index] = self.frame() | P | W | U
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

    def run(self, source: str | bytes, *, at: int = CODE, budget: int | None = None) -> Exit:
        """Put code at `at` in the code page, forget old translations, and run it."""
        self.fill(self.code + at - CODE, source if isinstance(source, bytes) else assemble(source, at))
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
