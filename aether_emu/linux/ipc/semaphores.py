"""System V semaphores (semop(2)): sets of numbers that processes raise, and lower once they are high enough.

    an array of operations --> all of it at once, or the task waits in the set's one queue
    any change             --> whoever waits is tried again, for zero first, else in the order of their coming

What a process did with SEM_UNDO is taken back at its end. Order and rules are those of Linux 6.6 (ipc/sem.c).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import NamedTuple

from aether_emu.errors import OutOfFrames, Refused
from aether_emu.linux.credentials import Actor
from aether_emu.linux.ipc import objects
from aether_emu.linux.ipc.identifiers import NO_WAIT, Identifiers, Memory, Shared
from aether_emu.linux.ipc.undo import Undo
from aether_emu.linux.task.wait import Restart, Wait
from aether_emu.waiting import Waiter, WaitQueue

MOST_SETS, MOST_IN_A_SET, MOST_IN_ALL, MOST_OPERATIONS = 32000, 32000, 1024000000, 500
"""Linux's SEMMNI, SEMMSL, SEMMNS, SEMOPM."""
HIGHEST = 32767
"""SEMVMX, and the most that is taken back at an end (SEMAEM)."""
UNDO = 0o10000
_COST = 64  # bytes of kernel memory for one, as Linux aligns them


class Operation(NamedTuple):
    """struct sembuf."""

    number: int
    change: int
    flags: int


class SemaphoreSet(Shared):
    """One set. `changers` changed each value last (processes), `operation_time` is in s since 1970."""

    layout = objects.SET

    def __init__(self, sets: SemaphoreSets, key: int, number: int, mode: int, size: int) -> None:
        super().__init__(sets.actor, key, number, mode)
        self.sets = sets
        self.values, self.changers = [0] * size, [0] * size
        self.operation_time = 0
        self.queue = WaitQueue()
        self.undos: dict[Undo, list[int]] = {}
        self.physical = sets.memory.physical
        self.bytes = objects.Bytes(self.physical, objects.SEM_SIZE * size)

    def take_memory(self) -> None:
        """The object, and one for each semaphore. Raises OutOfFrames, with nothing taken."""
        self.bytes.take()
        try:
            self.embody(nsems=len(self.values), sems=self.bytes.pieces[0] if self.bytes.pieces else 0)
        except OutOfFrames:
            self.bytes.free()
            raise
        for at in range(len(self.values)):
            self._set(at, 0, 0)

    def _set(self, at: int, value: int, pid: int) -> None:
        """A semaphore has a value, which a process gave it."""
        self.values[at], self.changers[at] = value, pid
        self.bytes.write(value.to_bytes(4, "little") + pid.to_bytes(4, "little"), at * objects.SEM_SIZE)

    # ---- operations

    def attempt(self, operations: Sequence[Operation], pid: int, undo: Undo | None) -> Operation | None:
        """Do all of them, or none: then what stands in the way. Refused(ERANGE)."""
        values: dict[int, int] = {}
        adjusted: dict[int, int] = {}
        before = self.undos.get(undo) if undo is not None else None
        for operation in operations:
            at, change, flags = operation
            value = values.get(at, self.values[at]) + change
            if value < 0 or (not change and value):
                return operation
            if value > HIGHEST:
                raise Refused(errno.ERANGE, f"semaphore {at} would be {value}")
            if flags & UNDO:
                adjusted[at] = adjusted.get(at, before[at] if before else 0) - change
                if not -HIGHEST - 1 <= adjusted[at] <= HIGHEST:
                    raise Refused(errno.ERANGE, f"so much of semaphore {at} can't be taken back")
            values[at] = value
        for at, value in values.items():
            self._set(at, value, pid)
        if adjusted:
            assert undo is not None, "who wants it taken back has where to note it"
            noted = self.undos.setdefault(undo, [0] * len(self.values))
            undo.sets[self] = None
            for at, value in adjusted.items():
                noted[at] = value
        return None

    def perform(self, operations: Sequence[Operation], pid: int, undo: Undo | None) -> Operation | None:
        """`attempt`, and whoever waits for what it has brought goes on."""
        blocking = self.attempt(operations, pid, undo)
        if blocking is None:
            self.operation_time = self.sets.now()
            if any(operation.change for operation in operations):
                self.look_again()
        return blocking

    def look_again(self) -> None:
        """Values have changed: whoever can go on does."""
        self._let_go_on(for_zero=True)
        while self._let_go_on(for_zero=False):
            self._let_go_on(for_zero=True)

    def _let_go_on(self, *, for_zero: bool) -> bool:
        """Try those who only wait for zero, or the others until one has changed a value. Whether one has."""
        for wait in self.waiting():
            if wait.for_zero is not for_zero:
                continue
            status = 0
            try:
                blocking = self.attempt(wait.operations, wait.pid, wait.undo)
            except Refused as refused:
                status = -refused.errno
            else:
                if blocking is not None:
                    wait.blocking = blocking
                    if not blocking.flags & NO_WAIT:
                        continue
                    status = -errno.EAGAIN
            if not status:
                self.operation_time = self.sets.now()
            wait.end(status)
            if not for_zero and not status:
                return True
        return False

    def waiting(self) -> list[SemaphoreWait]:
        """Who waits, in the order of their coming. Who is stopped does not."""
        waits = [getattr(waiter, "wait", None) for waiter in self.queue]
        return [wait for wait in waits if isinstance(wait, SemaphoreWait) and wait.stopped_at is None]

    def count_waiting(self, number: int, *, for_zero: bool) -> int:
        """How many wait for a semaphore to be zero, or to be higher (GETZCNT, GETNCNT)."""
        ways = [wait.blocking for wait in self.waiting()]
        return sum(each.number == number and (not each.change) is for_zero for each in ways)

    # ---- control

    def set_values(self, values: dict[int, int], pid: int) -> None:
        """SETVAL, SETALL: nothing of them is taken back any more."""
        for at, value in values.items():
            self._set(at, value, pid)
            for noted in self.undos.values():
                noted[at] = 0
        self.change_time = self.sets.now()
        self.look_again()

    def take_back(self, undo: Undo, pid: int) -> None:
        """The end of who noted what is to be taken back."""
        noted = self.undos.pop(undo, None)
        if noted is None:
            return
        for at, change in enumerate(noted):
            if change:
                self._set(at, min(max(self.values[at] + change, 0), HIGHEST), pid)
        self.operation_time = self.sets.now()
        self.look_again()

    def destroy(self) -> None:
        """IPC_RMID: whoever waits gets EIDRM."""
        self.sets.forget(self)
        for undo in self.undos:
            undo.sets.pop(self, None)
        for wait in self.waiting():
            wait.end(-errno.EIDRM)
        self.sets.used -= len(self.values)
        self.sets.memory.give_back(_COST * len(self.values))
        self.give_memory_back()

    def give_memory_back(self) -> None:
        """Nobody has it any more."""
        self.bytes.free()
        self.disembody()


