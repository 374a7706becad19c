"""What a system call raises when it cannot be finished now.

    call --Wait(queues, deadline)--> Entry: the task waits, the CPU is left
    queue.wake(), the deadline, a signal --> the scheduler has the call made again, with the same arguments

While a call is made again, `task.wait` is the `Wait` it raised before: from there it knows its deadline
and how far it has come, so that nothing is done twice and no timeout starts over.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from aether_emu.waiting import WaitQueue


class Wait(Exception):
    """Make the call again when one of `queues` is woken, or when virtual time has reached `deadline`.

    `what` names it for people ("a pipe"). `deadline` is in ns of `VirtualClock.now_ns`, None is never.
    `progress` is what the call needs to go on, as plain numbers. `interrupted` is the answer when a
    signal ends the wait; with `restarts` the call is made anew instead where the handler has SA_RESTART
    (signal(7) lists those calls). `woken` becomes true when a queue, and not time or a signal, ended it.
    """

    ends_by_signal = True
    """Whether a signal with a handler ends the call."""
    ends_by_time = True
    """Whether the deadline wakes the task. If not, its call sees that time is up when it is made again."""

    def __init__(
        self,
        queues: Sequence[WaitQueue],
        what: str,
        *,
        deadline: int | None = None,
        progress: tuple[int, ...] = (),
        interrupted: int = -errno.EINTR,
        restarts: bool = False,
    ) -> None:
        super().__init__(what)
        self.queues, self.what, self.deadline = tuple(queues), what, deadline
        self.progress, self.interrupted, self.restarts = progress, interrupted, restarts
        self.woken = False


class Unfinished(Wait):
    """A long call lets others look (Ctrl-C, a timeout of the run) and goes on from `progress` at once.

    A deadline that the call had from a wait before stays; without one it has not come to its wait yet.
    """

    ends_by_signal = False

    def __init__(self, *progress: int, deadline: int | None = None) -> None:
        super().__init__((), "its own call", progress=progress, deadline=deadline)
        self.woken = True


class Sent(Wait):
    """The call has sent its own process a signal, which ends it: afterwards it is made anew (ERESTARTSYS)."""

    def __init__(self, what: str) -> None:
        super().__init__((), what, restarts=True)


class PageWait(Wait):
    """An access met a page that is on its way. A call keeps what it knew from `before`, its last wait."""

    ends_by_signal = ends_by_time = False

    def __init__(self, queue: WaitQueue, before: Wait | None) -> None:
        super().__init__(
            (queue,),
            "a page",
            deadline=None if before is None else before.deadline,
            progress=() if before is None else before.progress,
        )
