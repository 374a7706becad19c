"""A walk in Python: what the MMU would read on its way to a translation, every entry kept."""

from __future__ import annotations

from aether_emu.address import PhysAddr
from aether_emu.arch.paging import (
    Absent,
    Attributes,
    Held,
    Leaf,
    Malformed,
    PageFlags,
    PageTableFormat,
    Table,
)
from aether_emu.machine.memory.ram import Ram
from aether_emu.records import dataclass

_RESTRICTED = PageFlags.WRITE | PageFlags.USER | PageFlags.EXECUTE


@dataclass(frozen=True, slots=True)
class Step:
    """One entry that a walk read: its level, its physical address and its value."""

    level: int
    address: PhysAddr
    entry: int


@dataclass(frozen=True, slots=True)
class Mapped:
    """The address translates: `address` is physical, `size` the leaf's bytes.

    `attributes` are effective, that is, restricted by every table on the way.
    """

    address: PhysAddr
    size: int
    attributes: Attributes
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class NotMapped:
    """The walk ended at an absent entry of `level`."""

    level: int
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class HeldAt:
    """The walk ended at a typed non-present entry."""

    level: int
    what: Held
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class MalformedAt:
    """The walk ended at an entry with reserved `bits` set."""

    level: int
    bits: int
    steps: tuple[Step, ...]


Walk = Mapped | NotMapped | HeldAt | MalformedAt


def walk(fmt: PageTableFormat, ram: Ram, root: int, va: int) -> Walk:
    """Translate `va` by the table at physical `root`.

    A damaged entry may name a table outside RAM: that reads as zeroes, as a hole in the bus does.
    """
    steps: list[Step] = []
    words, table = ram.words, root
    user = supervisor = _RESTRICTED  # what the tables so far leave to leaves of either kind
    for level in range(fmt.top, 0, -1):
        spec = fmt.levels[level - 1]
        slot = (table - ram.base >> 3) + (va >> spec.shift & spec.entries - 1)
        entry = words[slot] if 0 <= slot < len(words) else 0
        steps.append(Step(level, PhysAddr.new_truncate(ram.base + (slot << 3)), entry))
        match fmt.decode(entry, level):
            case Table(address, flags, others):
                table, user = address, user & flags
                supervisor &= flags if others is None else others
            case Leaf(address, attributes):
                granted = user if attributes.flags & PageFlags.USER else supervisor
                flags = attributes.flags & ~(_RESTRICTED & ~granted)
                effective = Attributes(
                    flags, attributes.memory, attributes.key, attributes.software, attributes.contiguous
                )
                return Mapped(PhysAddr(address | va & spec.size - 1), spec.size, effective, tuple(steps))
            case Held() as held:
                return HeldAt(level, held, tuple(steps))
            case Malformed(bits):
                return MalformedAt(level, bits, tuple(steps))
            case Absent():
                return NotMapped(level, tuple(steps))
    raise AssertionError("level 1 decodes to a table")
