"""How a task is scheduled: its policy, its priority, and what its nice value means (sched(7))."""

from __future__ import annotations

from aether_emu.records import dataclass

NORMAL, FIFO, ROUND_ROBIN, BATCH, IDLE, DEADLINE = 0, 1, 2, 3, 5, 6
REAL_TIME = (FIFO, ROUND_ROBIN)
POLICIES = (NORMAL, FIFO, ROUND_ROBIN, BATCH, IDLE, DEADLINE)
LEAST_NICE, MOST_NICE = -20, 19
NICE_0_WEIGHT = 1024
_IDLE_WEIGHT = 3
_STEP = 1.25  # what one nice level less gives of the CPU


@dataclass(frozen=True, slots=True)
class Scheduling:
    """`priority` is 1 to 99 for real-time policies, else 0. `resets`: a child begins as an ordinary task."""

    policy: int = NORMAL
    priority: int = 0
    nice: int = 0
    resets: bool = False

    @property
    def weight(self) -> int:
        """Its share of the CPU, beside `NICE_0_WEIGHT` of an ordinary task."""
        return _IDLE_WEIGHT if self.policy == IDLE else round(NICE_0_WEIGHT / _STEP**self.nice)

    def of_child(self) -> Scheduling:
        """What a new task of it begins with."""
        if not self.resets:
            return self
        if self.policy in (*REAL_TIME, DEADLINE):
            return Scheduling()
        return Scheduling(self.policy, nice=max(self.nice, 0))


ORDINARY = Scheduling()
