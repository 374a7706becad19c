"""A walk in Python: what the MMU would read on its way to a translation, every entry kept.

>>> print(process.mm.walk(0x401000))          # doctest: +SKIP
0x401000 in x86_64-4level: 0x4008c000, page of 4K, user read execute
  PML4 [  0] at 0x40031000  0x0000000040032027  P RW US A -> 0x40032000
  PDPT [  0] at 0x40032000  0x0000000040033027  P RW US A -> 0x40033000
  PD   [  2] at 0x40033010  0x0000000040034027  P RW US A -> 0x40034000
  PT   [  1] at 0x40034008  0x000000004008c025  P US A -> 0x4008c000
"""

from __future__ import annotations

from dataclasses import field
from typing import Protocol

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
from aether_emu.errors import AddressError
from aether_emu.records import dataclass
from aether_emu.rules import format_size

_RESTRICTED = PageFlags.WRITE | PageFlags.USER | PageFlags.EXECUTE
_SHOWN = PageFlags.READ | PageFlags.WRITE | PageFlags.EXECUTE | PageFlags.GLOBAL | PageFlags.GUARDED


@dataclass(frozen=True, slots=True)
class Step:
    """One entry that a walk read: its level, its physical address and its value."""

    level: int
    address: PhysAddr
    entry: int


class Memory(Protocol):
    """Where tables stand: words from physical `base` on."""

    @property
    def base(self) -> int: ...
    @property
    def words(self) -> memoryview[int]: ...


@dataclass(frozen=True, slots=True)
class Origin:
    """What was walked: an address, by tables of a format."""

    va: int
    format: PageTableFormat


class _Walked:
    """What the answers of a walk share: `print` one to see every level decoded."""

    __slots__ = ()
    steps: tuple[Step, ...]
    origin: Origin

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.origin.va:#x}: {self._ending()})"

    def __str__(self) -> str:
        fmt, va = self.origin.format, self.origin.va
        lines = [f"{va:#x} in {fmt.name}: {self._ending()}"]
        names = max(len(level.name) for level in fmt.levels)
        digits = max(len(str(level.entries - 1)) for level in fmt.levels)
        for step in self.steps:
            spec = fmt.levels[step.level - 1]
            index = va >> spec.shift & spec.entries - 1
            place = f"  {spec.name:<{names}} [{index:{digits}}] at {step.address:#x}"
            lines.append(f"{place}  {step.entry:#018x}  {fmt.meaning(step.entry, step.level)}")
        return "\n".join(lines)

    def _ending(self) -> str:
        raise AssertionError(f"{type(self).__name__} says how it ended")


@dataclass(frozen=True, slots=True, repr=False)
class Mapped(_Walked):
    """The address translates: `address` is physical, `size` the leaf's bytes.

    `attributes` are effective, that is, restricted by every table on the way.
    """

    steps: tuple[Step, ...]
    origin: Origin = field(compare=False)
    address: PhysAddr
    size: int
    attributes: Attributes

    def _ending(self) -> str:
        what = self.attributes
        who = "user" if what.flags & PageFlags.USER else "supervisor"
        rights = [one.name.lower() for one in PageFlags if one & what.flags & _SHOWN and one.name]
        memory = what.memory.name.lower().replace("_", "-")
        extra = [] if memory == "write-back" else [memory]
        extra += [f"key {what.key}"] if what.key else []
        return ", ".join(
            [f"{self.address:#x}", f"page of {format_size(self.size)}", " ".join([who, *rights]), *extra]
        )


@dataclass(frozen=True, slots=True, repr=False)
class NotMapped(_Walked):
    """The walk ended at an absent entry of `level`."""

    steps: tuple[Step, ...]
    origin: Origin = field(compare=False)
    level: int

    def _ending(self) -> str:
        if not self.steps:
            return "not mapped, this table does not translate the supervisor's half"
        return f"not mapped, {self.origin.format.level_name(self.level)} has no entry"


@dataclass(frozen=True, slots=True, repr=False)
class HeldAt(_Walked):
    """The walk ended at a typed non-present entry."""

    steps: tuple[Step, ...]
    origin: Origin = field(compare=False)
    level: int
    what: Held

    def _ending(self) -> str:
        return f"not present, {self.origin.format.level_name(self.level)} keeps {self.what.kind.name}"


@dataclass(frozen=True, slots=True, repr=False)
class MalformedAt(_Walked):
    """The walk ended at an entry with reserved `bits` set."""

    steps: tuple[Step, ...]
    origin: Origin = field(compare=False)
    level: int
    bits: int

    def _ending(self) -> str:
        return f"malformed, {self.origin.format.level_name(self.level)} has reserved bits {self.bits:#x}"


Walk = Mapped | NotMapped | HeldAt | MalformedAt


def walk(fmt: PageTableFormat, ram: Memory, root: int, va: int) -> Walk:
    """Translate `va` by the table at physical `root`.

    A damaged entry may name a table outside RAM: that reads as zeroes, as a hole in the bus does.
    Raises AddressError for what has more than 64 bits, or less than none.
    """
    if not 0 <= va < 1 << 64:
        raise AddressError("virtual address", va, "it has 64 bits")
    origin = Origin(va, fmt)
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
                physical = PhysAddr(address | va & spec.size - 1)
                return Mapped(tuple(steps), origin, physical, spec.size, effective)
            case Held() as held:
                return HeldAt(tuple(steps), origin, level, held)
            case Malformed(bits):
                return MalformedAt(tuple(steps), origin, level, bits)
            case Absent():
                return NotMapped(tuple(steps), origin, level)
    raise AssertionError("level 1 decodes to a table")
