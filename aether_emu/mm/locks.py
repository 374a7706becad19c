"""The locks that a kernel of many CPUs would take around each operation, in virtual time. Modelled.

All CPUs share one thread of the host, so nothing here ever blocks. An operation is performed as always; then
it is said which locks it would have held, in which order and for how long, and `Locks.perform` tells when it
would have been over: a lock that another CPU has at that time is waited for, and counted.

    scheme   around a fault                       around mmap, munmap and their kin     allocator
    space    the space's lock                     the space's lock                      its lock, each frame
    area     the area's lock, shared;             the space's lock; each leaf           its lock, each batch
             then the leaf table's                table's while entries go
    leaf     likewise                             the locks of the leaf tables          its lock, each batch
                                                  of the range

"area" is Linux since 6.4: mmap_lock, locks of areas for faults, split page-table locks. "leaf" does without
a lock of the space: it is there only to choose an address, where the program names none.

To take a lock costs time, and more where another CPU had it last, for its cache line must come from there.
The line is with one CPU at a time, so that a lock which all only share is not free either.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from aether_emu.config import ClockCosts
from aether_emu.records import dataclass

KINDS = ("space", "area", "upper", "table", "frames")
"""Locks by what they guard: a space's areas, one area, the tables above the leaves, a leaf table, the frames
that the allocator has."""


@dataclass(slots=True)
class Counted:
    """What came of the locks of one kind. A lock is contended when who takes it must wait."""

    taken: int = 0
    contended: int = 0
    waited_ns: int = 0

    def as_dict(self) -> dict[str, int]:
        """As plain data."""
        return {"taken": self.taken, "contended": self.contended, "waited_ns": self.waited_ns}


@dataclass(frozen=True, slots=True)
class Step:
    """One lock of an operation. `lock` names it among those of its kind.

    `hold` is how many ns it is held, before the next one is taken; None: until the operation is over.
    """

    kind: str
    lock: Hashable
    hold: int | None = None
    shared: bool = False


class _Lock:
    """`free_at` and `read_until` are when its last holder, and the last of those that share it, let go;
    `line_at` is when its cache line can go on to another CPU than `holder`.
    """

    __slots__ = ("free_at", "holder", "line_at", "read_until")

    def __init__(self) -> None:
        self.free_at = self.read_until = self.line_at = 0
        self.holder = -1


def _is_of(lock: Hashable, space: int) -> bool:
    return isinstance(lock, tuple) and lock[0] == space


class Locks:
    """All locks of a machine. Operations are performed in the order of the times at which they begin."""

    def __init__(self, costs: ClockCosts) -> None:
        self.counted = {kind: Counted() for kind in KINDS}
        self._costs = costs
        self._locks: dict[tuple[str, Hashable], _Lock] = {}

    def known(self, kind: str, space: int) -> list[int]:
        """Those of a kind with a number in each space that somebody has taken in this one, ascending."""
        return sorted(
            lock[1]
            for each, lock in self._locks
            if each == kind and isinstance(lock, tuple) and lock[0] == space
        )

    def forget(self, space: int) -> None:
        """That address space is gone."""
        for key in [key for key in self._locks if key[1] == space or _is_of(key[1], space)]:
            del self._locks[key]

    def perform(self, cpu: int, begun: int, took: int, steps: Sequence[Step]) -> int:
        """When an operation of `cpu` is over that began at `begun` ns and takes `took` ns without locks."""
        at, left = begun, took
        held: list[tuple[_Lock, bool]] = []
        for step in steps:
            lock = self._locks.setdefault((step.kind, step.lock), _Lock())
            at = self._take(lock, self.counted[step.kind], cpu, at, shared=step.shared)
            if step.hold is None:
                held.append((lock, step.shared))
                continue
            at += step.hold
            left -= step.hold
            self._let_go(lock, at, shared=step.shared)
        at += max(0, left)
        for lock, shared in held:
            self._let_go(lock, at, shared=shared)
        return at

    def _take(self, lock: _Lock, counted: Counted, cpu: int, at: int, *, shared: bool) -> int:
        """From when on `cpu` has it, which asks for it at `at`."""
        is_own = lock.holder == cpu
        free = lock.free_at if shared else max(lock.free_at, lock.read_until)
        begin = max(at, free if is_own else max(free, lock.line_at))
        counted.taken += 1
        if begin > at:
            counted.contended += 1
            counted.waited_ns += begin - at
        lock.holder = cpu
        lock.line_at = begin + (self._costs.lock if is_own else self._costs.lock_transfer)
        return lock.line_at

    def _let_go(self, lock: _Lock, at: int, *, shared: bool) -> None:
        if shared:
            lock.read_until = max(lock.read_until, at)
        else:
            lock.free_at = max(lock.free_at, at)
