"""Wrong encoders by hand, at the edges: the highest address bit, and entries that are not present.

A mask that is a bit short is right for all memory that anybody has; what is not present is right for every
MMU, whatever it says.
"""

from __future__ import annotations

from collections.abc import Callable

from aether_emu.arch.arm64.stage1 import ArmFormat
from aether_emu.arch.paging import Attributes, Entry, Held, Leaf, Malformed, PageTableFormat, Table
from aether_emu.arch.x86_64.stage1 import X86Format
from aether_emu.verify.judging.mutations import Alter, Mutant, table


def masked(lost: int) -> Alter:
    """The mask of addresses lacks bits, for reading and for following tables alike."""
    return _data("address_mask", lambda mask: mask & ~lost)


def absent(change: Callable[[int], int]) -> Alter:
    """An entry that is not present is taken for `change(entry)`."""

    def altered(base: type[PageTableFormat]) -> type[PageTableFormat]:
        class Wrong(base):  # type: ignore[misc, valid-type]  # the base is chosen at run time
            def decode(self, entry: int, level: int) -> Entry:
                seen = entry if entry & self.present_mask else change(entry)
                decoded: Entry = super().decode(seen, level)
                return decoded

        return Wrong

    return altered


def _data(name: str, change: Callable[[int], int]) -> Alter:
    """A number that the format declares is another."""

    def altered(base: type[PageTableFormat]) -> type[PageTableFormat]:
        class Wrong(base):  # type: ignore[misc, valid-type]  # as above
            def __init__(self, *geometry: int) -> None:
                super().__init__(*geometry)
                setattr(self, name, change(getattr(self, name)))

        return Wrong

    return altered


def _leaf_entry(change: Callable[[int], int]) -> Alter:
    """Leaves, their addresses included, become `change(entry)`."""

    def altered(base: type[PageTableFormat]) -> type[PageTableFormat]:
        class Wrong(base):  # type: ignore[misc, valid-type]  # as above
            def leaf_entry(self, address: int, attributes: Attributes, level: int = 1) -> int:
                return change(super().leaf_entry(address, attributes, level))

        return Wrong

    return altered


def _offended_by(bit: int) -> Alter:
    """An address bit is taken for a reserved one."""

    def altered(base: type[PageTableFormat]) -> type[PageTableFormat]:
        class Wrong(base):  # type: ignore[misc, valid-type]  # as above
            def decode(self, entry: int, level: int) -> Entry:
                decoded: Entry = super().decode(entry, level)
                here = isinstance(decoded, Leaf | Table) and entry & bit
                return Malformed(bit) if here else decoded

        return Wrong

    return altered


def _hasty(base: type[PageTableFormat]) -> type[PageTableFormat]:
    """The quick way to the next table does not ask whether an entry is present."""

    class Wrong(base):  # type: ignore[misc, valid-type]  # as above
        def next_table(self, entry: int, level: int) -> int | None:
            following: int | None = super().next_table(entry | self.present_mask, level)
            return following

    return Wrong


def _cutting(base: type[PageTableFormat]) -> type[PageTableFormat]:
    """Held values that do not fit are cut."""

    class Wrong(base):  # type: ignore[misc, valid-type]  # as above
        def held_entry(self, held: Held) -> int:
            most = (1 << 64 - self.page_shift) - 1
            entry: int = super().held_entry(Held(held.kind, held.value & most))
            return entry

    return Wrong


def _untyped_held(entry: int) -> int:
    """A kind that there is not becomes the first that there is."""
    return entry | 2 if entry and not entry >> 1 & 15 else entry


def _wrong(top: int) -> tuple[tuple[str, Alter], ...]:
    """The mistakes where `top` is the highest address bit."""
    high = 1 << top
    return (
        ("address mask a bit short", masked(high)),
        ("leaves without their highest bit", _leaf_entry(lambda entry: entry & ~high)),
        ("tables without their highest bit", table(lambda entry: entry & ~high)),
        ("the highest address bit taken for a reserved one", _offended_by(high)),
        ("absent entries held whatever bit 5 says", absent(lambda entry: entry & ~(1 << 5))),
        ("absent entries held whatever bit 11 says", absent(lambda entry: entry & ~(1 << 11))),
        ("held values without their highest bit", absent(lambda entry: entry & ~(1 << 63))),
        ("absent entries of no kind held", absent(_untyped_held)),
        ("absent entries lead to tables", _hasty),
        ("held values cut", _cutting),
        ("another bit is presence too", _data("present_mask", lambda mask: mask | 2)),
        ("address mask with a low bit", _data("address_mask", lambda mask: mask | 1 << 10)),
    )


def mutants() -> list[Mutant]:
    """All of them, on the widest physical addresses there are."""
    return [
        *(_mutant(f"{name}, 52 bits", "x86_64", alter(X86Format), (5, 52)) for name, alter in _wrong(51)),
        *(
            _mutant(f"{name}, 48 bits", "arm64", alter(ArmFormat), (16384, 48, 48))
            for name, alter in _wrong(47)
        ),
    ]


def _mutant(name: str, isa: str, kind: Callable[..., PageTableFormat], geometry: tuple[int, ...]) -> Mutant:
    return Mutant(name, isa, lambda: kind(*geometry))
