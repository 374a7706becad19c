"""Virtual time: executed blocks at a documented cost each, plus the costs of events. Never the wall clock.

`HostClock` is the exception that somebody must ask for (`real_time`): no run with it can be repeated.

A run is repeatable only if its clocks are, so every clock a guest can read answers from here:

    guest time = costs of events so far + (blocks executed since the first read) * cost of a block

Blocks count from the *first guest read of any clock*, the origin, and not from the start. Counting
blocks slows the engine, so it counts only from when somebody needs the number, and a program must
not be able to tell whether somebody else (statistics, a trace) had needed it earlier. Events are
always counted, hence a first read sees the costs of the events before it and nothing else.

The costs are `ClockCosts` in `config`; they give plausible time, not a model of a processor.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from aether_emu.config import ClockCosts
from aether_emu.records import dataclass

EPOCH_NS = 1_893_456_000 * 10**9
"""2030-01-01T00:00:00Z in ns since 1970: the wall-clock time at which every machine starts.

It lies behind the times of the files that programs are shown, so that what they make is newer than what they
make it from, as make(1) and its kin expect.
"""

TSC_HZ = 10**9
"""Frequency of the x86_64 time-stamp counter: one cycle is one nanosecond of virtual time."""

LAST_NS = (1 << 63) - 1
"""The last time there is, in ns since the start (Linux KTIME_MAX, 292 years): clocks stand still then. A
deadline so late is never reached."""

COUNTER_HZ = 10**9
"""Frequency of ARM64's CNTVCT_EL0, as CNTFRQ_EL0 tells it: that of Armv8.6 (Arm ARM D12.1), a tick each ns.

