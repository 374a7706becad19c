"""Timers: what is to happen at a moment of virtual time, whoever runs then (setitimer(2), timer_create(2)).

    Timer.set --> Timers, a heap of deadlines --> the scheduler ends a turn or idles there --> expire()

A timer that repeats is armed again when its expiry is *taken* (a signal is delivered, a timerfd is read), not
before: `forward` then says how many periods have passed. So the shortest period costs no more than the
program that asked for it, as under Linux (hrtimer_forward).

A timer measures the machine's time, or the processor's time of a process or thread, which its `meter` reads.
While nothing is armed nobody asks for anything here.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from aether_emu.clock import LAST_NS, VirtualClock

_FAR, _CALL = 1 << 16, 1 << 10  # ns: the longest time between two glances, and what a call costs at most then
State = tuple[int | None, int, bool]


class Timer:
    """One timer, disarmed at first. `expire` is called at its deadline; it is then not armed any more.

    `meter` reads the time that it measures, in ns; None is the machine's. `deadline` is a time of that, the
    last one if it has passed; None was never set. `interval` is its period in ns, 0 is none.
    """

    def __init__(
        self, timers: Timers, expire: Callable[[], None], meter: Callable[[], int] | None = None
    ) -> None:
        self._timers, self.expire, self.meter = timers, expire, meter
        self.deadline: int | None = None
        self.interval = 0
        self.ticket = 0  # that of its entry in the heap; 0: not armed

    @property
    def armed(self) -> bool:
        """Whether it will expire."""
        return bool(self.ticket)

    @property
    def now(self) -> int:
        """The time that it measures, in ns."""
        return self._timers.read() if self.meter is None else self.meter()

    def set(self, deadline: int | None, interval: int = 0) -> None:
        """Let it expire at `deadline`, or never."""
        self.disarm()
        self.deadline, self.interval = deadline, interval
        self.arm()

    def arm(self) -> None:
        """Wait for the deadline. The end of time is never reached."""
        if self.deadline is not None and self.deadline < LAST_NS and not self.ticket:
            self._timers.add(self)

    def disarm(self) -> None:
        """It does not expire. The deadline is kept."""
        self._timers.remove(self)

    def forward(self, now: int) -> int:
        """Move the deadline on by whole periods until it lies behind `now`; by how many. It has a period."""
        assert self.deadline is not None, "it was set"
        periods = max(0, (now - self.deadline) // self.interval + 1)
        self.deadline = min(self.deadline + periods * self.interval, LAST_NS)
        return periods

    def left(self) -> int:
        """ns until it expires, at least one while it is armed; 0 if it is not."""
        if self.deadline is None or not (self.ticket or self.deadline >= LAST_NS):
            return 0
        return max(1, self.deadline - self.now)

    def capture(self) -> State:
        """Deadline, period, and whether it is armed."""
        return self.deadline, self.interval, self.armed

    def restore(self, state: State) -> None:
        """Take over what `capture` gave."""
        self.deadline, self.interval, armed = state
        if armed:
            self._timers.insert(self)


class Timers:
    """The armed timers of a machine. `read` tells the time, and begins to count it.

    `came` is called when one was armed: a task that runs without an end in sight gets one.
    """

    def __init__(self, clock: VirtualClock, read: Callable[[], int]) -> None:
        self._clock, self.read = clock, read
        self._heap: list[tuple[int, int, Timer]] = []
        self._metered: dict[Timer, None] = {}
        self._tickets = 0
        self.armed = 0
        self.unseen = 0  # calls that return before `glance` looks again
        self.came: Callable[[], None] | None = None

    def add(self, timer: Timer) -> None:
        """It is armed: from now on executed blocks count, and no task runs past the deadline."""
        self.read()
        self.insert(timer)
        self.unseen = 0
        if self.came is not None:
            self.came()

    def insert(self, timer: Timer) -> None:
        """It is armed again on a machine that is restored: its clock counts already, and nobody runs."""
        assert timer.deadline is not None, "it was set"
        self._tickets += 1
        self.armed += 1
        timer.ticket = self._tickets
        if timer.meter is None:
            heappush(self._heap, (timer.deadline, timer.ticket, timer))
        else:
            self._metered[timer] = None

    def remove(self, timer: Timer) -> None:
        """It is not armed any more, if it was. Its entry is thrown away when it comes up."""
        if not timer.ticket:
            return
        timer.ticket = 0
        self.armed -= 1
        self._metered.pop(timer, None)
        if len(self._heap) > 2 * self.armed + 64:
            self._heap = sorted(entry for entry in self._heap if entry[2].ticket == entry[1])

    def _first(self) -> int | None:
        heap = self._heap
        while heap and heap[0][2].ticket != heap[0][1]:
            heappop(heap)
        return heap[0][0] if heap else None

    def earliest(self, *, idle: bool) -> int | None:
        """The first deadline, in ns of the machine; None if there is none. `idle`: while nobody runs."""
        first, now = self._first(), self._clock.now_ns
        if idle or not self._metered:
            return first
        other = now + min(max(0, (timer.deadline or 0) - timer.now) for timer in self._metered)
        return other if first is None else min(first, other)

    def expire(self) -> bool:
        """Let those expire whose time has come by `VirtualClock.now_ns`. Whether there was one."""
        due = []
        while (first := self._first()) is not None and first <= self._clock.now_ns:
            due.append(heappop(self._heap)[2])
            self.remove(due[-1])
        for timer in [each for each in self._metered if (each.deadline or 0) <= each.now]:
            due.append(timer)
            self.remove(timer)
        for timer in due:
            timer.expire()
        return bool(due)

    def glance(self) -> None:
        """A system call returns: `look`, more seldom while the first deadline is far."""
        if self.unseen:
            self.unseen -= 1
            return
        self.look()
        first = self.earliest(idle=False)
        if first is not None:
            self.unseen = max(0, min(first - self._clock.now_ns, _FAR)) // _CALL

    def look(self) -> bool:
        """Read the clock, then `expire`."""
        self.read()
        return self.expire()
