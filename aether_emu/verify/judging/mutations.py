"""Encoders that are wrong on purpose: what shows that `encodings` would catch a wrong one.

Each is the project's own format with one mistake of the kind that is made: a bit that moved, a shift
that is off by one, a bit forgotten, a mask too short or too long. `mutants` are written by hand, one for
each field and rule; `seeded` makes any number of others. `is_caught` says whether the judge sees one,
`check` by what.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from aether_emu.arch.arm64 import stage1 as arm
from aether_emu.arch.arm64.stage1 import ArmFormat
from aether_emu.arch.paging import (
    Absent,
    Attributes,
    E,
    Entry,
    Held,
    Leaf,
    Malformed,
    MemoryType,
    PageFlags,
    PageTableFormat,
    Reach,
    Table,
)
from aether_emu.arch.x86_64 import stage1 as x86
from aether_emu.arch.x86_64.stage1 import X86Format
from aether_emu.errors import EncodingError
from aether_emu.verify.cases.comparison import Tally
from aether_emu.verify.judging.encodings import steps

_WORD = (1 << 64) - 1
_CASES = 4_000
_FEW = 200


class Mutant(NamedTuple):
    """A wrong encoder: what is wrong, for which ISA, and a format that has it."""

    name: str
    isa: str
    make: Callable[[], PageTableFormat]


Alter = Callable[[type[PageTableFormat]], type[PageTableFormat]]


class Caught(NamedTuple):
    """A mutant and the features that differed; none: it got away."""

    mutant: Mutant
    by: tuple[str, ...]


def is_caught(mutant: Mutant, seed: int = 0, cases: int = _CASES) -> bool:
    """Whether anything differs of what `check` asks. It ends there, so it is several times as quick."""
    for count in (min(_FEW, cases), cases):
        tally = Tally()
        if any(tally.different for _done in steps(mutant.make(), mutant.isa, count, seed, tally)):
            return True
    return False


def check(mutant: Mutant, seed: int = 0, cases: int = _CASES) -> Caught:
    """Judge one mutant: by few cases, and by `cases` what those let through."""
    for count in (min(_FEW, cases), cases):
        tally = Tally()
        for _done in steps(mutant.make(), mutant.isa, count, seed, tally):
            pass
        if tally.different:
            break
    return Caught(mutant, tuple(feature for (feature, _access), red in tally.red.items() if red))


# ---- what may be wrong: each makes a subclass of the format


def leaf(change: Callable[[int, int], int]) -> Alter:
    """The bits of each leaf become `change(bits, level)`."""

    def altered(base: type[PageTableFormat]) -> type[PageTableFormat]:
        class Wrong(base):  # type: ignore[misc, valid-type]  # the base is chosen at run time
            def leaf_bits(self, attributes: Attributes, level: int = 1) -> int:
                return change(super().leaf_bits(attributes, level), level) & _WORD

        return Wrong

    return altered


def table(change: Callable[[int], int]) -> Alter:
    """Table entries become `change(entry)`."""

    def altered(base: type[PageTableFormat]) -> type[PageTableFormat]:
        class Wrong(base):  # type: ignore[misc, valid-type]  # as above
            def table_entry(self, address: int, reach: Reach = Reach.ANY) -> int:
                return change(super().table_entry(address, reach)) & _WORD

        return Wrong

    return altered


def _reading(
    change: Callable[[Entry, int, int], Entry],
) -> Alter:
    """An entry is taken for `change(decoded, entry, level)`."""

    def altered(base: type[PageTableFormat]) -> type[PageTableFormat]:
        class Wrong(base):  # type: ignore[misc, valid-type]  # as above
            def decode(self, entry: int, level: int) -> Entry:
                return change(super().decode(entry, level), entry, level)

        return Wrong

    return altered


def operation(name: str, change: Callable[..., object]) -> Alter:
    """One of the operations on leaves does `change(entry)`."""

    def altered(base: type[PageTableFormat]) -> type[PageTableFormat]:
        def wrong(_self: PageTableFormat, entry: E) -> object:
            return change(entry)

        return type("Wrong", (base,), {name: wrong})

    return altered


def _held(change: Callable[[int], int]) -> Alter:
    def altered(base: type[PageTableFormat]) -> type[PageTableFormat]:
        class Wrong(base):  # type: ignore[misc, valid-type]  # as above
            def held_entry(self, held: Held) -> int:
                return change(super().held_entry(held))

        return Wrong

    return altered


def swap(one: int, other: int) -> Callable[[int, int], int]:
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


def _for_users(change: Callable[[int, int], int]) -> Callable[[int, int], int]:
    """A mistake in what users execute alone (Arm)."""
    return lambda bits, level: bits if bits & arm.UXN else change(bits, level)


def _refusing(
    unwanted: Callable[[Attributes], bool],
) -> Alter:
    """Attributes that the format can say are refused."""

    def altered(base: type[PageTableFormat]) -> type[PageTableFormat]:
        class Wrong(base):  # type: ignore[misc, valid-type]  # as above
            def leaf_bits(self, attributes: Attributes, level: int = 1) -> int:
                if unwanted(attributes):
                    raise EncodingError("refused")
                bits: int = super().leaf_bits(attributes, level)
                return bits

        return Wrong

    return altered


def _following(change: Callable[[int], int]) -> Alter:
    """The quick way to the next table leads elsewhere than decoding."""

    def altered(base: type[PageTableFormat]) -> type[PageTableFormat]:
        class Wrong(base):  # type: ignore[misc, valid-type]  # as above
            def next_table(self, entry: int, level: int) -> int | None:
                table = super().next_table(entry, level)
                return None if table is None else change(table)

        return Wrong

    return altered


def _unchecked(base: type[PageTableFormat]) -> type[PageTableFormat]:
    """Addresses are taken as they come."""

    class Wrong(base):  # type: ignore[misc, valid-type]  # as above
        def leaf_entry(self, address: int, attributes: Attributes, level: int = 1) -> int:
            bits: int = super().leaf_bits(attributes, level)
            return address | bits

    return Wrong


def blind(mask: int) -> Alter:
    """Decoding does not see some bits of a present entry."""

    def altered(base: type[PageTableFormat]) -> type[PageTableFormat]:
        class Wrong(base):  # type: ignore[misc, valid-type]  # as above
            def decode(self, entry: int, level: int) -> Entry:
                seen = entry & ~mask if entry & self.present_mask else entry
                decoded: Entry = super().decode(seen, level)
                return decoded

        return Wrong

    return altered


def _for_leaves(change: Callable[[Attributes, int], Attributes]) -> Callable[[Entry, int, int], Entry]:
    """Of a leaf the attributes are taken for others."""

    def read(decoded: Entry, entry: int, _level: int) -> Entry:
        return (
            Leaf(decoded.address, change(decoded.attributes, entry)) if isinstance(decoded, Leaf) else decoded
        )

    return read


def _table_grants(flags: PageFlags) -> Callable[[Entry, int, int], Entry]:
    """What tables take away is not seen."""

    def read(decoded: Entry, _entry: int, _level: int) -> Entry:
        if not isinstance(decoded, Table):
            return decoded
        supervisor = None if decoded.supervisor is None else decoded.supervisor | flags
        return Table(decoded.address, decoded.flags | flags, supervisor)

    return read


def _untold(decoded: Entry, _entry: int, _level: int) -> Entry:
    return Malformed(0) if isinstance(decoded, Malformed) else decoded


def _only_present(decoded: Entry, _entry: int, _level: int) -> Entry:
    return Absent() if isinstance(decoded, Held) else decoded


_ACCESSED_BITS = x86.A | arm.ACCESSED

_EVERY: tuple[tuple[str, Alter], ...] = (
    ("next table one bit short", _following(lambda table: table & ~(1 << 30))),
    ("table address without a high bit", table(lambda entry: entry & ~(1 << 35))),
    ("software bits not read", _reading(_for_leaves(lambda old, _entry: replace(old, software=0)))),
    ("reading not read", _reading(_drop_flag("READ"))),
    ("contiguous where it is not", _reading(_for_leaves(lambda old, _entry: replace(old, contiguous=True)))),
    ("what tables take from writing not read", _reading(_table_grants(PageFlags.WRITE))),
    ("what tables take from execution not read", _reading(_table_grants(PageFlags.EXECUTE))),
    ("held entries not read", _reading(_only_present)),
    ("held values one bit up", _held(lambda entry: (entry & 0xFFF | (entry & ~0xFFF) << 1) & _WORD)),
    (
        "offending bits not told",
        _reading(_untold),
    ),
    ("addresses unchecked", _unchecked),
    ("write-combining refused", _refusing(lambda one: one.memory is MemoryType.WRITE_COMBINING)),
    ("touching writes a software bit", operation("touch", lambda entry: entry | 1 << 57 | _ACCESSED_BITS)),
)

_X86: tuple[tuple[str, Alter], ...] = (
    ("W and U swapped", leaf(swap(1, 2))),
    ("NX forgotten", leaf(_without(x86.NX))),
    ("NX always set", leaf(_with(x86.NX))),
    ("NX one bit lower", leaf(swap(63, 62))),
    ("A and D swapped", leaf(swap(5, 6))),
    ("A forgotten", leaf(_without(x86.A))),
    ("D forgotten", leaf(_without(x86.D))),
    ("G forgotten", leaf(_without(x86.G))),
    ("U always set", leaf(_with(x86.U))),
    ("PWT and PCD swapped", leaf(swap(3, 4))),
    ("PS missing in 2M leaves", leaf(_at(2, _without(x86.PS)))),
    ("PS missing in 1G leaves", leaf(_at(3, _without(x86.PS)))),
    ("PAT of large leaves at bit 7", leaf(_at(2, lambda bits, _level: bits & ~(1 << 12) | x86.PS))),
    ("PAT of pages at bit 12", leaf(_at(1, swap(7, 12)))),
    ("protection key one bit too high", leaf(_shifted(7 << 59, 1))),
    ("protection key lost", leaf(_without(15 << 59))),
    ("software bits reach into the key", leaf(_shifted(0x7F << 52, 1))),
    ("software bits reach into G", leaf(lambda bits, _level: bits | (bits >> 9 & 1) << 8)),
    ("tables without W", table(lambda entry: entry & ~x86.W)),
    ("tables without U", table(lambda entry: entry & ~x86.U)),
    ("tables with NX", table(lambda entry: entry | x86.NX)),
    ("tables look like large leaves", table(lambda entry: entry | x86.PS)),
    ("table address one bit short", table(lambda entry: entry & ~(1 << 20))),
    ("held entries are present", _held(lambda entry: entry | 1)),
    ("malformed entries taken for nothing", _reading(_lenient)),
    ("large leaves taken for tables", _reading(_user_of_tables)),
    ("NX not read", _reading(_drop_flag("EXECUTE"))),
    ("D not read", _reading(_drop_flag("DIRTY"))),
    ("U not read", _reading(_drop_flag("USER"))),
    ("leaf addresses one bit short", _reading(_leaf_address(_WORD ^ 1 << 39))),
    ("write protection clears U", operation("write_protect", lambda entry: entry & (_WORD ^ x86.U))),
    ("ageing clears D", operation("age", lambda entry: entry & (_WORD ^ x86.D))),
    ("cleaning clears W", operation("clean", lambda entry: entry & (_WORD ^ x86.D ^ x86.W))),
    ("soiling does nothing", operation("soil", lambda entry: entry | 0)),
    ("a reserved bit not seen", blind(1 << 45)),
    ("tables for everybody whatever their reach", table(lambda entry: entry | x86.U)),
)

_ARM: tuple[tuple[str, Alter], ...] = (
    ("AP[1] and AP[2] swapped", leaf(swap(6, 7))),
    ("UXN and PXN swapped", leaf(swap(53, 54))),
    ("UXN forgotten", leaf(_without(arm.UXN))),
    ("PXN forgotten", leaf(_without(arm.PXN))),
    ("AF forgotten", leaf(_without(arm.ACCESSED))),
    ("AF always set", leaf(_with(arm.ACCESSED))),
    ("nG inverted", leaf(lambda bits, _level: bits ^ arm.NOT_GLOBAL)),
    ("AttrIndx one bit too high", leaf(_shifted(3 << 2, 1))),
    ("AttrIndx lost", leaf(_without(7 << 2))),
    ("type bit missing in pages", leaf(_at(1, _without(arm.TABLE)))),
    ("type bit set in blocks", leaf(_at(2, _with(arm.TABLE)))),
    ("read-only forgotten", leaf(_without(arm.READ_ONLY))),
    ("user access forgotten", leaf(_without(arm.USER))),
    ("DBM in AP[2]'s place", leaf(swap(51, 7))),
    ("dirty kept in UXN", leaf(swap(55, 54))),
    ("tables with UXNTable", table(lambda entry: entry | arm.UXN_TABLE)),
    ("tables with PXNTable", table(lambda entry: entry | arm.PXN_TABLE)),
    ("tables without user access", table(lambda entry: entry | arm.NO_USER_TABLE)),
    ("tables read-only", table(lambda entry: entry | arm.READ_ONLY_TABLE)),
    ("tables look like blocks", table(lambda entry: entry & ~arm.TABLE)),
    ("table address one bit short", table(lambda entry: entry & ~(1 << 20))),
    ("held entries are valid", _held(lambda entry: entry | 1)),
    ("malformed entries taken for nothing", _reading(_lenient)),
    ("blocks taken for tables", _reading(_user_of_tables)),
    ("execution not read", _reading(_drop_flag("EXECUTE"))),
    ("access flag not read", _reading(_drop_flag("ACCESSED"))),
    ("leaf addresses one bit short", _reading(_leaf_address(_WORD ^ 1 << 39))),
    ("ageing does nothing", operation("age", lambda entry: entry | 0)),
    ("cleaning leaves AP[2] clear", operation("clean", lambda entry: entry & (_WORD ^ arm.SOFT_DIRTY))),
    ("write protection leaves DBM to soil", operation("write_protect", lambda entry: entry | 0)),
    (
        "PXN forgotten in what users execute",
        leaf(_for_users(_without(arm.PXN))),
    ),
    ("what users execute they read", leaf(_for_users(_with(arm.USER)))),
    ("DBM forgotten", leaf(_without(arm.DBM))),
    ("contiguous lost", leaf(_without(arm.CONTIGUOUS))),
    ("contiguous among the software bits", leaf(swap(52, 58))),
    ("guarded lost", leaf(_without(arm.GUARDED))),
    ("shareable with nobody", leaf(_without(arm.INNER_SHAREABLE))),
    ("the secure world's bit set", leaf(_with(1 << 5))),
    ("APTable for users not read", _reading(_table_grants(PageFlags.USER))),
    ("tables for everybody whatever their reach", table(lambda entry: entry & ~(0xF << 59))),
    ("an address bit beyond the width not seen", blind(1 << 46)),
)


Shape = Callable[[type[PageTableFormat]], PageTableFormat]

X86_SHAPES: tuple[Shape, ...] = (
    lambda kind: kind(4),  # type: ignore[call-arg]  # a subclass of X86Format
    lambda kind: kind(5),  # type: ignore[call-arg]  # likewise
)
ARM_SHAPES: tuple[Shape, ...] = (
    lambda kind: kind(4096, 48),  # type: ignore[call-arg]  # a subclass of ArmFormat
    lambda kind: kind(16384, 47),  # type: ignore[call-arg]  # likewise
    lambda kind: kind(65536, 42),  # type: ignore[call-arg]  # likewise
)
_ISAS: tuple[tuple[str, type[PageTableFormat], tuple[tuple[str, Alter], ...], tuple[Shape, ...]], ...] = (
    ("x86_64", X86Format, (*_X86, *_EVERY), X86_SHAPES),
    ("arm64", ArmFormat, (*_ARM, *_EVERY), ARM_SHAPES),
)


def mutants() -> list[Mutant]:
    """All that are written down, over the formats of their ISA in turn."""
    return [
        _mutant(name, isa, alter(base), shapes[number % len(shapes)])
        for isa, base, table, shapes in _ISAS
        for number, (name, alter) in enumerate(table)
    ]


def _mutant(name: str, isa: str, kind: type[PageTableFormat], shape: Shape) -> Mutant:
    return Mutant(name, isa, lambda: shape(kind))
