"""Encoders that are wrong on purpose: what shows that `encodings` would catch a wrong one.

Each is the project's own format with one mistake of the kind that is made: a bit that moved, a shift
that is off by one, a bit forgotten, a mask too short or too long. `check` says by what each was caught.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from aether_emu.arch.arm64 import format as arm
from aether_emu.arch.arm64.format import ArmFormat
from aether_emu.arch.paging import (
    Absent,
    Attributes,
    E,
    Entry,
    Held,
    Leaf,
    Malformed,
    PageTableFormat,
    Reach,
    Table,
)
from aether_emu.arch.x86_64 import format as x86
from aether_emu.arch.x86_64.format import X86Format
from aether_emu.verify.comparison import Tally
from aether_emu.verify.encodings import judge

_WORD = (1 << 64) - 1
_CASES = 2_000


class Mutant(NamedTuple):
    """A wrong encoder: what is wrong, for which ISA, and a format that has it."""

    name: str
    isa: str
    make: Callable[[], PageTableFormat]


class Caught(NamedTuple):
    """A mutant and the features that differed; none: it got away."""

    mutant: Mutant
    by: tuple[str, ...]


def check(mutant: Mutant, seed: int = 0, cases: int = _CASES) -> Caught:
    """Judge one mutant."""
    tally = Tally()
    for _done in judge(mutant.make(), mutant.isa, cases, seed, tally):
        pass
    return Caught(mutant, tuple(feature for (feature, _access), red in tally.red.items() if red))


# ---- what may be wrong: each makes a subclass of the format


def _leaf(change: Callable[[int, int], int]) -> Callable[[type[PageTableFormat]], type[PageTableFormat]]:
    """The bits of each leaf become `change(bits, level)`."""

    def altered(base: type[PageTableFormat]) -> type[PageTableFormat]:
        class Wrong(base):  # type: ignore[misc, valid-type]  # the base is chosen at run time
            def leaf_bits(self, attributes: Attributes, level: int = 1) -> int:
                return change(super().leaf_bits(attributes, level), level) & _WORD

        return Wrong

    return altered


def _table(change: Callable[[int], int]) -> Callable[[type[PageTableFormat]], type[PageTableFormat]]:
    """Table entries become `change(entry)`."""

    def altered(base: type[PageTableFormat]) -> type[PageTableFormat]:
        class Wrong(base):  # type: ignore[misc, valid-type]  # as above
            def table_entry(self, address: int, reach: Reach = Reach.ANY) -> int:
                return change(super().table_entry(address, reach)) & _WORD

        return Wrong

    return altered


def _reading(
    change: Callable[[Entry, int, int], Entry],
) -> Callable[[type[PageTableFormat]], type[PageTableFormat]]:
    """An entry is taken for `change(decoded, entry, level)`."""

    def altered(base: type[PageTableFormat]) -> type[PageTableFormat]:
        class Wrong(base):  # type: ignore[misc, valid-type]  # as above
            def decode(self, entry: int, level: int) -> Entry:
                return change(super().decode(entry, level), entry, level)

        return Wrong

    return altered


def _operation(
    name: str, change: Callable[..., object]
) -> Callable[[type[PageTableFormat]], type[PageTableFormat]]:
    """One of the operations on leaves does `change(entry)`."""

    def altered(base: type[PageTableFormat]) -> type[PageTableFormat]:
        def wrong(_self: PageTableFormat, entry: E) -> object:
            return change(entry)

        return type("Wrong", (base,), {name: wrong})

    return altered


def _held(change: Callable[[int], int]) -> Callable[[type[PageTableFormat]], type[PageTableFormat]]:
    def altered(base: type[PageTableFormat]) -> type[PageTableFormat]:
        class Wrong(base):  # type: ignore[misc, valid-type]  # as above
            def held_entry(self, held: Held) -> int:
                return change(super().held_entry(held))

        return Wrong

    return altered


def _swap(one: int, other: int) -> Callable[[int, int], int]:
    """Two bits change places."""

    def swapped(bits: int, _level: int) -> int:
        a, b = bits >> one & 1, bits >> other & 1
        return bits & ~(1 << one | 1 << other) | a << other | b << one

    return swapped


def _without(mask: int) -> Callable[[int, int], int]:
    return lambda bits, _level: bits & ~mask


def _with(mask: int) -> Callable[[int, int], int]:
    return lambda bits, _level: bits | mask


def _shifted(mask: int, by: int) -> Callable[[int, int], int]:
    """A field stands `by` bits too high."""
    return lambda bits, _level: bits & ~mask | (bits & mask) << by


def _drop_flag(name: str) -> Callable[[Entry, int, int], Entry]:
    """A flag of leaves is not seen."""

    def read(decoded: Entry, _entry: int, _level: int) -> Entry:
        if not isinstance(decoded, Leaf):
            return decoded
        flags = decoded.attributes.flags & ~getattr(type(decoded.attributes.flags), name)
        old = decoded.attributes
        return Leaf(decoded.address, Attributes(flags, old.memory, old.key, old.software, old.contiguous))

    return read


def _leaf_address(mask: int) -> Callable[[Entry, int, int], Entry]:
    """A leaf's address loses bits."""

    def read(decoded: Entry, _entry: int, _level: int) -> Entry:
        return Leaf(decoded.address & mask, decoded.attributes) if isinstance(decoded, Leaf) else decoded

    return read