The clocks of system calls and those that the vDSO makes of a counter are then the same to the last ns.
"""


@dataclass(slots=True)
class VirtualClock:
    """The one clock of a machine. `epoch_ns` is its wall-clock time at the start, in ns since 1970."""

    costs: ClockCosts
    event_ns: int = 0
    """Sum of the costs of all events since the start."""
    blocks: int = 0
    """The newest block count that the engine reported. Never decreases."""
    origin: int | None = None
    """The block count at the first guest read; None as long as the guest has read no clock."""
    idle_ns: int = 0
    """How much of it passed while no task could run: part of `event_ns`."""
    epoch_ns: int = EPOCH_NS

    def capture(self) -> dict[str, int | None]:
        """The time as plain data; the costs belong to the configuration."""
        return {
            "event_ns": self.event_ns,
            "blocks": self.blocks,
            "origin": self.origin,
            "idle_ns": self.idle_ns,
            "epoch_ns": self.epoch_ns,
        }

    def restore(self, state: dict[str, int | None]) -> None:
        """Show the captured time."""
        event_ns, blocks, idle_ns = state["event_ns"], state["blocks"], state["idle_ns"]
        assert event_ns is not None
        assert blocks is not None
        assert idle_ns is not None
        epoch_ns = state["epoch_ns"]
        assert epoch_ns is not None
        self.epoch_ns = epoch_ns
        self.event_ns, self.blocks, self.origin, self.idle_ns = event_ns, blocks, state["origin"], idle_ns

    def advance(self, cost_ns: int) -> None:
        """Charge an event (a fault, a system call): `cost_ns` >= 0 nanoseconds, at most until `LAST_NS`."""
        if cost_ns < 0:
            raise ValueError(f"virtual time cannot go back by {-cost_ns} ns")
        self.event_ns = min(self.event_ns + cost_ns, LAST_NS)

    def idle_until(self, deadline_ns: int) -> None:
        """No task can run before `deadline_ns`: let the time until then pass. Nothing if it is over."""
        idle = min(deadline_ns, LAST_NS) - self.now_ns
        if idle > 0:
            self.advance(idle)
            self.idle_ns += idle

    def go_to(self, time_ns: int) -> None:
        """Show the time of another CPU, which may be earlier. Nobody has used a processor in between."""
        step = time_ns - self.now_ns
        self.event_ns += step
        self.idle_ns += step

    def begin(self) -> None:
        """A run begins, or goes on."""

    def rest(self) -> None:
        """A run returns: until the next one nobody uses the processor."""

    def observe(self, blocks: int) -> int:
        """The guest reads a clock, at an engine count of `blocks` executed: guest time in ns.

        Every path by which a guest learns the time goes through here first (RDTSC, CNTVCT_EL0,
        clock_gettime, a timer's deadline), then may use the other readings. Raises ValueError if
        `blocks` is less than reported before.
        """
        if blocks < self.blocks:
            raise ValueError(f"block count went back from {self.blocks} to {blocks}")
        self.blocks = blocks
        if self.origin is None:
            self.origin = blocks
        return self.now_ns

    @property
    def now_ns(self) -> int:
        """Guest time in ns since the start, as of the newest block count. Before the first read: events."""
        if self.origin is None:
            return self.event_ns
        return min(self.event_ns + (self.blocks - self.origin) * self.costs.block, LAST_NS)

    @property
    def busy_ns(self) -> int:
        """How much of `now_ns` some task was running: the processor time of the only one there is."""
        return self.now_ns - self.idle_ns

    @property
    def realtime_ns(self) -> int:
        """Guest wall-clock time in ns since 1970 (CLOCK_REALTIME)."""
        return self.epoch_ns + self.now_ns

    @property
    def total_ns(self) -> int:
        """Virtual time in ns with all blocks counted, those before the first read too: for statistics only.

        It depends on when counting began, so nothing that a guest can see may depend on it.
        """
        return self.event_ns + self.blocks * self.costs.block

    def ticks(self, frequency_hz: int) -> int:
        """What a free-running counter of `frequency_hz` shows, 0 at the start, rounded down."""
        return self.now_ns * frequency_hz // 10**9


_FREE = ("fault_minor", "fault_copy", "fault_denied", "system_call", "flush_page", "flush_all", "kpti_switch")
_NEARLY_NOTHING = ClockCosts(block=1, **dict.fromkeys(_FREE, 0))
_LONGEST_SLEEP_NS = 10_000_000
"""How long a wait is at most before somebody looks whether the run is to end, or input has come."""


class HostClock(VirtualClock):
    """The host's time instead of the machine's own: events have no costs, and to wait takes its time.

    `elapsed` gives ns that never go back, `wall` ns since 1970, `sleep` lets seconds pass.
    """

    __slots__ = ("_elapsed", "_rested", "_rests", "_sleep", "_start")

    def __init__(
        self, elapsed: Callable[[], int], wall: Callable[[], int], sleep: Callable[[float], None]
    ) -> None:
        super().__init__(_NEARLY_NOTHING)
        # A whole second, since that is what programs are told; the rest of it has passed at the start.
        self.epoch_ns = wall() // 10**9 * 10**9
        self._elapsed, self._sleep = elapsed, sleep
        self._start = elapsed() - (wall() - self.epoch_ns)
        self._rested, self._rests = 0, True

    @property
    def now_ns(self) -> int:
        """See `VirtualClock.now_ns`."""
        return min(max(self._elapsed() - self._start, 0), LAST_NS)

    @property
    def busy_ns(self) -> int:
        """See `VirtualClock.busy_ns`: it stands still between two runs."""
        return (self._rested if self._rests else self.now_ns) - self.idle_ns

    @property
    def total_ns(self) -> int:
        """See `VirtualClock.total_ns`."""
        return self.now_ns

    def idle_until(self, deadline_ns: int) -> None:
        """No task can run before `deadline_ns`: sleep, but not so long that nobody hears of Ctrl-C."""
        before = self.now_ns
        left = min(deadline_ns - before, _LONGEST_SLEEP_NS)
        if left > 0:
            self._sleep(left / 10**9)
            self.idle_ns += self.now_ns - before

    def go_to(self, time_ns: int) -> None:
        """Nothing: the host's time is the same for all CPUs."""

    def begin(self) -> None:
        """See `VirtualClock.begin`."""
        self.idle_ns += self.now_ns - self._rested
        self._rests = False

    def rest(self) -> None:
        """See `VirtualClock.rest`."""
        self._rested, self._rests = self.now_ns, True

    def capture(self) -> dict[str, int | None]:
        """See `VirtualClock.capture`."""
        return super().capture() | {"event_ns": self.now_ns}

    def restore(self, state: dict[str, int | None]) -> None:
        """Go on where the captured clock stood: what has passed on the host since has not passed here."""
        super().restore(state)
        self._start, self._rested = self._elapsed() - self.event_ns, self.event_ns


def host_clock() -> HostClock:
    """That of the host."""
    return HostClock(time.monotonic_ns, time.time_ns, time.sleep)
