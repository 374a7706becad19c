"""What a task, a process, or its children have used (getrusage(2)), and the clock that measures it.

    Scheduler    another task runs    Kernel.account_to: what was used goes to the one before, and its process
    a call       wants to know now    Kernel.settle_books: likewise, and the same one goes on

Time is virtual: executed blocks and the costs of events, without what passed while no task could run.
"""

from __future__ import annotations

from copy import copy

from aether_emu.records import dataclass


@dataclass(slots=True)
class Usage:
    """Sums. `time` in ns, and how much of it was the `system`'s: what calls, faults and flushes cost. Faults
    that were resolved, and `major` ones, for which something had to be read; how often it waited, and how
    often its turn was over. Bytes that calls have `read` and `written`, and how many calls did: a process
    counts those of its tasks when they have ended.
    """

    time: int = 0
    faults: int = 0
    waits: int = 0
    preemptions: int = 0
    system: int = 0
    major: int = 0
    read: int = 0
    written: int = 0
    reads: int = 0
    writes: int = 0

    def add(self, other: Usage) -> None:
        """So much more."""
        self.time += other.time
        self.system += other.system
        self.faults += other.faults
        self.major += other.major
        self.waits += other.waits
        self.preemptions += other.preemptions
        if other.reads or other.writes:
            self.add_transfers(other)

    def add_transfers(self, other: Usage) -> None:
        """So many bytes and calls more."""
        self.read += other.read
        self.written += other.written
        self.reads += other.reads
        self.writes += other.writes

    def hand_transfers(self, process: Usage) -> None:
        """The end of a task: its process counts its transfers from now on."""
        process.add_transfers(self)
        self.read = self.written = self.reads = self.writes = 0

    def plus(self, other: Usage) -> Usage:
        """The sum of both, as another one."""
        total = copy(self)
        total.add(other)
        return total