class SemaphoreWait(Wait):
    """A task of process `pid` waits until all its operations can be done; who does them for it calls `end`.

    `blocking` is the operation that could not be done when it was last tried, `status` the call's result.
    """

    def __init__(
        self,
        task: Waiter,
        pid: int,
        semaphores: SemaphoreSet,
        operations: Sequence[Operation],
        blocking: Operation,
        undo: Undo | None,
        deadline: int | None,
    ) -> None:
        aim = f"{-blocking.change} or more" if blocking.change else "zero"
        what = f"semaphore {blocking.number} of set {semaphores.identifier} to be {aim}"
        super().__init__((semaphores.queue,), what, deadline=deadline, restart=Restart.NEVER)
        self.task, self.pid, self.semaphores, self.operations = task, pid, semaphores, operations
        self.blocking, self.undo = blocking, undo
        self.for_zero = all(not operation.change for operation in operations)
        self.status: int | None = None

    def end(self, status: int) -> None:
        """It is over, by 0 or an errno below 0."""
        self.status = status
        self.task.wake()


class SemaphoreSets(Identifiers[SemaphoreSet]):
    """All sets of a machine. `used` counts semaphores."""

    def __init__(self, actor: Actor, now: Callable[[], int], memory: Memory) -> None:
        super().__init__(actor, now, MOST_SETS)
        self.memory, self.used = memory, 0

    def make(self, key: int, size: int, mode: int) -> SemaphoreSet:
        """A new set. Refused(EINVAL, ENOSPC, ENOMEM)."""
        if not size:
            raise Refused(errno.EINVAL, "a set of no semaphores")
        if self.used + size > MOST_IN_ALL:
            raise Refused(errno.ENOSPC, f"there are {self.used} semaphores")
        self.memory.take(_COST * size)
        try:
            made = SemaphoreSet(self, key, self.take_number(), mode, size)
            made.take_memory()
        except (Refused, OutOfFrames):
            self.memory.give_back(_COST * size)
            raise
        self.used += size
        return self.add(made)
