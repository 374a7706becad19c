"""An ARM64 CPU with a few hand-made pages and no kernel: events are written down and end the run.

The tables are made here, from the manual, and not by the format that the project encodes with. Levels count
from the leaf up, as everywhere in the project: level 1 is Arm's L3.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable

from aether_emu.machine.cpu import Exit, Trap
from aether_emu.machine.unicorn.arm64 import ArmCpu
from tests.machine.unicorn.flat_guest import keystone

PAGES = 256
CODE, CODE2, DATA, STACK, TOP = 0x40_0000, 0x40_1000, 0x60_0000, 0x70_0000, 0x70_1000
TEXT = 0xFFFF_FFFF_8000_0000
# Stage-1 descriptors (Arm ARM D8.3.1 and D8.3.2)
VALID, TABLE, USER, READ_ONLY, ACCESSED, NOT_GLOBAL = (1 << bit for bit in (0, 1, 6, 7, 10, 11))
INNER_SHAREABLE, CONTIGUOUS, PXN, UXN = 3 << 8, 1 << 52, 1 << 53, 1 << 54
PXN_TABLE, UXN_TABLE, USER_TABLE, READ_ONLY_TABLE = (1 << bit for bit in (59, 60, 61, 62))
ADDRESS = 0x0000_FFFF_FFFF_F000
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
    """The CPU, its physical memory at 0, and what happened. One root serves both halves.

    The default granule is what CODE2 and TOP are made for; others have `next_code` and `top`.
    """

    def __init__(
        self,
        live_state: bool = True,
        *,
        time_stamp: Callable[[], int] = lambda: 0x1234_5678,
        random: Callable[[], int] = lambda: 0,
        granule: int = 4096,
        virtual_bits: int = 48,
    ) -> None:
        self.granule, self.virtual_bits = granule, virtual_bits
        width = granule.bit_length() - 4  # 8-byte entries fill a page
        # The lowest address bit of each level's index, level 1 first.
        self.shifts = list(range(width + 3, virtual_bits, width))
        self.masks = [(1 << min(width, virtual_bits - at)) - 1 for at in self.shifts]
        self.next_code, self.top = CODE + granule, STACK + granule
        self.memory = mmap.mmap(-1, PAGES * granule)
        self.words = memoryview(self.memory).cast("Q")
        self.faults: list[tuple[int, int, int]] = []  # va, access, pc
        self.syndromes: list[int] = []  # of the faults
        self.addresses: list[int] = []  # likewise, with their tags
        self.traps: list[tuple[Trap, int]] = []
        self.calls: list[tuple[int, int]] = []  # number, pc
        self._free = granule
        self.root = self.frame()
        host = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.cpu = ArmCpu(
            [(0, host, PAGES * granule)],
            time_stamp=time_stamp,
            frequency=62_500_000,
            random=random,
            granule=granule,
            virtual_bits=virtual_bits,
            live_state=live_state,
        )
        self.fill(self.map(TEXT, KERNEL_TEXT_LEAF), ArmCpu.text_page())
        self.slot(CODE)
        self.code = self.map(CODE, READ_EXECUTE_LEAF)
        self.map(self.next_code, READ_EXECUTE_LEAF)
        self.data = self.map(DATA, READ_WRITE_LEAF)
        self.map(STACK, READ_WRITE_LEAF)
        self.cpu.boot(self.root, TEXT, 0)
        self.cpu.set_root(self.root)
        self.cpu.on_fault, self.cpu.on_trap = self._fault, self._trap
        self.cpu.on_system_call = self._call
        self.cpu.sp = self.top

    def frame(self) -> int:
        """The physical address of a fresh page."""
        self._free += self.granule
        return self._free - self.granule

    def slot(self, va: int, level: int = 1) -> int:
        """Index in `words` of the entry of `va` at `level`; tables are made on the way."""
        table = self.root
        for shift, mask in list(zip(self.shifts, self.masks, strict=True))[: level - 1 : -1]:
            index = (table >> 3) + (va >> shift & mask)
            if not self.words[index]:
                self.words[index] = self.frame() | TABLE | VALID
            table = self.words[index] & ADDRESS & -self.granule
        return (table >> 3) + (va >> self.shifts[level - 1] & self.masks[level - 1])

    def map(self, va: int, bits: int, pa: int | None = None, *, level: int = 1) -> int:
        """Map a page, by default a fresh one, or a block at a higher level. Returns its physical address."""
        pa = self.frame() if pa is None else pa
        self.words[self.slot(va, level)] = pa | (bits if level == 1 else bits & ~TABLE)
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
        self.syndromes.append(self.cpu.syndrome)
        self.addresses.append(self.cpu.fault_address)
        self.cpu.stop()

    def _trap(self, trap: Trap) -> None:
        self.traps.append((trap, self.cpu.pc))
        self.cpu.stop()

    def _call(self, number: int, *_arguments: int) -> None:
        self.calls.append((number, self.cpu.pc))
        self.cpu.stop()
