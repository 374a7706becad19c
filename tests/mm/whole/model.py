"""What memory is, without how: for each process a dict of pages, each with its bytes, rights and advice.

Nothing of the package is used here. Every call says what Linux answers (a result, or -errno) and changes
the dicts as Linux would. Nothing leaves memory in this model, no page is merged, and none is huge: those
change nothing that a program may see. Pages are counted from the beginning of the window in which
everything happens.

A page's bytes may be one of several: what was given up with MADV_FREE is as it was, or zeros, until it is
stored to.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field, replace

READ, WRITE, EXECUTE = 1, 2, 4
LOCKED, ON_FAULT = 1, 2
SIGBUS, SIGSEGV, ADRERR, MAPERR, ACCERR = 7, 11, 2, 1, 2
NORMAL, RANDOM, SEQUENTIAL, WILLNEED, DONTNEED, FREE, REMOVE = 0, 1, 2, 3, 4, 8, 9
DONTFORK, DOFORK, MERGEABLE, UNMERGEABLE, HUGEPAGE, NOHUGEPAGE = 10, 11, 12, 13, 14, 15
DONTDUMP, DODUMP, WIPEONFORK, KEEPONFORK, COLD, PAGEOUT = 16, 17, 18, 19, 20, 21
POPULATE_READ, POPULATE_WRITE, DONTNEED_LOCKED, COLLAPSE = 22, 23, 24, 25
GUARD_INSTALL, GUARD_REMOVE = 102, 103
KEPT: dict[int, tuple[str, int]] = {
    NORMAL: ("order", 0), RANDOM: ("order", 1), SEQUENTIAL: ("order", 2),
    DONTFORK: ("no_fork", 1), DOFORK: ("no_fork", 0), MERGEABLE: ("merge", 1), UNMERGEABLE: ("merge", 0),
    HUGEPAGE: ("huge", 1), NOHUGEPAGE: ("huge", 2), DONTDUMP: ("no_dump", 1), DODUMP: ("no_dump", 0),
    WIPEONFORK: ("wipe", 1), KEEPONFORK: ("wipe", 0),
}  # fmt: skip
NEUTRAL = (WILLNEED, COLD, PAGEOUT, COLLAPSE)
"""Advice that changes nothing that can be read, whatever it answers."""
ANY = None
"""An answer that nobody foresees."""


@dataclass(eq=False)
class Thing:
    """Memory that mappings show: `kind` is "anonymous", "file" (a memory file) or "segment" (System V)."""

    kind: str
    size: int
    pages: dict[int, bytes] = field(default_factory=dict)
    number: int = 0
    """The descriptor, or the identifier."""


@dataclass(slots=True)
class Page:
    """A page of a process. `own` has the bytes that it may have for itself; None: what stands behind it."""

    protection: int
    shared: bool
    thing: Thing | None
    index: int
    origin: int
    """The call that made it: pages of one origin that are alike are in one area."""
    written_once: bool
    """Whether it could be written at some time: where that differs, nobody knows whether areas are one."""
    executed_once: bool = False
    own: tuple[bytes, ...] | None = None
    freed: bool = False
    blurred: bool = False
    """Whether its own bytes may be those that the thing had, or has: nobody knows until it is stored to."""
    lock: int = 0
    guard: bool = False
    sealed: bool = False
    order: int = 0
    no_fork: int = 0
    merge: int = 0
    huge: int = 0
    no_dump: int = 0
    wipe: int = 0
    soft_dirty: bool = True

    @property
    def area(self) -> tuple[object, ...]:
        """What keeps areas apart for certain."""
        return (
            self.protection, self.shared, id(self.thing), self.lock, self.sealed, self.order, self.no_fork,
            self.merge, self.huge, self.no_dump, self.wipe,
        )  # fmt: skip

    @property
    def maybe(self) -> tuple[object, ...]:
        """What may keep areas apart."""
        return self.origin, self.written_once, self.executed_once


class World:
    """The pages of all processes, and what they map. `most_locked` is RLIMIT_MEMLOCK in pages."""

    def __init__(self, size: int, pages: int, most_locked: int) -> None:
        self.size, self.end, self.most_locked = size, pages, most_locked
        self.zero = bytes(size)
        self.spaces: dict[str, dict[int, Page]] = {"a": {}}
        self.origins = 0
        self._words: dict[tuple[bytes, int, bytes], bytes] = {}

    # ---- bytes

    def behind(self, page: Page) -> bytes:
        """What a page shows that has nothing of its own."""
        return self.zero if page.thing is None else page.thing.pages.get(page.index, self.zero)

    def contents(self, page: Page) -> tuple[bytes, ...]:
        """Every content that the page may have."""
        return (self.behind(page),) if page.own is None else page.own

    def with_word(self, content: bytes, offset: int, word: int) -> bytes:
        """`content` with eight other bytes. The same bytes are one object, for most pages hold the same."""
        raw = word.to_bytes(8, "little")
        made = content[:offset] + raw + content[offset + 8 :]
        return self._words.setdefault((made[:8], len(made), made), made)

    def store(self, name: str, number: int, offset: int, word: int) -> None:
        """A word stored where that is permitted."""
        page = self.spaces[name][number]
        self.change(page, tuple(self.with_word(each, offset, word) for each in self.contents(page)))

    def change(self, page: Page, contents: tuple[bytes, ...]) -> None:
        """Other bytes, at once."""
        if page.shared:
            assert page.thing is not None
            (page.thing.pages[page.index],) = contents
        else:
            page.own, page.freed = contents, False
        page.soft_dirty = True

    def saw(self, page: Page, offset: int, word: int) -> bool:
        """Whether the page may have this word; it has it for certain from now on."""
        if page.blurred:
            return True
        raw = word.to_bytes(8, "little")
        left = tuple(each for each in self.contents(page) if each[offset : offset + 8] == raw)
        if page.own is not None and left:
            page.own = (*left, self.zero) if page.freed and self.zero not in left else left
        return bool(left)

    # ---- accesses

    def access(self, name: str, number: int, kind: int) -> tuple[int, int] | None:
        """The signal and its code that an access gets, if any."""
        page = self.spaces[name].get(number)
        if page is None:
            return SIGSEGV, MAPERR
        if not page.protection & kind:
            return SIGSEGV, ACCERR
        if page.guard:
            return SIGSEGV, MAPERR
        if page.thing is not None and page.own is None and page.index >= page.thing.size:
            return SIGBUS, ADRERR
        return None

    def populate(self, name: str, first: int, last: int, *, write: bool) -> int:
        """Have pages there: the first that cannot be, or `last`. A private page is its own if for writing."""
        for number in range(first, last):
            page = self.spaces[name][number]
            if self.access(name, number, WRITE if write else READ) is not None:
                return number
            if write and not page.shared and page.own is None and page.thing is not None:
                page.own = self.contents(page)
        return last

    def _populate_or_blur(self, name: str, first: int, last: int) -> None:
        """As `populate` to write, going on at the next area behind what cannot be had; and where is that?"""
        stopped = self.populate(name, first, last, write=True)
        for number in range(stopped, last):
            page = self.spaces[name][number]
            page.blurred = page.blurred or (page.thing is not None and not page.shared and page.own is None)

    # ---- calls

    def locked(self, name: str) -> int:
        """How many pages a process has locked."""
        return sum(bool(page.lock) for page in self.spaces[name].values())

    def has_sealed(self, name: str, first: int, last: int) -> bool:
        """Whether a page of a range is sealed."""
        return any((page := self.spaces[name].get(n)) is not None and page.sealed for n in range(first, last))

    def mmap(
        self,
        name: str,
        at: int,
        count: int,
        protection: int,
        *,
        thing: Thing | None,
        index: int = 0,
        shared: bool = False,
        locked: bool = False,
        populates: bool = False,
        replaces: bool = True,
    ) -> int:
        """At a fixed place. 0 stands for the address."""
        pages = self.spaces[name]
        if not replaces and any(n in pages for n in range(at, at + count)):
            return -errno.EEXIST
        if locked and self.locked(name) + count > self.most_locked:
            return -errno.EAGAIN
        if self.has_sealed(name, at, at + count):
            return -errno.EPERM
        self.origins += 1
        once = bool(protection & WRITE), bool(protection & EXECUTE)
        for number in range(count):
            pages[at + number] = Page(
                protection,
                shared,
                thing,
                index + number if thing else 0,
                self.origins,
                *once,
                lock=int(locked),
            )
        if (locked or populates) and protection & READ:
            self.populate(name, at, at + count, write=bool(protection & WRITE) and not shared)
        return 0

    def munmap(self, name: str, at: int, count: int) -> int:
        if self.has_sealed(name, at, at + count):
            return -errno.EPERM
        for number in range(at, at + count):
            self.spaces[name].pop(number, None)
        return 0

    def mprotect(self, name: str, at: int, count: int, protection: int) -> int:
        pages, copies = self.spaces[name], []
        answer = 0
        for number in range(at, at + count):
            page = pages.get(number)
            if page is None or page.sealed:
                answer = -errno.ENOMEM if page is None else -errno.EPERM
                break
            if page.lock == LOCKED and not page.shared and protection & ~page.protection & WRITE:
                copies.append(number)
            page.protection = protection
            page.written_once |= bool(protection & WRITE)
            page.executed_once |= bool(protection & EXECUTE)
        for number in copies:
            if number - 1 not in copies:
                end = next(n for n in range(number, at + count + 1) if n not in copies)
                self._populate_or_blur(name, number, end)
        return answer

    def mremap(self, name: str, at: int, old: int, new: int, to: int | None, *, keeps: bool) -> int | None:
        """To the fixed place `to`, or in place. 0 stands for the address of what was asked for."""
        pages = self.spaces[name]
        if to is not None and at + old > to and to + new > at:
            return -errno.EINVAL
        if at not in pages:
            return -errno.EFAULT
        if pages[at].sealed:
            return -errno.EPERM
        short = min(old, new)
        areas = {page.area if (page := pages.get(n)) else None for n in range(at, at + short)}
        if to is not None and len(areas) == 1 and None not in areas and self.has_sealed(name, to, to + new):
            return -errno.EPERM
        if new < old:
            self.munmap(name, at + new, old - new)
            old = new
        if new == old and to is None:
            return 0
        if any(n not in pages for n in range(at, at + old)):
            return -errno.EFAULT
        source = [pages[n] for n in range(at, at + old)]
        if any(page.area != source[0].area for page in source):
            return -errno.EFAULT
        if any(page.maybe != source[0].maybe for page in source):
            return ANY
        if source[0].lock and self.locked(name) + new - old > self.most_locked:
            return -errno.EAGAIN
        if to is None:
            if any(n in pages for n in range(at + old, at + new)):
                return -errno.ENOMEM
            return self._grow(name, at, old, at, new, source[-1])
        self.munmap(name, to, new)
        if at not in pages:
            return -errno.EFAULT
        self.origins += 1
        for number, page in enumerate(source):
            pages[to + number] = replace(page, origin=self.origins, soft_dirty=True)
            if keeps:
                left = replace(page, own=None, lock=0, guard=False, blurred=False, freed=False)
                pages[at + number] = left
            else:
                del pages[at + number]
        return self._grow(name, to, old, to, new, pages[to + old - 1])

    def _grow(self, name: str, at: int, old: int, to: int, new: int, last: Page) -> int:
        """The pages behind `last`, which are new."""
        for number in range(old, new):
            index = last.index + number - old + 1 if last.thing else 0
            self.spaces[name][to + number] = replace(
                last, index=index, own=None, guard=False, blurred=False, freed=False, soft_dirty=True
            )
        if last.lock == LOCKED and last.protection & READ and new > old:
            self.populate(name, to + old, to + new, write=bool(last.protection & WRITE) and not last.shared)
        return 0

    def madvise(self, name: str, at: int, count: int, advice: int) -> int | None:
        pages, holes = self.spaces[name], False
        if advice in (POPULATE_READ, POPULATE_WRITE):
            return self._populate_advice(name, at, count, WRITE if advice == POPULATE_WRITE else READ)
        if advice in NEUTRAL:
            return ANY
        for number in range(at, at + count):
            page = pages.get(number)
            if page is None:
                holes = True
            elif refused := self._advise(page, advice):
                return -refused
        return -errno.ENOMEM if holes else 0

    def _advise(self, page: Page, advice: int) -> int:
        """Advice for one page; the errno that it is refused with."""
        private = page.thing is None
        changes = (DONTNEED, FREE, REMOVE, DONTNEED_LOCKED, DONTFORK, WIPEONFORK, GUARD_INSTALL)
        if page.sealed and advice in changes and private and not page.protection & WRITE:
            return errno.EPERM
        if advice in KEPT:
            if advice == WIPEONFORK and not private:
                return errno.EINVAL
            if advice != MERGEABLE or not page.shared:
                setattr(page, *KEPT[advice])
            return 0
        if page.lock and advice in (DONTNEED, FREE, REMOVE, GUARD_INSTALL):
            return errno.EINVAL
        if advice in (DONTNEED, DONTNEED_LOCKED):
            page.own, page.freed, page.blurred = None, False, False
        elif advice == FREE:
            if not private:
                return errno.EINVAL
            if page.own is not None:
                page.own, page.freed = tuple(dict.fromkeys((*page.own, self.zero))), True
        elif advice == REMOVE:
            if page.thing is None:
                return errno.EINVAL
            if not page.shared:  # nothing is mapped of a file that is open for reading alone
                return errno.EACCES
            page.thing.pages.pop(page.index, None)
        elif advice == GUARD_INSTALL:
            page.guard, page.own, page.freed, page.blurred = True, None, False, False
        elif advice == GUARD_REMOVE:
            page.guard = False
        return 0

    def _populate_advice(self, name: str, at: int, count: int, kind: int) -> int:
        for number in range(at, at + count):
            page = self.spaces[name].get(number)
            if page is None:
                return -errno.ENOMEM
            if not page.protection & kind:
                return -errno.EINVAL
            if self.populate(name, number, number + 1, write=kind == WRITE) == number:
                return -errno.EFAULT
        return 0

    def mlock(self, name: str, at: int, count: int, how: int) -> int:
        pages = self.spaces[name]
        more = sum(not ((page := pages.get(n)) is not None and page.lock) for n in range(at, at + count))
        if self.locked(name) + more > self.most_locked:
            return -errno.ENOMEM
        if self._mark(name, at, count, how):
            return -errno.ENOMEM
        for number in range(at, at + count if how == LOCKED else at):
            page = pages[number]
            write = bool(page.protection & WRITE) and not page.shared
            if self.populate(name, number, number + 1, write=write) == number:
                return -errno.ENOMEM
        return 0

    def munlock(self, name: str, at: int, count: int) -> int:
        return self._mark(name, at, count, 0)

    def _mark(self, name: str, at: int, count: int, how: int) -> int:
        for number in range(at, at + count):
            page = self.spaces[name].get(number)
            if page is None:
                return -errno.ENOMEM
            page.lock = how
        return 0

    def msync(self, name: str, at: int, count: int, *, invalidates: bool) -> int:
        seen = [self.spaces[name].get(n) for n in range(at, at + count)]
        if invalidates and any(page is not None and page.lock for page in seen):
            return -errno.EBUSY
        return -errno.ENOMEM if None in seen else 0

    def mincore(self, name: str, at: int, count: int) -> int:
        return 0 if all(n in self.spaces[name] for n in range(at, at + count)) else -errno.ENOMEM

    def mseal(self, name: str, at: int, count: int) -> int:
        if any(n not in self.spaces[name] for n in range(at, at + count)):
            return -errno.ENOMEM
        for number in range(at, at + count):
            self.spaces[name][number].sealed = True
        return 0

    def fork(self) -> None:
        """Process "b" comes from "a"."""
        child = self.spaces["b"] = {}
        for number, page in self.spaces["a"].items():
            if page.no_fork:
                continue
            copy = child[number] = replace(page, lock=0)
            if page.wipe:
                copy.own, copy.guard, copy.freed, copy.blurred = None, False, False, False

    # ---- things

    def truncate(self, thing: Thing, size: int) -> None:
        """A memory file of so many pages; copies of pages behind its end go too."""
        for pages in self.spaces.values():
            for page in pages.values():
                if page.thing is thing and page.index >= size and not page.shared:
                    page.own, page.freed, page.blurred = None, False, False
        for index in [index for index in thing.pages if index >= size]:
            del thing.pages[index]
        thing.size = size

    def punch(self, thing: Thing, index: int, count: int) -> None:
        """Holes in a memory file. What is private stays."""
        for each in range(index, index + count):
            thing.pages.pop(each, None)

    def write_file(self, thing: Thing, index: int, offset: int, word: int) -> None:
        """pwrite(2) of a word."""
        thing.size = max(thing.size, index + 1)
        content = thing.pages.get(index, self.zero)
        thing.pages[index] = self.with_word(content, offset, word)

    def detach(self, name: str, base: int) -> int:
        """shmdt(2) of the segment that was attached at `base`."""
        pages = self.spaces[name]
        first = next(
            (
                page.thing
                for number, page in sorted(pages.items())
                if page.thing is not None
                and page.thing.kind == "segment"
                and number >= base
                and number - base == page.index
            ),
            None,
        )
        if first is None:
            return -errno.EINVAL
        gone = [n for n, page in pages.items() if page.thing is first and n - base == page.index]
        for number in gone:
            del pages[number]
        return 0
