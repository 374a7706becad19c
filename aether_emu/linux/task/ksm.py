"""The scan that merges equal pages by and by (Linux: ksmd), in virtual time, and what root may tell it.

As `khugepaged` it is no task: between two turns the scheduler asks whether its time has come.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any

from aether_emu.errors import OutOfFrames, Refused
from aether_emu.mm.merging import MergeScan, figures, unmerge
from aether_emu.mm.space import AddressSpace

STOP, RUN, UNMERGE = 0, 1, 2
_IDLE = 3  # passes in which nothing was merged: one to learn the checksums, one to compare, one to be sure
_MS = 10**6
_LEAST_SHARING = 2
_MOST = (1 << 32) - 1


class Ksm:
    """Looks at the pages of `spaces` each `sleep` ms while `run` is 1. `due` is when it does next.

    `of_host` is the clock where time is the host's (`real_time`): a look takes some of that, so what was
    missed is not made up for, and it rests at least as long as it has looked. Else programs would starve.
    """

    def __init__(
        self, scan: MergeScan, sleep: int, spaces: Callable[[], Sequence[AddressSpace]], *, runs: bool
    ) -> None:
        self.scan, self.sleep, self._spaces = scan, sleep, spaces
        self.run = RUN if runs else STOP
        self.due = sleep * _MS
        self.of_host: Callable[[], int] | None = None

    def look(self, now: int) -> None:
        """Make up for what is due at `now`. Some passes in which there was nothing to do are enough."""
        if now < self.due:
            return
        spaces, idle_since, sleep = self._spaces(), self.scan.passes, max(self.sleep, 1) * _MS
        if self.of_host is not None:
            self.scan.look(spaces)
            ended = self.of_host()
            self.due = ended + max(sleep, ended - now)
            return
        while self.due <= now and self.scan.passes < idle_since + _IDLE:
            if self.scan.look(spaces):
                idle_since = self.scan.passes
            self.due += sleep
        if self.due <= now:
            self.due += -(-(now + 1 - self.due) // sleep) * sleep

    def figures(self) -> dict[str, int]:
        """What /sys/kernel/mm/ksm says of pages, by name."""
        shared, sharing = figures(self.scan.physical)
        return {
            "pages_shared": shared,
            "pages_sharing": sharing,
            "pages_unshared": self.scan.unshared,
            "pages_volatile": self.scan.volatile,
            "full_scans": self.scan.passes,
            "ksm_zero_pages": sum(len(self.scan.zeros_of(space)) for space in self._spaces()),
        }

    def set_run(self, wanted: int, now: int) -> None:
        """A write to `run`: stop, go on, or stop and give every page a frame of its own again."""
        if wanted > UNMERGE:
            raise Refused(errno.EINVAL, f"{wanted} is neither 0, 1 nor 2")
        if wanted == UNMERGE:
            self.run = STOP  # and stays so where memory is out
            for space in self._spaces():
                try:
                    unmerge(space, 0, space.limits.user_end)
                except OutOfFrames:
                    raise Refused(errno.ENOMEM, "no memory to unmerge") from None
            self.scan.forget()
        self.run = wanted
        self.due = max(self.due, now + self.sleep * _MS)

    def set_pages(self, wanted: int, _now: int) -> None:
        """A write to `pages_to_scan`."""
        self.scan.pages = max(min(wanted, _MOST), 1)

    def set_sleep(self, wanted: int, now: int) -> None:
        """A write to `sleep_millisecs`."""
        self.sleep = min(wanted, _MOST)
        self.due = now + self.sleep * _MS

    def set_zero_pages(self, wanted: int, _now: int) -> None:
        """A write to `use_zero_pages`."""
        if wanted > 1:
            raise Refused(errno.EINVAL, f"{wanted} is neither 0 nor 1")
        self.scan.zero_pages = bool(wanted)

    def set_most(self, wanted: int, _now: int) -> None:
        """A write to `max_page_sharing`: EBUSY while there are merged pages."""
        if wanted < _LEAST_SHARING or wanted > _MOST:
            raise Refused(errno.EINVAL, f"{wanted} pages cannot share one")
        if wanted != self.scan.most and figures(self.scan.physical)[0]:
            raise Refused(errno.EBUSY, "some pages share one already")
        self.scan.most = wanted

    def capture(self) -> dict[str, Any]:
        """What it was told, when it is due, and where it goes on."""
        return {"run": self.run, "sleep": self.sleep, "due": self.due, "scan": self.scan.capture()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.run, self.sleep, self.due = state["run"], state["sleep"], state["due"]
        self.scan.restore(state["scan"])
