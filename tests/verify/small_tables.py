"""Tables written by hand, two CPUs that walk them, and a TLBSan that is told of each event."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aether_emu.machine.memory.ram import Ram
from aether_emu.verify.tlbsan import Sanitizer
from aether_emu.verify.tlbsan.rules import Rules

BASE, PAGE, LARGE = 1 << 30, 4096, 2 << 20
FRAMES = 2048  # 0 to 3 are tables, the root first


class Tables:
    """Four levels of tables that map eight pages from 0 on, the frames from 16 on; CPUs 0 and 1 walk them."""

    def __init__(self, isa: str) -> None:
        self.isa = isa
        self.ram = Ram(BASE, FRAMES * PAGE, PAGE)
        rules = Rules("x86_64-4level" if isa == "x86_64" else "arm64-4K")
        self.sanitizer = Sanitizer(rules, self.ram, FRAMES, 2)
        for level in (4, 3, 2):
            self.put(4 - level, 0, self.table(5 - level))
        for number in range(8):
            self.put(3, number, self.leaf(16 + number))
        for cpu in (0, 1):
            self.sanitizer.set_root(cpu, BASE, lambda: None)
        self.root = self.sanitizer.roots[BASE]

    def table(self, frame: int, *, writable: bool = True) -> int:
        if self.isa == "x86_64":
            return BASE + frame * PAGE | (7 if writable else 5)
        return BASE + frame * PAGE | 3 | (0 if writable else 1 << 62)  # APTable

    def leaf(self, frame: int, *, writable: bool = True, level: int = 1) -> int:
        if self.isa == "x86_64":
            bits = 0x65 | 2 * writable | (1 << 7) * (level > 1)
        else:
            bits = 1 | 2 * (level == 1) | 1 << 6 | (1 << 7) * (not writable) | 1 << 10 | 3 << 8 | 3 << 53
        return BASE + frame * PAGE | bits

    def put(self, table: int, number: int, entry: int) -> None:
        """Without a word to the sanitizer."""
        self.ram.words[table * 512 + number] = entry

    @contextmanager
    def edit(self, cpu: int = 0) -> Iterator[None]:
        """A CPU edits entries, and says so."""
        self.sanitizer.works(cpu)
        self.sanitizer.hint(self.root, 0, 8 * PAGE)
        self.sanitizer.hint_upper(self.root)
        yield
