"""Timers: what is to happen at a moment of virtual time, whoever runs then (setitimer(2), timer_create(2)).

    Timer.set --> Timers, a heap of deadlines --> the scheduler ends a turn or idles there --> expire()

A timer that repeats is armed again when its expiry is *taken* (a signal is delivered, a timerfd is read), not
before: `forward` then says how many periods have passed. So the shortest period costs no more than the program
that asked for it, as under Linux (hrtimer_forward).

There are two time lines: the machine's, and the processor's (`VirtualClock.busy_ns`), which stands still while
no task can run. While nothing is armed nobody asks for anything here.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from aether_emu.clock import LAST_NS, VirtualClock

_Entry = tuple[int, int, "Timer"]


class Timer:
    """One timer, disarmed at first. `expire` is called at its deadline; it is then not armed any more.

    `deadline` is in ns of its time line, the last one if that has passed; None was never set. `interval` is
    its period in ns, 0 is none.
    """

    def __init__(self, timers: Timers, expire: Callable[[], None], *, of_processor: bool = False) -> None:
        self._timers, self.expire, self.of_processor = timers, expire, of_processor
        self.deadline: int | None = None
        self.interval = 0
        self.ticket = 0  # that of its entry in the heap; 0: not armed

    @property
    def armed(self) -> bool:
        """Whether it will expire."""
        return bool(self.ticket)

    @property
    def now(self) -> int:
        """ns on its time line."""
        return self._timers.now(of_processor=self.of_processor)

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

    def capture(self) -> tuple[int | None, int, bool]:
        """Deadline, period, and whether it is armed."""
        return self.deadline, self.interval, self.armed

    def restore(self, state: tuple[int | None, int, bool]) -> None:
        """Take over what `capture` gave."""
        self.deadline, self.interval, armed = state
        if armed:
            self.arm()


class Timers:
    """The armed timers of a machine. `read` tells the time, and begins to count it.

    `came` is called when one was armed: a task that runs without an end in sight gets one.
    """

    def __init__(self, clock: VirtualClock, read: Callable[[], int]) -> None:
        self._clock, self._read = clock, read
        self._heaps: dict[bool, list[_Entry]] = {False: [], True: []}
        self._tickets = 0
        self.armed = 0
        self.came: Callable[[], None] | None = None

    def now(self, *, of_processor: bool = False) -> int:
        """ns on one of the time lines."""
        now = self._read()
        return self._clock.busy_ns if of_processor else now

    def add(self, timer: Timer) -> None:
        """It is armed."""
        assert timer.deadline is not None, "it was set"
        self._read()  # from now on executed blocks count
        self._tickets += 1
        self.armed += 1
        timer.ticket = self._tickets
        heappush(self._heaps[timer.of_processor], (timer.deadline, timer.ticket, timer))
        if self.came is not None:
            self.came()

    def remove(self, timer: Timer) -> None:
        """It is not armed any more, if it was. Its entry is thrown away when it comes up."""
        if timer.ticket:
            timer.ticket = 0
            self.armed -= 1
            heap = self._heaps[timer.of_processor]
            if len(heap) > 2 * self.armed + 64:
                heap[:] = sorted(entry for entry in heap if entry[2].ticket == entry[1])

    def _first(self, of_processor: bool) -> int | None:
        heap = self._heaps[of_processor]
        while heap and heap[0][2].ticket != heap[0][1]:
            heappop(heap)
        return heap[0][0] if heap else None

    def earliest(self, *, idle: bool) -> int | None:
        """The first deadline, in ns of the machine; None if there is none. `idle`: while nobody runs."""
        first, other = self._first(False), None if idle else self._first(True)
        if other is None:
            return first
        other += self._clock.idle_ns
        return other if first is None else min(first, other)

    def expire(self) -> bool:
        """Let those expire whose time has come by `VirtualClock.now_ns`. Whether there was one."""
        any_did = False
        for of_processor, heap in self._heaps.items():
            now = self._clock.busy_ns if of_processor else self._clock.now_ns
            due = []
            while (first := self._first(of_processor)) is not None and first <= now:
                due.append(heappop(heap)[2])
                due[-1].ticket = 0
                self.armed -= 1
            for timer in due:
                any_did = True
                timer.expire()
        return any_did

    def look(self) -> bool:
        """Read the clock, then `expire`."""
        self._read()
        return self.expire()
