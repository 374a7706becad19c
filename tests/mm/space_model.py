"""An address space without tables, frames or flushes: a dict of pages, and Linux's rules written plainly.

Numbers are pages, not bytes. A call answers what the kernel would: a number, or the name of an errno. Nothing
here is shared with `aether_emu.mm`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

READ, WRITE, EXECUTE = 1, 2, 4
GUARD = 256


@dataclass(eq=False)
class Thing:
    """What mapped pages show: a file, or a stretch of shared memory. `pages` is where it ends."""

    content: bytearray
    pages: int
    readable_only: bool = False
    name: str = ""


@dataclass(frozen=True)
class Page:
    """What an address space knows of one page."""

    protection: int
    shared: bool = False
    thing: Thing | None = None
    index: int = 0  # page of the thing
    maximum: int = READ | WRITE | EXECUTE
    grows_down: bool = False
    no_reserve: bool = False
    name: str = ""
    was_writable_executable: bool = False
    moved: int = 0  # of a private page: how far mremap took it from where it was made
    family: int = 0  # of a private page: the family of its area; areas of two families never become one


@dataclass
class Run:
    """Pages that belong to one area."""

    first: int
    last: int
    page: Page


@dataclass
class SpaceModel:
    """`pages` says what is mapped, `copies` what the address space alone has of a page's bytes."""

    size: int  # bytes of a page
    lowest: int
    end: int
    pages: dict[int, Page] = field(default_factory=dict)
    copies: dict[int, bytearray] = field(default_factory=dict)
    heap_start: int = 0
    heap_end: int = 0  # in bytes, unlike everything else
    family: int = 0  # of new private pages that continue no neighbour

    def fork(self, family: int) -> SpaceModel:
        """The child, whose new pages are of another family. What is shared stays so, copies are its own."""
        copies = {number: bytearray(content) for number, content in self.copies.items()}
        return replace(self, pages=dict(self.pages), copies=copies, family=family)

    # ---- bytes and permissions

    def content(self, number: int) -> bytes | bytearray:
        """The bytes of a page that can be accessed, to look at."""
        page = self.pages[number]
        if number in self.copies:
            return self.copies[number]
        if page.thing is not None:
            return bytes(page.thing.content[page.index * self.size : (page.index + 1) * self.size])
        return bytes(self.size)

    def access(self, number: int, wanted: int) -> str:
        """What an access ends in: "ok" (the page may have been copied), "unmapped", "denied" or "bus"."""
        if number not in self.pages and not self._grow(number):
            return "unmapped"
        page = self.pages[number]
        permitted = page.protection & wanted or (wanted == READ and page.protection)
        if not permitted:
            return "denied"
        if page.thing is not None and page.index >= page.thing.pages and number not in self.copies:
            return "bus"
        if wanted == WRITE and not page.shared and number not in self.copies:
            self.copies[number] = bytearray(self.content(number))
        return "ok"

    def store(self, number: int, offset: int, data: bytes) -> None:
        """Put bytes into a page after an access to write was "ok"."""
        page = self.pages[number]
        if number in self.copies:
            self.copies[number][offset : offset + len(data)] = data
        else:
            assert page.shared
            assert page.thing is not None
            start = page.index * self.size + offset
            page.thing.content[start : start + len(data)] = data

    def _grow(self, number: int) -> bool:
        above = min((n for n in self.pages if n > number), default=None)
        if above is None or not self.pages[above].grows_down or number < self.lowest:
            return False
        below = max((n for n in self.pages if n < number), default=None)
        if below is not None:
            page = self.pages[below]
            if page.protection and not page.grows_down and number - (below + 1) < GUARD:
                return False
        for n in range(number, above):
            self.pages[n] = self.pages[above]
        return True

    # ---- areas

    def runs(self) -> list[Run]:
        """The areas that /proc/self/maps would list."""
        found: list[Run] = []
        for number in sorted(self.pages):
            page = self.pages[number]
            if found and found[-1].last == number:
                before = self.pages[number - 1]
                if page == (replace(before, index=before.index + 1) if page.thing else before):
                    found[-1].last += 1
                    continue
            found.append(Run(number, number + 1, page))
        return found

    def _starts(self) -> Iterator[tuple[int, int]]:
        """(lowest page that is taken, first page) of each area: one that grows keeps a guard below itself."""
        for run in self.runs():
            yield run.first - (GUARD if run.page.grows_down else 0), run.first

    def free(self, at: int, count: int) -> bool:
        """Whether a search may answer with this place."""
        if at < self.lowest or at + count > self.end or any(n in self.pages for n in range(at, at + count)):
            return False
        return at + count <= next((taken for taken, first in self._starts() if first >= at + count), self.end)

    def _search(self, count: int) -> int | None:
        """The highest place that is free: below the next area and its guard, and above the one before."""
        limits = [*self._starts(), (self.end, self.end)]
        befores = [self.lowest, *(run.last for run in self.runs())]
        gaps = zip(befores, (taken for taken, _first in limits), strict=True)
        return max((high - count for low, high in gaps if high - low >= count), default=None)

    def _drop(self, first: int, last: int) -> None:
        for number in range(first, last):
            self.pages.pop(number, None)
            self.copies.pop(number, None)

    def _joined(self, first: int, count: int, page: Page) -> Page:
        """A new private page, numbered like a neighbour which its area continues otherwise."""
        before, after = self.pages.get(first - 1), self.pages.get(first + count)
        step = 1 if page.thing else 0
        if before is not None and not page.shared:
            joined = replace(page, moved=before.moved, family=before.family)
            if replace(before, index=before.index + step) == joined:
                return joined
        if after is not None and not page.shared:
            joined = replace(page, moved=after.moved, family=after.family)
            if replace(joined, index=joined.index + step * count) == after:
                return joined
        return page

    def _put(self, first: int, count: int, page: Page) -> None:
        for n in range(count):
            self.pages[first + n] = replace(page, index=page.index + n if page.thing else 0)

    def _populate(self, first: int, last: int, wanted: int) -> str:
        for number in range(first, last):
            outcome = self.access(number, wanted)
            if outcome != "ok":
                return outcome
        return "ok"

    # ---- calls

    def mmap(self, page: Page, at: int, count: int, how: str, populate: bool) -> int | str:
        """`how` is "hint", "fixed" or "noreplace"; `page` describes the first page, but for its maximum."""
        if how != "hint":
            if at + count > self.end:
                return "ENOMEM"
            if at < self.lowest:
                return "EPERM"
            if how == "noreplace" and any(n in self.pages for n in range(at, at + count)):
                return "EEXIST"
        elif not self.free(at, count):
            place = self._search(count)
            if place is None:
                return "ENOMEM"
            at = place
        if page.thing is not None and page.shared and page.thing.readable_only:
            if page.protection & WRITE:
                return "EACCES"
            page = replace(page, maximum=READ | EXECUTE)
        if page.protection & (WRITE | EXECUTE) == WRITE | EXECUTE:
            page = replace(page, was_writable_executable=True)
        if not page.shared:
            page = replace(page, family=self.family)
        self._drop(at, at + count)
        self._put(at, count, self._joined(at, count, page))
        if populate and page.protection:
            self._populate(at, at + count, WRITE if page.protection & WRITE and not page.shared else READ)
        return at

    def munmap(self, at: int, count: int) -> int | str:
        if at + count > self.end or not count:
            return "EINVAL"
        self._drop(at, at + count)
        return 0

    def mprotect(self, at: int, count: int, protection: int) -> int | str:
        for number in range(at, at + count):
            page = self.pages.get(number)
            if page is None:
                return "ENOMEM"
            if protection & ~page.maximum:
                return "EACCES"
            if protection != page.protection:
                both = protection & (WRITE | EXECUTE) == WRITE | EXECUTE
                marked = page.was_writable_executable or both
                self.pages[number] = replace(page, protection=protection, was_writable_executable=marked)
        return 0

    def mremap(
        self,
        at: int,
        old: int,
        new: int,
        target: int,
        *,
        may_move: bool,
        fixed: bool,
        keep: bool,
        no_tables: bool,
    ) -> int | str:
        """`no_tables`: memory for page tables runs out, should entries have to move."""
        if (fixed or keep) and not may_move:
            return "EINVAL"
        if (keep and old != new) or not new:
            return "EINVAL"
        if (fixed or keep) and (target + new > self.end or (at + old > target and target + new > at)):
            return "EINVAL"
        if at not in self.pages:
            return "EFAULT"
        if fixed and target < self.lowest:
            return "EPERM"
        if new < old:
            if self.munmap(at + new, old - new):
                return "EINVAL"
            old = new
        if new == old and not (fixed or keep):
            return at
        first = self.pages[at]
        if not old and not first.shared:
            return "EINVAL"
        area = next(run for run in self.runs() if run.first <= at < run.last)
        if old > area.last - at:
            return "EFAULT"
        if not fixed and not keep and old and old == area.last - at:
            beyond = range(at + old, at + new)
            if at + new <= self.end and not any(n in self.pages for n in beyond):
                index = first.index + old if first.thing else 0
                self._put(at + old, new - old, replace(first, index=index))
                return at
        if not may_move:
            return "ENOMEM"
        if fixed:
            self._drop(target, target + new)
            if at not in self.pages:
                return "EFAULT"
        else:
            hint = target if keep else 0
            place = hint if hint and self.free(hint, new) else self._search(new)
            if place is None:
                return "ENOMEM"
            target = place
        if no_tables:
            return "ENOMEM"
        moved = {n - at + target: self.copies.pop(n) for n in range(at, at + old) if n in self.copies}
        name = first.name if first.thing else ""
        page = replace(first, name=name, moved=first.moved + at - target if moved else 0)
        self._put(target, new, page if moved else self._joined(target, new, page))
        self.copies |= moved
        if not keep and old:
            self._drop(at, at + old)
        return target

    def discard(self, at: int, count: int, *, only_anonymous: bool) -> int | str:
        """MADV_DONTNEED, or MADV_FREE with `only_anonymous`."""
        for run in self.runs():
            first, last = max(run.first, at), min(run.last, at + count)
            if first < last:
                if only_anonymous and run.page.thing is not None:
                    return "EINVAL"
                for number in range(first, last):
                    self.copies.pop(number, None)
        return 0 if all(n in self.pages for n in range(at, at + count)) else "ENOMEM"

    def populate(self, at: int, count: int, wanted: int) -> int | str:
        for number in range(at, at + count):
            page = self.pages.get(number)
            if page is None:
                return "ENOMEM"
            if not page.protection & wanted:
                return "EINVAL"
            if self.access(number, wanted) == "bus":
                return "EFAULT"
        return 0

    def brk(self, address: int) -> int:
        """In bytes, as the call."""
        old = self.heap_end
        if address < self.heap_start or address > self.end * self.size:
            return old
        old_page, new_page = -(-old // self.size), -(-address // self.size)
        if new_page < old_page:
            if not any(n in self.pages for n in range(new_page, old_page)):
                return old
            self._drop(new_page, old_page)
        elif new_page > old_page:
            # Linux asks the next area alone: the guard of one behind it may reach further down.
            above = min(
                ((first, taken) for taken, first in self._starts() if first >= old_page), default=None
            )
            inside = any(n in self.pages for n in range(old_page, new_page))
            if inside or (above is not None and above[1] < new_page + 1):
                return old
            count = new_page - old_page
            page = Page(READ | WRITE, name="[heap]", family=self.family)
            self._put(old_page, count, self._joined(old_page, count, page))
        self.heap_end = address
        return address
