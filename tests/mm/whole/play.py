"""Steps: what workers are ordered to do, and what the model says must come of it.

A step is a tuple: its name, which worker, and numbers. Any step can be taken at any time, so that a list of
steps from which some were left out is a list of steps: what cannot be foreseen is passed over, and what
Linux refuses is tried.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.mm.whole.accesses import Accesses
from tests.mm.whole.apart import WATCHED_PAGES, Apart
from tests.mm.whole.checks import Checks
from tests.mm.whole.crew import Crew, Worker
from tests.mm.whole.guest import HANDLER, RETURNS, Outcome
from tests.mm.whole.mappings import Mappings
from tests.mm.whole.model import MERGEABLE, NEUTRAL, UNMERGEABLE, Thing, World
from tests.mm.whole.stage import (
    BASE,
    FILE_PAGES,
    FILES,
    MASK,
    MOST_LOCKED,
    SEGMENT_PAGES,
    SEGMENTS,
    Diverged,
    Step,
    Taking,
)
from tests.mm.whole.things import Things

_SA_FLAGS, _RESTORER = 0x4000_0004, 0x0400_0000  # SA_NODEFER, SA_SIGINFO; SA_RESTORER
_RLIMIT_MEMLOCK = 8


class Play(Accesses, Mappings, Things):
    """A machine, its model, and what has been played.

    Everything is looked at after so many steps (`checks_every`).
    """

    def __init__(
        self,
        isa: str,
        folder: Path,
        *,
        pages: int,
        huge: int,
        pooled: int = 0,
        pinned: bool = True,
        checks_every: int = 10,
        **options: Any,
    ) -> None:
        self.crew = Crew(isa, folder, **options)
        self.size = self.crew.machine.format.page_size
        self.world = World(self.size, pages, MOST_LOCKED)
        self.huge, self.checks_every = huge, checks_every
        self.words = (0, 0x1111, 0x2222, RETURNS[isa])
        """Few, so that pages are equal, and one that can be executed."""
        self.checks = Checks(self.crew.machine, self.world, BASE // self.size)
        self.pinned = pinned
        self.apart = Apart(self, pooled)
        self.files: list[Thing] = []
        self.segments: list[Thing] = []
        self.done: list[Step] = []
        self.refused = 0

    # ---- running

    def run(self, steps: Iterable[Step]) -> None:
        """Take the steps. What differs is raised with the steps so far."""
        try:
            self.crew.run(self._scenario(steps))
        except BaseException as error:
            error.add_note(f"after {len(self.done)} steps, the last: {self.done[-1:]}")
            raise

    def end(self) -> None:
        """Every process ends, and all is given back."""
        self.crew.run(self._ending())
        self.crew.machine.close()

    def _ending(self) -> Taking:
        yield from self.take(("exit", 0))
        for segment in self.segments:
            yield {self.worker(0): self.crew.call("shmctl", segment.number, 0, 0)}
        yield {self.worker(0): self.crew.call("exit_group", 0)}

    def _scenario(self, steps: Iterable[Step]) -> Taking:
        if not self.files:
            yield from self._prepare()
        for step in steps:
            self.done.append(step)
            yield from self.take(step)
            if len(self.done) % self.checks_every == 0:
                self.checks.all()

    def take(self, step: Step) -> Taking:
        """One step."""
        name, *arguments = step
        yield from getattr(self, name)(*arguments)

    def _prepare(self) -> Taking:
        crew, first = self.crew, self.crew.workers["a1"]
        assert first.process is not None
        for worker in crew.workers.values():
            yield {first: crew.call("pipe2", first.scratch, 0)}
            worker.reads, worker.writes = struct.unpack("<ii", first.process.read(first.scratch, 8))
        x86 = crew.isa == "x86_64"
        flags = _SA_FLAGS | _RESTORER if x86 else _SA_FLAGS
        action = (
            struct.pack("<4Q", HANDLER, flags, HANDLER, 0) if x86 else struct.pack("<3Q", HANDLER, flags, 0)
        )
        first.process.write(first.scratch, action)
        for signal in (7, 11):
            yield {first: crew.call("rt_sigaction", signal, first.scratch, 0, 8)}
        yield {first: crew.thread(first, crew.workers["a2"])}
        crew.born()
        for number, name in enumerate(("a1", "a2")):
            yield from self._stay(crew.workers[name], number)
        limit = MOST_LOCKED * self.size
        first.process.write(first.scratch, struct.pack("<2Q", limit, limit))
        yield {first: crew.call("prlimit64", 0, _RLIMIT_MEMLOCK, first.scratch, 0)}
        first.process.write(first.scratch, b"file\0")
        for _ in range(FILES):
            number = (yield {first: crew.call("memfd_create", first.scratch, 0)})[first].result
            yield {first: crew.call("ftruncate", number, FILE_PAGES * self.size)}
            self.files.append(Thing("file", FILE_PAGES, number=number))
        yield from self.apart.prepare(first)
        for _ in range(SEGMENTS):
            made = yield {first: crew.call("shmget", 0, SEGMENT_PAGES * self.size, 0o1600)}
            self.segments.append(Thing("segment", SEGMENT_PAGES, number=made[first].result))

    def _stay(self, worker: Worker, cpu: int) -> Taking:
        """Keep a thread on one CPU, so that two threads of a process are on two."""
        assert worker.process is not None
        if self.pinned:
            worker.process.write(worker.scratch, struct.pack("<Q", 1 << cpu))
            order = self.crew.call("sched_setaffinity", 0, 8, worker.scratch)
            self.agree((yield {worker: order})[worker], 0)

    # ---- processes, time, and what is told

    def fork(self, who: int) -> Taking:
        """The second process, while there is none, with a second thread of its own."""
        crew, parent = self.crew, self.worker(who)
        if "b" in self.world.spaces:
            return
        self.world.fork()
        self.apart.fork()
        one, two = crew.workers["b1"], crew.workers["b2"]
        outcomes = yield {parent: crew.fork(parent, one)}
        crew.born()
        if outcomes[parent].result <= 0:
            raise Diverged(f"fork: {outcomes[parent]}")
        yield {one: crew.thread(one, two)}
        crew.born()
        for number, worker in enumerate((two, one)):
            yield from self._stay(worker, number)

    def exit(self, who: int) -> Taking:
        """The second process ends, and the first waits for it."""
        if "b" not in self.world.spaces:
            return
        del self.world.spaces["b"]
        self.apart.exit()
        parent, one, two = (self.crew.workers[name] for name in ("a1", "b1", "b2"))
        leaver = (one, two)[who % 2]
        # The parent is woken first: who wakes them may be of the process that ends.
        yield {parent: self.crew.call("wait4", -1 & MASK, 0, 0, 0), leaver: self.crew.call("exit_group", 3)}
        self.crew.forget([one, two])

    def pooled(self, who: int, how: int, offset: int, which: int) -> Taking:
        """The huge page of a pool is mapped, unmapped, stored to or loaded."""
        worker = self.worker(who)
        if how < 2:
            yield from (self.apart.map, self.apart.unmap)[how](worker)
        else:
            yield from self.apart.touch(worker, offset, self.words[which] if how == 2 else None)

    def answered(self, who: int, how: int, number: int, source: int) -> Taking:
        """A page whose faults are answered is touched, brought, protected or dropped."""
        worker, apart = self.worker(who & 1), self.apart
        number %= WATCHED_PAGES
        if how < 2:
            yield from apart.access(worker, number, self.words[source % 4] if how else None)
        elif how == 2:
            yield from apart.copy(worker, number, source)
        elif how < 5:
            yield from (apart.zero, apart.drop)[how - 3](worker, number)
        else:
            yield from apart.protect(worker, number, how == 5)

    def away(self, who: int, number: int) -> Taking:
        """A page whose faults are answered goes to swap, if it may."""
        yield from self.apart.away(self.worker(who & 1), number % WATCHED_PAGES)

    def rest(self, who: int, milliseconds: int) -> Taking:
        """Time passes, in which others look for huge pages and equal ones."""
        worker = self.worker(who)
        assert worker.process is not None
        worker.process.write(worker.scratch, struct.pack("<2Q", 0, milliseconds * 1_000_000))
        yield from self.call(worker, 0, "nanosleep", worker.scratch, 0)

    def look(self, who: int) -> Taking:
        """/proc/self/pagemap, beside the entries."""
        name = self.space(self.worker(who))
        self.checks.pagemap(name, self.checks.processes()[name])
        return
        yield {}

    def forget(self, who: int) -> Taking:
        """No page counts as written (clear_refs 4)."""
        worker, name = self.worker(who), self.space(self.worker(who))
        assert worker.process is not None
        worker.process.write(worker.scratch, b"4\0/proc/self/clear_refs\0")
        crew = self.crew
        opened = (yield {worker: crew.call("openat", -100 & MASK, worker.scratch + 2, 1, 0)})[worker].result
        if opened < 0:
            raise Diverged(f"clear_refs cannot be opened: {opened}")
        for page in self.world.spaces[name].values():
            page.soft_dirty = False
        outcome = (yield {worker: crew.call("write", opened, worker.scratch, 1)})[worker]
        if crew.isa == "x86_64":
            self.agree(outcome, 1)
        yield {worker: crew.call("close", opened)}

    def both(self, one: Step, other: Step) -> Taking:
        """Two workers at the same time: `other` is an access beside, or advice that changes nothing."""
        left, right = (self.worker(each[1]) for each in (one, other))
        if left is right or not self._apart(one, other):
            yield from self.take(one)
            yield from self.take(other)
            return
        first, second = self.take(one), self.take(other)
        orders = [next(each, None) for each in (first, second)]
        if None in orders:
            for each, asked in ((first, orders[0]), (second, orders[1])):
                if asked is not None:
                    outcomes = yield asked
                    yield from _rest_of(each, outcomes)
            return
        outcomes = yield {**(orders[0] or {}), **(orders[1] or {})}
        for each, worker in ((first, left), (second, right)):
            yield from _rest_of(each, {worker: outcomes[worker]})

    def _apart(self, one: Step, other: Step) -> bool:
        """Whether the order in which two steps are taken cannot be told from what comes of them."""
        neutral = (*NEUTRAL, MERGEABLE, UNMERGEABLE)
        if other[0] == "madvise" and other[4] in neutral and one[0] in _ACCESSES:
            return True
        return one[0] in _ACCESSES and other[0] in _ACCESSES and not self._pages(one) & self._pages(other)

    def _pages(self, step: Step) -> set[object]:
        """What a step reads or writes: pages of a thing, or of a process."""
        name = self.space(self.worker(step[1]))
        count = step[3] if step[0] in ("stamp", "sum") else 1
        touched: set[object] = set()
        for number in range(step[2], step[2] + count):
            page = self.world.spaces[name].get(number)
            touched.add((name, number))
            if page is not None and page.thing is not None:
                touched.add((id(page.thing), page.index))
        return touched


_ACCESSES = ("load", "store", "stamp", "sum", "hammer")


def _rest_of(taking: Taking, outcomes: dict[Worker, Outcome]) -> Taking:
    """What is left of a step that has had its first outcomes."""
    try:
        orders = taking.send(outcomes)
        while True:
            orders = taking.send((yield orders))
    except StopIteration:
        return
