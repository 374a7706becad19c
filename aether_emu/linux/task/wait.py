"""What a system call raises when it cannot be finished now.

    call --Wait(queues, deadline)--> Entry: the task waits, the CPU is left
    queue.wake(), the deadline, a signal --> the scheduler has the call made again, with the same arguments

While a call is made again, `task.wait` is the `Wait` it raised before: from there it knows its deadline
and how far it has come, so that nothing is done twice and no timeout starts over.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from enum import Enum

from aether_emu.waiting import WaitQueue


class Restart(Enum):
    """What becomes of a call whose wait a signal ends (signal(7); the codes ERESTART... of Linux).

    Only `NEVER` answers too when the process was stopped and goes on, without a handler: all others wait on.
    """

    BY_ACTION = "ERESTARTSYS"  # made anew after a handler with SA_RESTART
    ALWAYS = "ERESTARTNOINTR"  # made anew after any handler
    WITHOUT_HANDLER = "ERESTARTNOHAND"
    NEVER = "EINTR"


class Wait(Exception):
    """Make the call again when one of `queues` is woken, or when virtual time has reached `deadline`.

    `what` names it for people ("a pipe"). `deadline` is in ns of `VirtualClock.now_ns`, None is never.
    `progress` is what the call needs to go on, as plain numbers. `interrupted` is the answer when a
    signal ends the wait, unless `restart` has the call made anew: what was done so far is never done twice.
    With `pauses` the timeout stands still while the process is stopped. `woken` becomes true when a queue,
    and not time or a signal, ended it; `stopped_at` is when the process was stopped meanwhile, in ns.
    """

    ends_by_signal = True
    """Whether a signal with a handler ends the call."""
    ends_by_time = True
    """Whether the deadline wakes the task. If not, its call sees that time is up when it is made again."""
    answer: int | None = None
    """What the call answers afterwards, if it is done but for the wait; else it is made again."""
    signals = 0
    """Signals that wake it though they are blocked, bit N-1 for signal N."""

    def __init__(
        self,
        queues: Sequence[WaitQueue],
        what: str,
        *,
        deadline: int | None = None,
        progress: tuple[int, ...] = (),
        interrupted: int = -errno.EINTR,
        restart: Restart = Restart.BY_ACTION,
        pauses: bool = False,
    ) -> None:
        super().__init__(what)
        self.queues, self.what, self.deadline = tuple(queues), what, deadline
        self.progress, self.interrupted, self.pauses = progress, interrupted, pauses
        self.restart = restart if interrupted == -errno.EINTR else Restart.NEVER
        self.woken = False
        self.stopped_at: int | None = None


class Unfinished(Wait):
    """A long call lets others look (Ctrl-C, a timeout of the run) and goes on from `progress` at once.

    A deadline that the call had from a wait before stays; without one it has not come to its wait yet.
    """

    ends_by_signal = False

    def __init__(self, *progress: int, deadline: int | None = None) -> None:
        super().__init__((), "its own call", progress=progress, deadline=deadline)
        self.woken = True


class SignalWait(Wait):
    """A wait for one of some signals, blocked or not."""

    def __init__(self, signals: int, deadline: int | None) -> None:
        super().__init__((), "a signal", deadline=deadline, restart=Restart.NEVER)
        self.signals = signals


class Sent(Wait):
    """The call has sent its own process a signal, which ends it: afterwards it is made anew (ERESTARTSYS)."""

    def __init__(self, what: str) -> None:
        super().__init__((), what)


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
