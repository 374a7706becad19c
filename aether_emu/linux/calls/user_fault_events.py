"""What a userfaultfd is told of fork, mremap, munmap and madvise, and who waits until it has been read.

    fork, munmap, mremap    done; then its maker waits (`settle`), and so does the child of a fork
    madvise, which drops    told before an area loses pages; its maker waits, then they go (`before_removal`)

Linux: fs/userfaultfd.c. Only SIGKILL ends such a wait. Whoever makes the call has no result before.
"""

from __future__ import annotations

from aether_emu.linux.abi.signal import SIGKILL
from aether_emu.linux.files.user_faults import EVENT_REMOVE, Event, Telling, UserFaultFile
from aether_emu.linux.task.ended import Ended
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import PageWait, Wait
from aether_emu.mm.allocation import LOCKED, TOLD_REMOVE, Area
from aether_emu.mm.mapping import MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_FREE, MADV_REMOVE

REMOVALS = (MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_FREE, MADV_REMOVE)
"""What madvise drops pages for."""


class EventWait(Wait):
    """For events to be read. With an `answer` the call is done; without, it goes on from `progress`."""

    ends_by_signal = ends_by_time = False

    def __init__(self, telling: Telling, answer: int | None, progress: tuple[int, ...] = ()) -> None:
        super().__init__((telling,), "a userfaultfd to be read", progress=progress)
        self.answer = answer


def settle(task: Task, answer: int, made: Task | None = None) -> int:
    """The answer of a call that is done; raises EventWait if somebody is to read first what it did.

    `made` is the task that a fork has made: it begins when the call ends.
    """
    if not task.process.mm.untold:
        return answer
    telling = _publish(task)
    if made is not None:
        process = made.process
        telling.given_up = lambda: process.end(Ended(signal=SIGKILL))
        made.start_waiting(PageWait(telling, None), None)
    raise EventWait(telling, answer)


def before_removal(task: Task, area: Area, start: int, end: int, advice: int) -> None:
    """Part of an area is about to lose its pages. Raises EventWait(start, 1) if that is to be read first."""
    watcher = area.watcher
    if not isinstance(watcher, UserFaultFile) or not watcher.wants(EVENT_REMOVE):
        return
    gives_up = advice in (MADV_DONTNEED, MADV_DONTNEED_LOCKED)
    if area.flags & LOCKED and advice != MADV_DONTNEED_LOCKED and not (area.huge_size and gives_up):
        return  # which is refused
    if advice == MADV_FREE and area.backing is not None:
        return
    if area.huge_size and gives_up:
        end &= -area.huge_size
        if start & area.huge_size - 1 or start == end:
            return
    watcher.tell(TOLD_REMOVE, start, end)
    raise EventWait(_publish(task), None, (start, 1))


def _publish(task: Task) -> Telling:
    """Let the events of the call in progress be read."""
    mm, telling = task.process.mm, Telling()
    events, mm.untold = mm.untold, []
    telling.maker = task
    for event in events:
        assert isinstance(event, Event), "nobody else watches"
        event.telling = telling
        telling.events.append(event)
    for event in list(telling.events):
        event.file.publish(event)
    return telling
