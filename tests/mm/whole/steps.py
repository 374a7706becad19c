"""Steps by chance, of a seed: where things are likely to meet."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from tests.mm.whole import model
from tests.mm.whole.play import Play
from tests.mm.whole.stage import FILES, SEGMENTS, Step

_RIGHTS = (0, 1, 3, 3, 3, 3, 5, 7)
_ADVICE = (
    *[model.DONTNEED] * 3, *[model.FREE] * 2, model.REMOVE, model.REMOVE, *[model.PAGEOUT] * 6,
    model.COLD, model.WILLNEED, *[model.COLLAPSE] * 4, *[model.MERGEABLE] * 6, *[model.UNMERGEABLE] * 2,
    model.HUGEPAGE, model.HUGEPAGE, model.NOHUGEPAGE, model.DONTFORK, model.DOFORK, model.DOFORK,
    model.WIPEONFORK, model.KEEPONFORK, model.KEEPONFORK, model.DONTDUMP, model.DODUMP, model.RANDOM,
    model.SEQUENTIAL, model.NORMAL, model.POPULATE_READ, model.POPULATE_WRITE, model.DONTNEED_LOCKED,
    *[model.GUARD_INSTALL] * 2, *[model.GUARD_REMOVE] * 2,
)  # fmt: skip


class Chance:
    """A stream of steps for a play."""

    def __init__(self, play: Play, seed: int) -> None:
        self.play, self.random = play, Random(seed)

    def steps(self, count: int) -> Iterator[Step]:
        """First memory to begin with, then so many steps."""
        random, end, huge = self.random, self.play.world.end, self.play.huge
        yield "mmap", 0, 0, end - huge // 2, 3, 0, 1
        yield "madvise", 0, 0, huge, model.MERGEABLE
        yield "stamp", 0, 0, huge, 1, 0
        yield "stamp", 1, huge, huge, 2, 1
        for _ in range(count):
            yield random.choice(_STEPS)(self)

    # ---- places

    def who(self) -> int:
        return self.random.randrange(4)

    def place(self) -> int:
        """Mostly where huge pages meet, where areas end, or near a few pages."""
        random, end, huge = self.random, self.play.world.end, self.play.huge
        kind = random.randrange(8)
        if kind < 3:
            near = random.randrange(end // huge + 1) * huge + random.randrange(-6, 7)
        elif kind < 5:
            near = random.choice((20, 40, huge + 30)) + random.randrange(8)
        elif kind == 5:
            near = end - random.randrange(1, 12)
        elif kind == 6:
            near = random.randrange(end // 16) * 16
        else:
            near = random.randrange(end)
        return min(max(near, 0), end - 1)

    def range(self) -> tuple[int, int]:
        random, huge = self.random, self.play.huge
        kind = random.randrange(20)
        if kind == 0:
            return random.randrange(self.play.world.end // huge) * huge, huge
        if kind <= 2:
            return random.randrange(self.play.world.end // 16) * 16, 16
        return self.place(), random.randrange(1, 9)

    def offset(self) -> int:
        return self.random.choice((0, 0, 8, self.play.size // 2, self.play.size - 8))

    # ---- steps

    def load(self) -> Step:
        return "load", self.who(), self.place(), self.offset()

    def store(self) -> Step:
        return "store", self.who(), self.place(), self.offset(), self.random.randrange(4)

    def add(self) -> Step:
        return "add", self.who(), self.place(), self.offset()

    def stamp(self) -> Step:
        return "stamp", self.who(), *self.range(), self.random.randrange(4), self.random.choice((0, 0, 1, 7))

    def fill(self) -> Step:
        """Much, so that memory runs short."""
        huge = self.play.huge
        at = self.random.randrange(self.play.world.end // huge) * huge
        return "stamp", self.who(), at, huge, self.random.randrange(4), self.random.choice((0, 1, 3))

    def sum(self) -> Step:
        return "sum", self.who(), *self.range()

    def jump(self) -> Step:
        return "jump", self.who(), self.place()

    def mmap(self) -> Step:
        random = self.random
        source, more = random.choice((0, 0, 0, 1, 2, 2, 3, 4, 5, 6)), random.randrange(128)
        more &= random.choice((0x67, 0x67, 0x7F))
        return "mmap", self.who(), *self.range(), random.choice(_RIGHTS), source, more

    def munmap(self) -> Step:
        return "munmap", self.who(), *self.range()

    def mprotect(self) -> Step:
        return "mprotect", self.who(), *self.range(), self.random.choice(_RIGHTS)

    def madvise(self) -> Step:
        return "madvise", self.who(), *self.range(), self.random.choice(_ADVICE)

    def collapse(self) -> Step:
        huge = self.play.huge
        return (
            "madvise",
            self.who(),
            self.random.randrange(self.play.world.end // huge) * huge,
            huge,
            model.COLLAPSE,
        )

    def mremap(self) -> Step:
        random, (at, old) = self.random, self.range()
        new = max(1, old + random.choice((0, 0, 0, -2, 2)))
        return "mremap", self.who(), at, old, new, self.range()[0], random.choice((0, 1, 1, 1, 2))

    def mlock(self) -> Step:
        return (
            "mlock",
            self.who(),
            self.place(),
            self.random.randrange(1, 9),
            self.random.choice((0, 0, 1, 1, 2)),
        )

    def msync(self) -> Step:
        return "msync", self.who(), *self.range(), self.random.choice((1, 4, 6))

    def mincore(self) -> Step:
        return "mincore", self.who(), self.place(), self.random.randrange(1, 9)

    def mseal(self) -> Step:
        if self.random.random() < 0.9:
            return self.store()
        return "mseal", self.who(), self.random.randrange(4), self.random.randrange(1, 3)

    def shmat(self) -> Step:
        return "shmat", self.who(), self.place(), self.random.randrange(SEGMENTS), self.random.randrange(3)

    def shmdt(self) -> Step:
        return "shmdt", self.who(), self.place()

    def truncate(self) -> Step:
        return "truncate", self.who(), self.random.randrange(FILES), self.random.randrange(1, 9)

    def punch(self) -> Step:
        random = self.random
        return "punch", self.who(), random.randrange(FILES), random.randrange(6), random.randrange(1, 3)

    def pwrite(self) -> Step:
        return "pwrite", self.who(), self.place(), self.random.randrange(FILES), self.random.randrange(8)

    def pread(self) -> Step:
        return "pread", self.who(), self.place(), self.random.randrange(FILES), self.random.randrange(8)

    def remote(self) -> Step:
        return "remote", self.who(), self.place(), self.random.randrange(4)

    def fork(self) -> Step:
        return "fork", self.who()

    def exit(self) -> Step:
        return "exit", self.who()

    def rest(self) -> Step:
        return "rest", self.who(), self.random.choice((1, 3, 20))

    def look(self) -> Step:
        return "look", self.who()

    def forget(self) -> Step:
        return "forget", self.who()

    def pooled(self) -> Step:
        random = self.random
        how = random.choice((0, 0, 1, 2, 2, 2, 3, 3, 3))
        return "pooled", self.who(), how, random.choice((0, 9, 511, 40_000)), random.randrange(4)

    def answered(self) -> Step:
        random = self.random
        if random.randrange(7) == 0:
            return "away", self.who(), random.randrange(4)
        return "answered", self.who(), random.randrange(7), random.randrange(4), self.place()

    def hunted(self) -> Step:
        """One thread stores to pages while another has them taken away, or moved."""
        random, who, where = self.random, self.who(), self.range()
        advice = random.choice((model.PAGEOUT, model.PAGEOUT, model.COLLAPSE, model.UNMERGEABLE))
        store: Step = "hammer", who, where[0], random.choice((2000, 20_000, 50_000))
        if random.random() < 0.3:
            store = "stamp", who, *where, random.randrange(4), random.choice((0, 1))
        return "both", store, ("madvise", who ^ 1, *where, advice)

    def both(self) -> Step:
        access = (self.load, self.store, self.stamp, self.sum, self.fill)
        return "both", self.random.choice(access)(), self.random.choice((*access, self.madvise))()


_STEPS = (
    *[Chance.load] * 6, *[Chance.store] * 8, *[Chance.add] * 3, *[Chance.stamp] * 5, *[Chance.fill] * 3,
    *[Chance.sum] * 4, *[Chance.jump] * 2, *[Chance.mmap] * 9, *[Chance.munmap] * 2, *[Chance.mprotect]
    * 6, *[Chance.madvise] * 18, *[Chance.collapse] * 3, *[Chance.mremap] * 6, *[Chance.mlock] * 4,
    Chance.msync, Chance.mincore, Chance.mseal, *[Chance.shmat] * 2, Chance.shmdt, Chance.truncate,
    Chance.punch, *[Chance.pwrite] * 2, *[Chance.pread] * 2, *[Chance.remote] * 2, *[Chance.fork] * 3,
    Chance.exit, *[Chance.rest] * 6, *[Chance.look] * 2, Chance.forget, *[Chance.both] * 6,
    *[Chance.hunted] * 6, *[Chance.pooled] * 2, *[Chance.answered] * 5,
)  # fmt: skip