def _lenient(decoded: Entry, _entry: int, _level: int) -> Entry:
    """What is malformed is taken for nothing."""
    return Absent() if isinstance(decoded, Malformed) else decoded


def _user_of_tables(decoded: Entry, _entry: int, level: int) -> Entry:
    """Large leaves are taken for tables."""
    if isinstance(decoded, Leaf) and level > 1:
        return Table(decoded.address, decoded.attributes.flags)
    return decoded


def _at(level: int, change: Callable[[int, int], int]) -> Callable[[int, int], int]:
    """A mistake at one level alone."""
    return lambda bits, here: change(bits, here) if here == level else bits


_Alter = Callable[[type[PageTableFormat]], type[PageTableFormat]]

_X86: tuple[tuple[str, _Alter], ...] = (
    ("W and U swapped", _leaf(_swap(1, 2))),
    ("NX forgotten", _leaf(_without(x86.NX))),
    ("NX always set", _leaf(_with(x86.NX))),
    ("NX one bit lower", _leaf(_swap(63, 62))),
    ("A and D swapped", _leaf(_swap(5, 6))),
    ("A forgotten", _leaf(_without(x86.A))),
    ("D forgotten", _leaf(_without(x86.D))),
    ("G forgotten", _leaf(_without(x86.G))),
    ("U always set", _leaf(_with(x86.U))),
    ("PWT and PCD swapped", _leaf(_swap(3, 4))),
    ("PS missing in 2M leaves", _leaf(_at(2, _without(x86.PS)))),
    ("PS missing in 1G leaves", _leaf(_at(3, _without(x86.PS)))),
    ("PAT of large leaves at bit 7", _leaf(_at(2, lambda bits, _level: bits & ~(1 << 12) | x86.PS))),
    ("PAT of pages at bit 12", _leaf(_at(1, _swap(7, 12)))),
    ("protection key one bit too high", _leaf(_shifted(7 << 59, 1))),
    ("protection key lost", _leaf(_without(15 << 59))),
    ("software bits reach into the key", _leaf(_shifted(0x7F << 52, 1))),
    ("software bits reach into G", _leaf(lambda bits, _level: bits | (bits >> 9 & 1) << 8)),
    ("tables without W", _table(lambda entry: entry & ~x86.W)),
    ("tables without U", _table(lambda entry: entry & ~x86.U)),
    ("tables with NX", _table(lambda entry: entry | x86.NX)),
    ("tables look like large leaves", _table(lambda entry: entry | x86.PS)),
    ("table address one bit short", _table(lambda entry: entry & ~(1 << 20))),
    ("held entries are present", _held(lambda entry: entry | 1)),
    ("malformed entries taken for nothing", _reading(_lenient)),
    ("large leaves taken for tables", _reading(_user_of_tables)),
    ("NX not read", _reading(_drop_flag("EXECUTE"))),
    ("D not read", _reading(_drop_flag("DIRTY"))),
    ("U not read", _reading(_drop_flag("USER"))),
    ("leaf addresses one bit short", _reading(_leaf_address(_WORD ^ 1 << 39))),
    ("write protection clears U", _operation("write_protect", lambda entry: entry & (_WORD ^ x86.U))),
    ("ageing clears D", _operation("age", lambda entry: entry & (_WORD ^ x86.D))),
    ("cleaning clears W", _operation("clean", lambda entry: entry & (_WORD ^ x86.D ^ x86.W))),
    ("soiling does nothing", _operation("soil", lambda entry: entry | 0)),
)

