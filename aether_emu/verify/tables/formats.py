"""Page-table formats as a reader of other people's tables needs them: what an entry is, grants and leads to.

A format here says the same about one entry as the specification's walker (`verify.spec`) on its way to
an address, but for all entries of a level at once. Levels count from the page's own, 1, up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

import numpy as np

from aether_emu.errors import ConfigError
from aether_emu.verify.tables.notes import Registers

Words = np.ndarray[Any, np.dtype[np.uint64]]
Bits = np.ndarray[Any, np.dtype[np.bool_]]
Numbers = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.uint16]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]

ONES = (1 << 64) - 1
_ENCRYPTED = 1 << 6  # in a memory type: the encryption bit is set


class Kind(IntEnum):
    """What a present entry is."""

    TABLE = 0
    LEAF = 1
    RESERVED = 2  # it has a reserved bit set, or is an encoding that is reserved
    BEYOND = 3  # its address needs more bits than physical addresses have


class Right(IntFlag):
    """What a leaf grants after all levels above it, and what it says about itself."""

    USER_READ = 1
    USER_WRITE = 2
    USER_EXECUTE = 4
    READ = 8  # by the supervisor
    WRITE = 16
    EXECUTE = 32
    GLOBAL = 64
    ACCESSED = 128
    DIRTY = 256
    CONTIGUOUS = 512


USER = Right.USER_READ | Right.USER_WRITE | Right.USER_EXECUTE
ALLOWED = USER | Right.READ | Right.WRITE | Right.EXECUTE


@dataclass(frozen=True, slots=True)
class Half:
    """The addresses that one root translates, from `base` on."""

    name: str  # of the register that holds the root
    base: int


@dataclass(frozen=True, slots=True)
class Walked:
    """One address, walked by the specification."""

    mapped: bool
    fault: str
    physical: int
    size: int
    rights: Right
    memory: int


class Format(ABC):
    """One format with what is known of the registers that govern it."""

    isa: str
    halves: tuple[Half, ...]
    level_names: tuple[str, ...]  # level 1 first
    contiguous: tuple[int, ...]  # entries of a contiguous run by level; 1 where there are none
    address_bits: int  # of an entry, whatever the CPU has of them

    def __init__(self, name: str, shifts: tuple[int, ...], top_width: int, registers: Registers) -> None:
        """ConfigError where the registers' encryption bit is none that an address of the format can have."""
        self.name, self.shifts, self.registers = name, shifts, registers
        self.widths = (shifts[0] - 3,) * (len(shifts) - 1) + (top_width,)
        bit = registers.encryption_bit
        if bit is not None and not 32 <= bit < self.address_bits:
            raise ConfigError("encryption-bit", bit, f"32 to {self.address_bits - 1} for {name}")
        self.encryption = 0 if bit is None else 1 << bit

    @property
    def levels(self) -> int:
        return len(self.shifts)

    @property
    def page(self) -> int:
        """Bytes of the smallest page."""
        return 1 << self.shifts[0]

    def table_size(self, level: int) -> int:
        """Bytes of a table of that level: the root may be smaller than a page."""
        return 8 << self.widths[level - 1]

    def is_upper(self, addresses: Words) -> Bits:
        """Whether addresses are in the half that kernels use."""
        return np.asarray(addresses >> np.uint64(63) != 0)

    @abstractmethod
    def root(self, register: int) -> int:
        """The table's physical address in CR3 or TTBRn."""

    @abstractmethod
    def kinds(self, entries: Words, level: int) -> tuple[Bytes, Words]:
        """The `Kind` of each present entry, and the bits that make it RESERVED or BEYOND."""

    @abstractmethod
    def addresses(self, entries: Words) -> Words:
        """The address in entries, from the smallest page's bit up, the encryption bit included."""

    def next_tables(self, entries: Words) -> Words:
        """Where table entries lead."""
        return self.addresses(entries) & np.uint64(ONES & ~self.encryption)

    def frames(self, entries: Words, level: int) -> Words:
        """Where leaves lead."""
        return self.next_tables(entries) & np.uint64(ONES & -(1 << self.shifts[level - 1]))

    @abstractmethod
    def narrowed(self, locks: Bytes, entries: Words) -> Bytes:
        """`locks` (what the levels above forbid; 0 at the root), and what these table entries forbid."""

    @abstractmethod
    def rights(self, locks: Bytes, leaves: Words) -> Flags:
        """The `Right`s of leaves under what the levels above forbid."""

    def memory(self, leaves: Words, level: int) -> Bytes:
        """The kind of memory that leaves choose: its type, and whether the encryption bit is set."""
        types = self.types(leaves, level)
        return types | self.encrypted(leaves).astype(np.uint8) * np.uint8(_ENCRYPTED)

    def marked(self, memory: int, entries: Words) -> int:
        """A type of memory as `memory` has it, for one leaf."""
        return memory | (_ENCRYPTED if self.encrypted(entries)[0] else 0)

    def encrypted(self, entries: Words) -> Bits:
        """Whether the encryption bit is set in entries; nowhere if there is none."""
        return np.asarray(self.addresses(entries) & np.uint64(self.encryption) != 0)

    def memory_name(self, memory: int) -> str:
        """A kind of memory for people; a type by its index where the register is not known."""
        name = self.type_name(memory & ~_ENCRYPTED)
        return f"{name} bit{self.registers.encryption_bit}" if memory & _ENCRYPTED else name

    def is_cached(self, memory: int) -> bool | None:
        """Whether such memory is cached, as RAM is; None where the register is not known."""
        return self.is_type_cached(memory & ~_ENCRYPTED)

    @abstractmethod
    def types(self, leaves: Words, level: int) -> Bytes:
        """The index into IA32_PAT or MAIR_EL1, shareability above it, that leaves choose."""

    @abstractmethod
    def type_name(self, memory: int) -> str:
        """What `types` gives, for people."""

    @abstractmethod
    def is_type_cached(self, memory: int) -> bool | None:
        """`is_cached` of what `types` gives."""

    @abstractmethod
    def fields(self, entry: int, level: int, *, leaf: bool) -> str:
        """The fields of an entry in the manual's words, without its address."""

    @abstractmethod
    def walk(self, fetch: Callable[[int, Words], Words], roots: list[int], address: int) -> Walked:
        """Walk one address by the specification. `fetch` is asked for (level, addresses of entries)."""


def bit(words: Words, position: int) -> Bits:
    return np.asarray(words >> np.uint64(position) & np.uint64(1) != 0)


def flags(*parts: tuple[Right, Bits]) -> Flags:
    flags = np.zeros(parts[0][1].shape, np.uint16)
    for right, where in parts:
        flags |= where.astype(np.uint16) * np.uint16(right)
    return flags


def rights_of(*parts: tuple[Right, bool]) -> Right:
    return Right(sum(right for right, granted in parts if granted))
