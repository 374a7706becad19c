"""Calls on a range of memory that may take long: in parts, so that the run can end between two of them."""

from __future__ import annotations

from collections.abc import Iterator

from aether_emu.linux.task.task import Task
from aether_emu.mm.cuts import cuts


def batches(task: Task, address: int, length: int, pages: int | None = None) -> Iterator[tuple[int, int]]:
    """(address, length) of the parts of a range, from where the call stood when it was last interrupted.

    With `pages` no part has more. What is no range of whole pages in the user half comes as it is, to be
    refused. Raises Unfinished(address) before a part if the run is to end.
    """
    mm = task.process.mm
    end = address + mm.page_up(length)
    if not address < end <= mm.limits.user_end or address & mm.page_size - 1:
        yield address, length
        return
    (low,) = task.progress or (address,)
    if pages is None:
        ends: Iterator[int] = iter((*cuts(mm, low, end), end))
    else:
        step = pages * mm.page_size
        ends = iter(range(min(low + step, end), end + step, step))
    for high in ends:
        task.checkpoint(low)
        yield low, min(high, end) - low
        low = high
