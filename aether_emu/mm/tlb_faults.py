"""Shootdowns that go wrong on purpose, for whoever looks for such faults: the parameter `tlb_fault`.

    drop         a CPU acknowledges, and never flushes
    late         a CPU acknowledges at once, and flushes some thousand blocks later
    narrow       the last page of several is left out
    free-early   frames are given back before the others have acknowledged
    no-break     a live entry becomes another one at once, where the ISA demands an absent one between
    no-wake      a CPU that had nothing to execute forgets to flush when it gets a task
    reuse-tag    a CPU uses a tag (PCID, ASID) that it has not flushed: another address space had it, or
                 its own was edited meanwhile. Modelled: the engine has no tags, so no program sees it

Each opportunity is taken with a chance of one in `rare`, by the stream "tlb_fault". An exploration decides
itself which are taken: none under the calm schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aether_emu.mm.tlb import Flush, Tlb

_LATE = 4096  # blocks


class FaultyTlb(Tlb):
    """A `Tlb` with one kind of fault, as `tlb_fault` names it. `struck` counts how often it has occurred."""

    def __init__(self, kind: str, rare: int, one_in: Callable[[int], bool], *tlb: Any) -> None:
        super().__init__(*tlb)
        self._kind, self._rare, self._one_in = kind, rare, one_in
        self.struck = 0

    def capture(self) -> dict[str, Any]:
        return super().capture() | {"struck": self.struck}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.struck = state["struck"]

    def _strikes(self, kind: str) -> bool:
        strikes = kind == self._kind and self._one_in(self._rare)
        self.struck += strikes
        return strikes

    @property
    def awaited(self) -> bool:
        return any(flush.waiting for queue in self._queues for flush in queue)

    def _ask(self, mask: int, pages: Sequence[int] | None, *, tables: bool = False) -> Flush | None:
        others = mask & ~(1 << self.running)
        if pages is not None and len(pages) > 1 and others and self._strikes("narrow"):
            pages = pages[:-1]
        return super()._ask(mask, pages, tables=tables)

    def _reach(self, flush: Flush, index: int, *, lazily: bool) -> None:
        executes = self.runner.executes(index)
        if executes and self._strikes("drop"):
            flush.acknowledge(index)
        elif executes and self._strikes("late"):
            flush.acknowledge(index)
            self._queues[index].append(Flush(flush.pages, 0))
            self.windows.setdefault(index, self._cpus[index].blocks + _LATE)
        else:
            super()._reach(flush, index, lazily=lazily)

    def _remember(self, index: int, pages: Sequence[int] | None) -> None:
        if not self._strikes("no-wake"):
            super()._remember(index, pages)

    def frees_early(self) -> bool:
        return self._strikes("free-early")

    def skips_break(self) -> bool:
        return self._strikes("no-break")

    def reuses_tag(self) -> bool:
        return self._strikes("reuse-tag")