_ARM: tuple[tuple[str, _Alter], ...] = (
    ("AP[1] and AP[2] swapped", _leaf(_swap(6, 7))),
    ("UXN and PXN swapped", _leaf(_swap(53, 54))),
    ("UXN forgotten", _leaf(_without(arm.UXN))),
    ("PXN forgotten", _leaf(_without(arm.PXN))),
    ("AF forgotten", _leaf(_without(arm.ACCESSED))),
    ("AF always set", _leaf(_with(arm.ACCESSED))),
    ("nG inverted", _leaf(lambda bits, _level: bits ^ arm.NOT_GLOBAL)),
    ("AttrIndx one bit too high", _leaf(_shifted(3 << 2, 1))),
    ("AttrIndx lost", _leaf(_without(7 << 2))),
    ("type bit missing in pages", _leaf(_at(1, _without(arm.TABLE)))),
    ("type bit set in blocks", _leaf(_at(2, _with(arm.TABLE)))),
    ("read-only forgotten", _leaf(_without(arm.READ_ONLY))),
    ("user access forgotten", _leaf(_without(arm.USER))),
    ("DBM in AP[2]'s place", _leaf(_swap(51, 7))),
    ("dirty kept in UXN", _leaf(_swap(55, 54))),
    ("tables with UXNTable", _table(lambda entry: entry | arm.UXN_TABLE)),
    ("tables with PXNTable", _table(lambda entry: entry | arm.PXN_TABLE)),
    ("tables without user access", _table(lambda entry: entry | arm.NO_USER_TABLE)),
    ("tables read-only", _table(lambda entry: entry | arm.READ_ONLY_TABLE)),
    ("tables look like blocks", _table(lambda entry: entry & ~arm.TABLE)),
    ("table address one bit short", _table(lambda entry: entry & ~(1 << 20))),
    ("held entries are valid", _held(lambda entry: entry | 1)),
    ("malformed entries taken for nothing", _reading(_lenient)),
    ("blocks taken for tables", _reading(_user_of_tables)),
    ("execution not read", _reading(_drop_flag("EXECUTE"))),
    ("access flag not read", _reading(_drop_flag("ACCESSED"))),
    ("leaf addresses one bit short", _reading(_leaf_address(_WORD ^ 1 << 39))),
    ("ageing does nothing", _operation("age", lambda entry: entry | 0)),
    ("cleaning leaves AP[2] clear", _operation("clean", lambda entry: entry & (_WORD ^ arm.SOFT_DIRTY))),
    ("write protection leaves DBM to soil", _operation("write_protect", lambda entry: entry | 0)),
)


def mutants() -> list[Mutant]:
    """All of them, over the formats of their ISA in turn."""
    x86_shapes: tuple[Callable[[type[PageTableFormat]], PageTableFormat], ...] = (
        lambda kind: kind(4),  # type: ignore[call-arg]  # a subclass of X86Format
        lambda kind: kind(5),  # type: ignore[call-arg]  # likewise
    )
    arm_shapes: tuple[Callable[[type[PageTableFormat]], PageTableFormat], ...] = (
        lambda kind: kind(4096, 48),  # type: ignore[call-arg]  # a subclass of ArmFormat
        lambda kind: kind(16384, 47),  # type: ignore[call-arg]  # likewise
        lambda kind: kind(65536, 42),  # type: ignore[call-arg]  # likewise
    )
    made = []
    for isa, base, table, shapes in (
        ("x86_64", X86Format, _X86, x86_shapes),
        ("arm64", ArmFormat, _ARM, arm_shapes),
    ):
        for number, (name, alter) in enumerate(table):
            made.append(_mutant(name, isa, alter(base), shapes[number % len(shapes)]))
    return made


def _mutant(
    name: str,
    isa: str,
    kind: type[PageTableFormat],
    shape: Callable[[type[PageTableFormat]], PageTableFormat],
) -> Mutant:
    return Mutant(name, isa, lambda: shape(kind))
