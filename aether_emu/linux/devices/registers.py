"""Registers in a page: what a program's loads and stores do there, for every device of this kind.

A register is 4 bytes, and accesses of 4 bytes reach it. An access of 8 is one to each half, the lower first,
as a bus of 32 bits makes it; a narrower one reads all ones, or is lost. (No device could tell a misaligned
one from others: the engine makes aligned ones of it.) A register of 64 bits is two: to read the low half
keeps the high half of that moment until it is read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

WIDTH = 4
_WORD = 0xFFFF_FFFF


class RegisterPage(ABC):
    """The registers of one device. `accesses` counts its loads and stores, `lost` those of another width."""

    def __init__(self) -> None:
        self.accesses = self.lost = 0
        self._high = 0

    def load(self, offset: int, width: int) -> int:
        """What a load of `width` bytes finds."""
        self.accesses += 1
        if width != WIDTH:
            self.lost += 1
            return (1 << 8 * width) - 1
        return self.read(offset) & _WORD

    def store(self, offset: int, width: int, value: int) -> None:
        """What a store of `width` bytes does."""
        self.accesses += 1
        if width != WIDTH:
            self.lost += 1
        else:
            self.write(offset, value & _WORD)

    def low(self, value: int) -> int:
        """The low half of 64 bits, whose high half `high` gives."""
        self._high = value >> 32
        return value & _WORD

    def high(self) -> int:
        """That which was kept."""
        return self._high

    @abstractmethod
    def read(self, offset: int) -> int:
        """The register at a multiple of 4; 0 where there is none."""

    @abstractmethod
    def write(self, offset: int, value: int) -> None:
        """The same for a store; nothing where there is none, or one that is only read."""

    @abstractmethod
    def figures(self) -> dict[str, int]:
        """What it did, for statistics."""

    def capture_page(self) -> tuple[int, int, int]:
        """What all of them know."""
        return self.accesses, self.lost, self._high

    def restore_page(self, state: tuple[int, int, int]) -> None:
        """Know that."""
        self.accesses, self.lost, self._high = state


class Bank:
    """Pages of registers that lie in a row: `machine.cpu.Registers` for all of them."""

    def __init__(self, pages: Sequence[RegisterPage], page_size: int) -> None:
        self._pages, self._size = pages, page_size

    def load(self, offset: int, width: int) -> int:
        """See `machine.cpu.Registers`."""
        page, rest = divmod(offset, self._size)
        return self._pages[page].load(rest, width)

    def store(self, offset: int, width: int, value: int) -> None:
        """Likewise."""
        page, rest = divmod(offset, self._size)
        self._pages[page].store(rest, width, value)
