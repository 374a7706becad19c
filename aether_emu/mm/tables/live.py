"""What may become of a live entry: the rule of break before make (Arm ARM R_WHZWS; x86_64 has none)."""

from __future__ import annotations

from aether_emu.address import VirtAddr
from aether_emu.arch.paging import PageTableFormat
from aether_emu.errors import MappingError


class BreakBeforeMake(MappingError):
    """A live entry would become another live one where the architecture demands an absent one between.

    `va` is the address as it was given; `old` and `new` describe the two entries.
    """

    def __init__(self, va: int, old: str, new: str) -> None:
        self.va, self.old, self.new = VirtAddr(va, 64), old, new
        super().__init__(f"break before make: at {va:#x} the live {old} would become {new}")


def refuse_live(fmt: PageTableFormat, va: int, level: int, old: int, new: int) -> None:
    """Raise BreakBeforeMake if the live entry `old` of `va` may not become `new` at once."""
    if old & new & fmt.present_mask and (old ^ new) & fmt.frozen_bits:
        raise BreakBeforeMake(va, fmt.describe(old, level), fmt.describe(new, level))
