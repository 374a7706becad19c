"""Steps on memory with places of its own: a huge page of a pool, and pages whose faults are answered.

The pool has one page, so that who asks for another is refused. A program answers the faults of a few pages
itself (userfaultfd): what is missing, or protected against stores, gets SIGBUS until another call brings
it.
"""

from __future__ import annotations

import errno
import struct

from tests.mm.whole.crew import Worker
from tests.mm.whole.guest import LOAD, STORE, Order
from tests.mm.whole.model import ADRERR, DONTNEED, MAPERR, PAGEOUT, READ, SIGBUS, SIGSEGV
from tests.mm.whole.stage import Stage, Taking

POOLED, WATCHED = 0x30_0000_0000, 0x31_0000_0000
WATCHED_PAGES = 6
_ANONYMOUS_FIXED, _SHARED, _PRIVATE, _HUGETLB = 0x30, 1, 2, 0x40000
_API, _REGISTER, _COPY, _ZEROPAGE, _PROTECT = 0xC018AA3F, 0xC020AA00, 0xC028AA03, 0xC020AA04, 0xC018AA06
_MISSING, _WP, _FEATURES = 1, 2, 1 << 0 | 1 << 7  # faults by WP, SIGBUS instead of messages


class Apart:
    """What is there, as the model has it. `size` is that of a pool's page; 0: there is no pool."""

    def __init__(self, play: Stage, size: int) -> None:
        self.play, self.size = play, size
        self.pooled: dict[str, dict[int, int]] = {}
        """The words of the page, by offset, for each process that shows it: one dict, for they share it."""
        self.watched: dict[int, bytes] = {}
        self.protected: set[int] = set()
        self._faults = -1

    def prepare(self, first: Worker) -> Taking:
        """The area whose faults are answered; children do not get it."""
        crew, length = self.play.crew, WATCHED_PAGES * self.play.size
        flags = _ANONYMOUS_FIXED | _PRIVATE
        yield {first: crew.call("mmap", WATCHED, length, 3, flags, (1 << 64) - 1, 0)}
        yield {first: crew.call("madvise", WATCHED, length, 10)}
        self._faults = (yield {first: crew.call("userfaultfd", 1)})[first].result
        for request, layout in ((_API, (0xAA, _FEATURES, 0)), (_REGISTER, (WATCHED, length, 3, 0))):
            yield from self._ioctl(first, 0, request, *layout)

    def _ioctl(self, worker: Worker, expected: int, request: int, *layout: int) -> Taking:
        assert worker.process is not None
        worker.process.write(worker.scratch, struct.pack(f"<{len(layout)}Q", *layout))
        orders = {worker: self.play.crew.call("ioctl", self._faults, request, worker.scratch)}
        self.play.agree((yield orders)[worker], expected)

    # ---- processes

    def fork(self) -> None:
        """The child shows the pool's page too."""
        if "a" in self.pooled:
            self.pooled["b"] = self.pooled["a"]

    def exit(self) -> None:
        """The child is gone."""
        self.pooled.pop("b", None)

    # ---- the pool

    def map(self, worker: Worker) -> Taking:
        """A huge page, where the process has none and the pool has one."""
        name = worker.name[0]
        if not self.size or name in self.pooled:
            return
        expected = -errno.ENOMEM if self.pooled else POOLED
        if not self.pooled:
            self.pooled[name] = {}
        flags = _ANONYMOUS_FIXED | _SHARED | _HUGETLB
        order = self.play.crew.call("mmap", POOLED, self.size, 3, flags, (1 << 64) - 1, 0)
        self.play.agree((yield {worker: order})[worker], expected)

    def unmap(self, worker: Worker) -> Taking:
        if self.size:
            self.pooled.pop(worker.name[0], None)
            order = self.play.crew.call("munmap", POOLED, self.size)
            self.play.agree((yield {worker: order})[worker], 0)

    def touch(self, worker: Worker, offset: int, word: int | None) -> Taking:
        """A store to the huge page, or a load."""
        if not self.size:
            return
        there, address = self.pooled.get(worker.name[0]), POOLED + offset * 8 % self.size
        operation = LOAD if word is None else STORE
        outcome = (yield {worker: Order(operation, (address, word or 0))})[worker]
        if there is None:
            self.play.agree(outcome, (SIGSEGV, MAPERR, address))
        elif word is None:
            self.play.agree(outcome, there.get(address, 0))
        else:
            there[address] = word
            self.play.agree(outcome, 0)

    # ---- faults that are answered

    def access(self, worker: Worker, number: int, word: int | None) -> Taking:
        """A store to a watched page, or a load, by a thread of the first process."""
        address = WATCHED + number * self.play.size
        operation = LOAD if word is None else STORE
        outcome = (yield {worker: Order(operation, (address, word or 0))})[worker]
        page = self.watched.get(number)
        if page is None or (word is not None and number in self.protected):
            self.play.agree(outcome, (SIGBUS, ADRERR, address))
        elif word is None:
            self.play.agree(outcome._replace(result=outcome.result & (1 << 64) - 1), _word(page))
        else:
            self.watched[number] = self.play.world.with_word(page, 0, word)
            self.play.agree(outcome, 0)

    def copy(self, worker: Worker, number: int, source: int) -> Taking:
        """UFFDIO_COPY of a page of the window."""
        world, name = self.play.world, worker.name[0]
        page = world.spaces[name].get(source)
        refused = world.access(name, source, READ) is not None
        if page is None or refused or page.blurred or len(world.contents(page)) != 1:
            return
        expected = 0 if number not in self.watched else -errno.EEXIST
        if not expected:
            (self.watched[number],) = world.contents(page)
            self.protected.discard(number)
        size = self.play.size
        place, taken = WATCHED + number * size, self.play.address(source)
        yield from self._ioctl(worker, expected, _COPY, place, taken, size, 0, 0)

    def zero(self, worker: Worker, number: int) -> Taking:
        """UFFDIO_ZEROPAGE."""
        expected = 0 if number not in self.watched else -errno.EEXIST
        if not expected:
            self.watched[number] = self.play.world.zero
            self.protected.discard(number)
        size = self.play.size
        yield from self._ioctl(worker, expected, _ZEROPAGE, WATCHED + number * size, size, 0, 0)

    def protect(self, worker: Worker, number: int, on: bool) -> Taking:
        """UFFDIO_WRITEPROTECT, which marks what is there."""
        if on and number in self.watched:
            self.protected.add(number)
        elif not on:
            self.protected.discard(number)
        size = self.play.size
        yield from self._ioctl(worker, 0, _PROTECT, WATCHED + number * size, size, int(on))

    def drop(self, worker: Worker, number: int) -> Taking:
        """The page is missing again."""
        self.watched.pop(number, None)
        self.protected.discard(number)
        size = self.play.size
        order = self.play.crew.call("madvise", WATCHED + number * size, size, DONTNEED)
        self.play.agree((yield {worker: order})[worker], 0)

    def away(self, worker: Worker, number: int) -> Taking:
        """MADV_PAGEOUT: it is neither missing then, nor protected less."""
        size = self.play.size
        order = self.play.crew.call("madvise", WATCHED + number * size, size, PAGEOUT)
        self.play.agree((yield {worker: order})[worker], 0)


def _word(page: bytes) -> int:
    return int.from_bytes(page[:8], "little")
