"""How one CPU has others drop translations: by interrupts that are acknowledged, or by a broadcast.

    x86_64   an interrupt to each CPU that may hold the translation; it flushes, and acknowledges
    ARM64    a broadcast TLBI, which reaches all; the DSB behind it waits until all have done it

Interrupts, and the time that they take, are modelled: `Tlb` asks here, and Python calls the flushes of the
other engines. What a CPU executes until then is executed: it goes on with what its TLB still holds, for as
many blocks as `delay` allows, while the CPU that asked waits.

A CPU that has nothing to execute is *lazy*: it is not interrupted, counts as having acknowledged, and drops
what it must before it executes again (Linux: lazy TLB mode). Only when a table is taken out it is interrupted
too, for its walker may read tables while it idles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

from aether_emu.records import dataclass


@dataclass(slots=True)
class Shootdown:
    """The rules of a machine, and figures of what came of them.

    `acknowledged` is when the CPU that asked goes on: "flushed", once the others have; "early", once they
    have taken the interrupt, and flush before their program goes on; "deferred", at once where only memory
    is given back, which then waits for them instead.

    `delay` is the most blocks that a CPU executes before it takes the interrupt, or before the broadcast is
    complete.
    """

    acknowledged: str = "flushed"
    delay: int = 0
    lazy: bool = True
    broadcast: bool = False
    sent: int = 0
    """Interrupts that were sent."""
    broadcasts: int = 0
    """Broadcasts that were waited for."""
    spared: int = 0
    """CPUs that were not asked, for they hold nothing of the address space."""
    lazily: int = 0
    """CPUs that were not asked, for they had nothing to execute."""
    coalesced: int = 0
    """Requests that an interrupt on its way carried along."""
    deferred: int = 0
    """Operations that went on before all had acknowledged."""
    stale_blocks: int = 0
    """Blocks that CPUs executed between being asked and taking notice."""
    pages: int = 0
    """Single pages that CPUs dropped for others."""
    everything: int = 0
    """Full flushes that CPUs made for others."""

    FIGURES: ClassVar[tuple[str, ...]] = (
        "sent", "broadcasts", "spared", "lazily", "coalesced", "deferred", "stale_blocks", "pages",
        "everything",
    )  # fmt: skip


class Asked(Protocol):
    """What is waited for: a `mm.tlb.Flush`."""

    @property
    def pages(self) -> Sequence[int] | None:
        """Those to drop; None means everything."""

    @property
    def blocks(self) -> int:
        """How many the slowest CPU executed before it acknowledged."""


class Runner:
    """What the model must know of those who run CPUs. This one has each CPU execute all the time, and waits
    for nothing: flushes are carried out when a CPU is next let run.
    """

    def meanwhile(self, _index: int) -> int | None:
        """How many blocks that CPU executes before it takes notice; None: it does when it is next let run."""
        return None

    def executes(self, _index: int) -> bool:
        """Whether that CPU has a program that goes on."""
        return True

    def idles(self, _index: int) -> bool:
        """Whether that CPU has no program to execute. One that waits for others has one."""
        return False

    def hold(self, _index: int, _asked: Asked) -> Callable[[], None] | None:
        """That CPU, which works now, waits until the result is called. None: it cannot wait."""
        return None
