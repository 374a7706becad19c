"""Steps: what workers are ordered to do, and what the model says must come of it.

A step is a tuple: its name, which worker, and numbers. Any step can be taken at any time, so that a list of
steps from which some were left out is a list of steps: what cannot be foreseen is passed over, and what
Linux refuses is tried.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

from tests.mm.whole.apart import WATCHED_PAGES, Apart
from tests.mm.whole.checks import Checks
from tests.mm.whole.crew import Crew, Orders, Worker
from tests.mm.whole.guest import (
    ADD,
    HANDLER,
    JUMP,
    LOAD,
    RETURNS,
    STAMP,
    STORE,
    SUM,
    TELL,
    Order,
    Outcome,
)
from tests.mm.whole.model import ANY, EXECUTE, MERGEABLE, NEUTRAL, READ, UNMERGEABLE, WRITE, Thing, World

Step = tuple[Any, ...]
Taking = Generator[Orders, dict[Worker, Outcome], None]
BASE = 0x20_0000_0000
FILES, SEGMENTS, FILE_PAGES, SEGMENT_PAGES = 2, 2, 6, 5
MOST_LOCKED = 24
SEALABLE = 4
"""Pages at the end of the window that are sealed now and then; nothing else is."""
_MASK = (1 << 64) - 1
_SHARED, _PRIVATE, _FIXED, _ANONYMOUS = 1, 2, 0x10, 0x20
_LOCKED, _NORESERVE, _POPULATE, _NOREPLACE = 0x2000, 0x4000, 0x8000, 0x100000
_MAYMOVE, _MOVED, _KEPT = 1, 2, 4
_SA_FLAGS, _RESTORER = 0x4000_0004, 0x0400_0000  # SA_NODEFER, SA_SIGINFO; SA_RESTORER
_RLIMIT_MEMLOCK = 8
_PUNCH_KEEPING_SIZE = 3


class Diverged(AssertionError):
    """The machine did something else than the model."""


class Play:
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

    def worker(self, who: int) -> Worker:
        """The one of four that is meant, or one of the first process while there is no other."""
        names = ("a1", "a2", "b1", "b2")
        name = names[who % 4]
        return self.crew.workers[name if name[0] in self.world.spaces else names[who % 2]]

    def space(self, worker: Worker) -> str:
        """The model's name of its process."""
        return worker.name[0]

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

    # ---- judging

    def address(self, number: int) -> int:
        """Of a page of the window."""
        return BASE + number * self.size

    def agree(self, outcome: Outcome, expected: object) -> None:
        """`expected` is a result, (signal, code, address), or nothing that is foreseen."""
        if isinstance(expected, tuple):
            got: object = (outcome.signal, outcome.code, outcome.address)
            if got != expected:
                raise Diverged(f"{outcome}, not the signal {expected}")
        elif expected is not ANY and (outcome.signal or outcome.result != expected):
            raise Diverged(f"{outcome}, not {expected}")
        elif outcome.signal:
            raise Diverged(f"{outcome} of a system call")

    def _call(self, worker: Worker, expected: int | None, name: str, *arguments: int) -> Taking:
        """A system call whose answer 0 the model has given for whatever is no error."""
        outcome = (yield {worker: self.crew.call(name, *(each & _MASK for each in arguments))})[worker]
        if expected is not ANY and expected < 0:
            self.refused += 1
        self.agree(outcome, expected)

    def fits(self, at: int, count: int) -> int:
        """As much of a range as is in the window."""
        return max(0, min(count, self.world.end - at))

    def free_to_change(self, name: str, at: int, count: int) -> bool:
        """Whether what happens there is foreseen as to sealed pages: none, or all."""
        pages = self.world.spaces[name]
        sealed = [n in pages and pages[n].sealed for n in range(at, at + count)]
        return all(sealed) or not any(sealed)

    # ---- loads and stores

    def load(self, who: int, at: int, offset: int) -> Taking:
        worker, name = self.worker(who), self.space(self.worker(who))
        refused = self.world.access(name, at, READ)
        address = self.address(at) + offset
        outcome = (yield {worker: Order(LOAD, (address,))})[worker]
        if refused is not None:
            self.agree(outcome, (*refused, address))
        elif outcome.signal or not self.world.saw(
            self.world.spaces[name][at], offset, outcome.result & _MASK
        ):
            raise Diverged(f"{name}: page {at} reads {outcome}")

    def store(self, who: int, at: int, offset: int, which: int) -> Taking:
        worker, name, word = self.worker(who), self.space(self.worker(who)), self.words[which]
        address = self.address(at) + offset
        refused = self.world.access(name, at, WRITE)
        if refused is None:
            self.world.store(name, at, offset, word)
        outcome = (yield {worker: Order(STORE, (address, word))})[worker]
        self.agree(outcome, 0 if refused is None else (*refused, address))

    def add(self, who: int, at: int, offset: int) -> Taking:
        """Two threads of a process add to one word, at the same time."""
        worker, name = self.worker(who), self.space(self.worker(who))
        other = self.worker(who ^ 1)
        address, refused = self.address(at) + offset, self.world.access(name, at, WRITE)
        refused = self.world.access(name, at, READ) or refused  # ARM64 loads first; so does the engine
        if refused is None:
            page = self.world.spaces[name][at]
            if page.blurred or len(self.world.contents(page)) != 1:
                return
            before = int.from_bytes(self.world.contents(page)[0][offset : offset + 8], "little")
            self.world.store(name, at, offset, before + 4 & _MASK)
        outcomes = yield {worker: Order(ADD, (address, 1)), other: Order(ADD, (address, 3))}
        if refused is not None:
            for outcome in outcomes.values():
                self.agree(outcome, (*refused, address))
            return
        got = [outcomes[each].result & _MASK for each in (worker, other)]
        if any(each.signal for each in outcomes.values()) or got not in (
            [before, before + 1 & _MASK],
            [before + 3 & _MASK, before],
        ):
            raise Diverged(f"{name}: page {at} had {before}, and two threads saw {got}")

    def stamp(self, who: int, at: int, count: int, which: int, adds: int) -> Taking:
        """A store to each of many pages, of a word that grows, up to the first page that refuses it."""
        worker, name, word = self.worker(who), self.space(self.worker(who)), self.words[which]
        count = self.fits(at, count)
        refused: tuple[int, int, int] | None = None
        if not count:
            return
        for number in range(at, at + count):
            signal = self.world.access(name, number, WRITE)
            if signal is not None:
                refused = (*signal, self.address(number))
                break
            self.world.store(name, number, 0, word + adds * (number - at))
        order = Order(STAMP, (self.address(at), word, count, self.size, adds))
        self.agree((yield {worker: order})[worker], 0 if refused is None else refused)

    def sum(self, who: int, at: int, count: int) -> Taking:
        """A load of each of many pages."""
        worker, name = self.worker(who), self.space(self.worker(who))
        count, total, sure = self.fits(at, count), 0, True
        refused: tuple[int, int, int] | None = None
        if not count:
            return
        for number in range(at, at + count):
            signal = self.world.access(name, number, READ)
            if signal is not None:
                refused = (*signal, self.address(number))
                break
            page = self.world.spaces[name][number]
            heads = {each[:8] for each in self.world.contents(page)}
            sure = sure and len(heads) == 1 and not page.blurred
            total = (total << 1 | total >> 63) + int.from_bytes(heads.pop(), "little") & _MASK
        outcome = (yield {worker: Order(SUM, (self.address(at), 0, count, self.size))})[worker]
        if refused is not None:
            self.agree(outcome, refused)
        elif outcome.signal or (sure and outcome.result & _MASK != total):
            raise Diverged(f"{name}: pages {at} to {at + count} add up to {outcome}, not {total}")

    def jump(self, who: int, at: int) -> Taking:
        """A call of the code in a page, where it returns at once or may not be executed."""
        worker, name = self.worker(who), self.space(self.worker(who))
        refused = self.world.access(name, at, EXECUTE)
        if refused is None:
            page = self.world.spaces[name][at]
            heads = {each[:8] for each in self.world.contents(page)}
            if page.blurred or heads != {self.words[3].to_bytes(8, "little")}:
                return
        outcome = (yield {worker: Order(JUMP, (self.address(at),))})[worker]
        self.agree(outcome, 0 if refused is None else (*refused, self.address(at)))

    # ---- mappings

    def mmap(self, who: int, at: int, count: int, protection: int, source: int, more: int) -> Taking:
        """`source`: 0 and 1 private, 2 shared, else a file, shared or private. `more`: bits of options."""
        worker, name = self.worker(who), self.space(self.worker(who))
        count = self.fits(at, count)
        locked, populates, replaces = bool(more & 8), bool(more & 16), more & 7 != 0
        if locked or populates:
            count = min(count, 16)
        if not count or not self.free_to_change(name, at, count):
            return
        flags, thing, index, fd = _PRIVATE, None, 0, -1
        if source == 2:
            flags, thing = _SHARED, Thing("anonymous", count)
        elif source > 2:
            thing, index = self.files[source % FILES], more >> 5 & 3
            flags, fd = (_SHARED, _PRIVATE)[source // FILES % 2], thing.number
            count = min(count, 8)
        expected = self.world.mmap(
            name, at, count, protection, thing=thing, index=index, shared=flags == _SHARED,
            locked=locked, populates=populates, replaces=replaces,
        )  # fmt: skip
        flags |= _FIXED if replaces else _NOREPLACE
        flags |= (
            _ANONYMOUS * (source <= 2) | _LOCKED * locked | _POPULATE * populates | _NORESERVE * (more & 1)
        )
        address, length = self.address(at), count * self.size
        yield from self._call(
            worker, expected or address, "mmap", address, length, protection, flags, fd, index * self.size
        )

    def munmap(self, who: int, at: int, count: int) -> Taking:
        yield from self._edit("munmap", who, at, count)

    def mprotect(self, who: int, at: int, count: int, protection: int) -> Taking:
        yield from self._edit("mprotect", who, at, count, protection)

    def madvise(self, who: int, at: int, count: int, advice: int) -> Taking:
        yield from self._edit("madvise", who, at, count, advice)

    def _edit(self, call: str, who: int, at: int, count: int, *more: int) -> Taking:
        worker, name = self.worker(who), self.space(self.worker(who))
        count = self.fits(at, count)
        if not count or not self.free_to_change(name, at, count):
            return
        expected = getattr(self.world, call)(name, at, count, *more)
        yield from self._call(worker, expected, call, self.address(at), count * self.size, *more)

    def mremap(self, who: int, at: int, old: int, new: int, to: int, how: int) -> Taking:
        """`how`: 0 in place, 1 to a place, 2 to a place and the old one stays."""
        worker, name = self.worker(who), self.space(self.worker(who))
        old, target = self.fits(at, old), to if how else None
        new = old if how == 2 else self.fits(to if how else at, new)
        pages = self.world.spaces[name]
        if not old or not new or not self.free_to_change(name, at, max(old, new)):
            return
        if target is not None and (
            self.fits(target, new) < new or not self.free_to_change(name, target, new)
        ):
            return
        segment = any(n in pages and _is_segment(pages[n].thing) for n in range(at, at + old))
        if segment and new > old:
            return
        snapshot = self._foreseen(name, at, old, new, target)
        if not snapshot:
            return
        expected = self.world.mremap(name, at, old, new, target, keeps=how == 2)
        assert expected is not ANY
        flags = (0, _MAYMOVE | _MOVED, _MAYMOVE | _MOVED | _KEPT)[how]
        place = self.address(at if target is None else target)
        yield from self._call(
            worker,
            expected or place,
            "mremap",
            self.address(at),
            old * self.size,
            new * self.size,
            flags,
            place,
        )

    def _foreseen(self, name: str, at: int, old: int, new: int, to: int | None) -> bool:
        """Whether it is known if the pages that would move are in one area."""
        pages = self.world.spaces[name]
        row = [pages.get(n) for n in range(at, at + min(old, new))]
        here = [page for page in row if page is not None]
        if new == old and to is None:
            return True
        alike = [page for page in here if page.area == here[0].area]
        return len(alike) < len(row) or all(page.maybe == row[0].maybe for page in here)  # type: ignore[union-attr]

    def mlock(self, who: int, at: int, count: int, how: int) -> Taking:
        """mlock, mlock2 with MLOCK_ONFAULT, or munlock."""
        worker, name = self.worker(who), self.space(self.worker(who))
        count = self.fits(at, count)
        if not count:
            return
        address, length = self.address(at), count * self.size
        if how:
            expected = self.world.mlock(name, at, count, how)
            yield from self._call(worker, expected, "mlock2", address, length, how - 1)
        else:
            yield from self._call(worker, self.world.munlock(name, at, count), "munlock", address, length)

    def msync(self, who: int, at: int, count: int, how: int) -> Taking:
        worker, name = self.worker(who), self.space(self.worker(who))
        count = self.fits(at, count)
        if count:
            expected = self.world.msync(name, at, count, invalidates=bool(how & 2))
            yield from self._call(worker, expected, "msync", self.address(at), count * self.size, how)

    def mincore(self, who: int, at: int, count: int) -> Taking:
        worker, name = self.worker(who), self.space(self.worker(who))
        count = self.fits(at, count)
        if count:
            expected = self.world.mincore(name, at, count)
            yield from self._call(
                worker, expected, "mincore", self.address(at), count * self.size, worker.scratch
            )

    def mseal(self, who: int, first: int, count: int) -> Taking:
        """Of the window's last pages only: there is no way back."""
        worker, name = self.worker(who), self.space(self.worker(who))
        at = self.world.end - SEALABLE + first % SEALABLE
        count = self.fits(at, count)
        expected = self.world.mseal(name, at, count)
        yield from self._call(worker, expected, "mseal", self.address(at), count * self.size, 0)

    # ---- segments and files

    def shmat(self, who: int, at: int, which: int, replaces: int) -> Taking:
        worker, name, segment = self.worker(who), self.space(self.worker(who)), self.segments[which]
        if self.fits(at, segment.size) < segment.size or not self.free_to_change(name, at, segment.size):
            return
        taken = any(n in self.world.spaces[name] for n in range(at, at + segment.size))
        if self.world.has_sealed(name, at, at + segment.size):
            return
        expected = -errno.EINVAL
        if replaces or not taken:
            expected = self.world.mmap(name, at, segment.size, READ | WRITE, thing=segment, shared=True)
        address = self.address(at)
        yield from self._call(
            worker, expected or address, "shmat", segment.number, address, 0o40000 if replaces else 0
        )

    def shmdt(self, who: int, at: int) -> Taking:
        """At the place where the segment of a page was attached, or where the page is."""
        worker, name = self.worker(who), self.space(self.worker(who))
        page = self.world.spaces[name].get(at)
        base = at - page.index if page is not None and _is_segment(page.thing) else at
        if base < 0:
            return
        pages = self.world.spaces[name]
        size = SEGMENT_PAGES
        if any(n in pages and pages[n].sealed for n in range(base, min(base + size, self.world.end))):
            return
        expected = self.world.detach(name, base)
        yield from self._call(worker, expected, "shmdt", self.address(base))

    def truncate(self, who: int, which: int, size: int) -> Taking:
        worker, file = self.worker(who), self.files[which]
        self.world.truncate(file, size)
        yield from self._call(worker, 0, "ftruncate", file.number, size * self.size)

    def punch(self, who: int, which: int, index: int, count: int) -> Taking:
        worker, file = self.worker(who), self.files[which]
        self.world.punch(file, index, count)
        yield from self._call(
            worker, 0, "fallocate", file.number, _PUNCH_KEEPING_SIZE, index * self.size, count * self.size
        )

    def pwrite(self, who: int, at: int, which: int, index: int) -> Taking:
        """The first word of a page goes into a file."""
        worker, name, file = self.worker(who), self.space(self.worker(who)), self.files[which]
        expected = 8
        if self.world.access(name, at, READ) is not None:
            expected = -errno.EFAULT
        else:
            page = self.world.spaces[name][at]
            heads = {each[:8] for each in self.world.contents(page)}
            if len(heads) > 1 or page.blurred:
                return
            self.world.write_file(file, index, 16, int.from_bytes(heads.pop(), "little"))
        arguments = file.number, self.address(at), 8, index * self.size + 16
        yield from self._call(worker, expected, "pwrite64", *arguments)

    def pread(self, who: int, at: int, which: int, index: int) -> Taking:
        """A word of a file comes into a page."""
        worker, name, file = self.worker(who), self.space(self.worker(who)), self.files[which]
        expected = 8
        if index >= file.size:
            expected = 0
        elif self.world.access(name, at, WRITE) is not None:
            expected = -errno.EFAULT
        else:
            content = file.pages.get(index, self.world.zero)
            self.world.store(name, at, 24, int.from_bytes(content[16:24], "little"))
        arguments = file.number, self.address(at) + 24, 8, index * self.size + 16
        yield from self._call(worker, expected, "pread64", *arguments)

    def remote(self, who: int, at: int, which: int) -> Taking:
        """A word is stored into the other process (process_vm_writev)."""
        if "b" not in self.world.spaces:
            return
        worker = self.worker(who)
        other = self.crew.workers["b1" if worker.name[0] == "a" else "a1"]
        name, word = self.space(other), self.words[which]
        assert worker.process is not None
        assert other.process is not None
        expected = 8
        if self.world.access(name, at, WRITE) is not None:
            expected = -errno.EFAULT
        else:
            self.world.store(name, at, 32, word)
        vectors = struct.pack("<5Q", word, worker.scratch, 8, self.address(at) + 32, 8)
        worker.process.write(worker.scratch, vectors)
        mine, theirs = worker.scratch + 8, worker.scratch + 24
        yield from self._call(worker, expected, "process_vm_writev", other.process.pid, mine, 1, theirs, 1, 0)

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

    def exit(self, who: int) -> Taking:
        """The second process ends, and the first waits for it."""
        if "b" not in self.world.spaces:
            return
        del self.world.spaces["b"]
        self.apart.exit()
        parent, one, two = (self.crew.workers[name] for name in ("a1", "b1", "b2"))
        leaver = (one, two)[who % 2]
        yield {leaver: self.crew.call("exit_group", 3), parent: self.crew.call("wait4", -1 & _MASK, 0, 0, 0)}
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

    def rest(self, who: int, milliseconds: int) -> Taking:
        """Time passes, in which others look for huge pages and equal ones."""
        worker = self.worker(who)
        assert worker.process is not None
        worker.process.write(worker.scratch, struct.pack("<2Q", 0, milliseconds * 1_000_000))
        yield from self._call(worker, 0, "nanosleep", worker.scratch, 0)

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
        opened = (yield {worker: crew.call("openat", -100 & _MASK, worker.scratch + 2, 1, 0)})[worker].result
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


_ACCESSES = ("load", "store", "stamp", "sum")


def _is_segment(thing: Thing | None) -> bool:
    return thing is not None and thing.kind == "segment"


def _rest_of(taking: Taking, outcomes: dict[Worker, Outcome]) -> Taking:
    """What is left of a step that has had its first outcomes."""
    try:
        orders = taking.send(outcomes)
        while True:
            orders = taking.send((yield orders))
    except StopIteration:
        return


assert TELL  # the one call that no step makes
