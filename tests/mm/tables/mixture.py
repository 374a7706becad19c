"""A table with everything in it, beside a plain model: for the tests of edits.

The model is a list of segments: pages in a row that say the same of frames in a row. What a table holds
is read into the same form from its entries, so that leaves of any size compare with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from numpy.typing import NDArray

from aether_emu.arch.arm64.stage1 import ArmFormat
from aether_emu.arch.paging import Attributes, Held, HeldKind, Leaf, PageFlags, PageTableFormat
from aether_emu.arch.x86_64.stage1 import X86Format
from aether_emu.machine.memory.ram import Ram
from aether_emu.mm.frames.buddy import Buddy, Zone
from aether_emu.mm.frames.table import FrameTable, Kind
from aether_emu.mm.protection import NOTED_ACCESSED, NOTED_DIRTY
from aether_emu.mm.tables.owed import owes_flush
from aether_emu.mm.tables.page import PageTable
from aether_emu.mm.tables.tree import Found
from tests.mm.invented_format import InventedFormat

FORMATS = (
    X86Format(4),
    X86Format(5),
    ArmFormat(4 << 10),
    ArmFormat(16 << 10),
    ArmFormat(64 << 10),
    InventedFormat(),
)
RAM_BASE = 1 << 30
TABLES = 512  # frames that tables may take
NOTHING = PageFlags(0)
NOTED = PageFlags.ACCESSED | PageFlags.DIRTY


Change = Callable[["Segment"], "Segment | None"]
"""What becomes of a segment; None: it goes."""


@dataclass(frozen=True)
class Segment:
    """`pages` from `page` on. `kind` is None for leaves; `junk` is an entry that nobody understands.

    `value` is the first page's frame (by its physical address, in pages) or a held entry's value.
    """

    page: int
    pages: int
    value: int
    kind: HeldKind | None = None
    flags: PageFlags = NOTHING  # of NO_ACCESS: what it notes
    junk: bool = False

    @property
    def end(self) -> int:
        return self.page + self.pages

    @property
    def framed(self) -> bool:
        return not self.junk and (self.kind is None or self.kind.has_frame)

    @property
    def counts(self) -> bool:
        return not self.junk and (self.kind is None or self.kind.counts_pages)

    def from_page(self, page: int) -> Segment:
        """The part from `page` on."""
        more = page - self.page
        value = self.value + more if self.counts else self.value
        return replace(self, page=page, pages=self.pages - more, value=value)

    def entry(self, fmt: PageTableFormat, level: int = 1) -> int:
        """The entry that says this of its first page, or of all of them at a higher level."""
        if self.junk:
            return self.value
        if self.kind is None:
            return fmt.leaf_entry(self.value << fmt.page_shift, Attributes(self.flags), level)
        value = self.value
        value |= NOTED_ACCESSED if self.flags & PageFlags.ACCESSED else 0
        value |= NOTED_DIRTY if self.flags & PageFlags.DIRTY else 0
        return fmt.held_entry(Held(self.kind, value))


def segment_of(fmt: PageTableFormat, found: Found) -> Segment:
    """What an entry says, as a segment."""
    page, pages = found.start >> fmt.page_shift, fmt.levels[found.level - 1].size >> fmt.page_shift
    match fmt.decode(found.entry, found.level):
        case Leaf(address, attributes):
            return Segment(page, pages, address >> fmt.page_shift, None, attributes.flags)
        case Held(HeldKind.NO_ACCESS, value):
            flags = PageFlags.ACCESSED if value & NOTED_ACCESSED else PageFlags(0)
            flags |= PageFlags.DIRTY if value & NOTED_DIRTY else PageFlags(0)
            return Segment(page, pages, value & NOTED_ACCESSED - 1, HeldKind.NO_ACCESS, flags)
        case Held(kind, value):
            return Segment(page, pages, value, kind)
    return Segment(page, pages, found.entry, junk=True)


def merged(segments: Iterable[Segment]) -> list[Segment]:
    """In order, with those joined that one segment can say together."""
    result: list[Segment] = []
    for segment in sorted(segments, key=lambda s: s.page):
        last = result[-1] if result else None
        if last is not None and last.end == segment.page and not segment.junk:
            longer = replace(last, pages=last.pages + segment.pages)
            if longer.from_page(segment.page) == segment:
                result[-1] = longer
                continue
        result.append(segment)
    return result


def cut(segments: Iterable[Segment], *places: int) -> list[Segment]:
    """The segments, none of which lies over both sides of a place."""
    result = list(segments)
    for place in places:
        for segment in [s for s in result if s.page < place < s.end]:
            result.remove(segment)
            result += [replace(segment, pages=place - segment.page), segment.from_page(place)]
    return result


class Recorder:
    """A gather: keeps what it is told, and counts frames down when it is finished."""

    def __init__(self, table: PageTable) -> None:
        self._table, self.format = table, table.format
        self.owed: list[tuple[int, int]] = []  # (page, pages) since the last flush
        self.flushed: list[tuple[int, int]] = []
        self._frames: list[NDArray[np.int64]] = []
        self._tables: list[int] = []

    def page(self, va: int, size: int = 0) -> None:
        self.owed.append((va >> self.format.page_shift, max(size >> self.format.page_shift, 1)))

    def pages(self, va: int, numbers: NDArray[np.int64]) -> None:
        self.owed += [((va >> self.format.page_shift) + number, 1) for number in numbers.tolist()]

    def drop(self, frame: int) -> None:
        self._frames.append(np.array([frame]))

    def drop_many(self, frames: NDArray[np.int64]) -> None:
        self._frames.append(frames)

    def detach(self, tables: list[int]) -> None:
        self._tables += tables

    def flush(self) -> None:
        self.flushed += self.owed
        self.owed = []

    def finish(self) -> None:
        for frames in self._frames:
            np.subtract.at(self._table.frames.refs_array, frames, np.uint32(1))
            np.subtract.at(self._table.frames.maps_array, frames, np.uint32(1))
        self._table.free_tables(self._tables)


def joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges of (page, pages) in order, those that touch made one."""
    result: list[tuple[int, int]] = []
    for page, pages in sorted(ranges):
        if result and sum(result[-1]) == page:
            result[-1] = (result[-1][0], result[-1][1] + pages)
        else:
            result.append((page, pages))
    return result


class Mixture:
    """A table filled by `seed` with leaves, tables and held entries at every level that allows them."""

    def __init__(self, fmt: PageTableFormat, seed: int) -> None:
        self.format, self.random = fmt, Random(f"{fmt.name} {seed}")
        self.ram = Ram(RAM_BASE, TABLES << fmt.page_shift, fmt.page_size)
        size = max(4 << 30, 80 * fmt.levels[1].size)
        self.frames = FrameTable(RAM_BASE, size, fmt.page_shift)
        self.buddy = Buddy(self.frames, [Zone("tables", 0, TABLES)])
        self.table = self.new_table()
        self.segments: list[Segment] = []
        self._next = RAM_BASE + self.ram.size
        self.zero = self.take(1, Kind.ZERO)
        self.block = fmt.levels[1].size >> fmt.page_shift
        self.start = 2 * fmt.levels[1].contiguous * self.block  # in pages
        self.end = self.start
        self._fill()

    def new_table(self) -> PageTable:
        return PageTable(self.format, self.ram, self.frames, self.buddy, owner=7)

    def take(self, pages: int, kind: Kind, alignment: int | None = None) -> int:
        """Frames in a row, by the number of the first one's address in pages."""
        fmt = self.format
        step = (alignment or pages) << fmt.page_shift
        address = -(-self._next // step) * step
        self._next = address + (pages << fmt.page_shift)
        first = self.frames.number(address)
        self.frames.kind_array[first : first + pages] = kind
        return address >> fmt.page_shift

    def first_frame(self, segment: Segment) -> int | None:
        """The frame of the frame table that the first page shows. None: a device's, or no frame at all."""
        address = segment.value << self.format.page_shift
        if not segment.framed or not 0 <= address - self.frames.base < self.frames.size:
            return None
        return self.frames.number(address)

    def put(self, segment: Segment, level: int, *, contiguous: bool = False) -> None:
        """Write one entry, and count what it stands for."""
        fmt, va = self.format, segment.page << self.format.page_shift
        entry = segment.entry(fmt, level) | (fmt.contiguous_bit if contiguous else 0)
        self.table.write(va, level, self.table.slot(va, level), entry)
        self.segments.append(segment)
        self.end = max(self.end, segment.end)

    def _fill(self) -> None:
        fmt, random = self.format, self.random
        at = self.start
        for what in random.sample(_BLOCKS, len(_BLOCKS)):
            what(self, at)
            at = self.end = at + self.block
        if (run := fmt.levels[1].contiguous) > 1:
            at = -(-at // (run * self.block)) * run * self.block
            first = self.take(run * self.block, Kind.ANON)
            flags = self._flags()
            for number in range(run):
                page, value = at + number * self.block, first + number * self.block
                self.put(Segment(page, self.block, value, None, flags), 2, contiguous=True)
        for level in range(3, fmt.top + 1):  # beside it, upwards
            size = fmt.levels[level - 1].size >> fmt.page_shift
            at = -(-self.end // size) * size
            kind = random.choice([HeldKind.USERFAULT, HeldKind.SWAP, HeldKind.POISON])
            if fmt.levels[level - 1].leaf and size << fmt.page_shift <= 1 << 30:
                self.put(Segment(at, size, self.take(size, Kind.ANON), None, self._flags()), level)
                at += size
            self.put(Segment(at, size, 5, kind), level)
        self.count(self.segments)

    def _flags(self) -> PageFlags:
        extra = [PageFlags.WRITE, PageFlags.EXECUTE, PageFlags.ACCESSED, PageFlags.DIRTY]
        chosen = (flag for flag in extra if self.random.random() < 0.5)
        return PageFlags.READ | PageFlags.USER | sum(chosen, PageFlags(0))

    def count(self, segments: Iterable[Segment]) -> None:
        """Count a reference and a mapping for each page with a frame."""
        self.frames.refs_array[:] += self.expected_counts(segments)
        self.frames.maps_array[:] += self.expected_counts(segments)

    def expected_counts(self, segments: Iterable[Segment]) -> NDArray[np.uint32]:
        """How often each frame is shown, the zero page aside."""
        shown = np.zeros(self.frames.count, np.uint32)
        for segment in segments:
            first = self.first_frame(segment)
            if first is not None and segment.value != self.zero:
                shown[first : first + segment.pages] += 1
        return shown

    # ---- edits beside the model

    def ranges(self, number: int) -> list[tuple[int, int]]:
        """Ranges in pages: all, and some whose ends lie anywhere, often at the edges of large entries."""
        edges = [s.page for s in self.segments] + [s.end for s in self.segments]
        result = [(self.start, self.end)]
        while len(result) < number:
            a, b = (
                self.random.choice(edges) + self.random.choice([0, 0, 1, -1, self.block // 2])
                for _ in range(2)
            )
            a, b = max(min(a, b), self.start), min(max(a, b), self.end)
            if a < b:
                result.append((a, b))
        return result

    def bytes_of(self, start: int, end: int) -> tuple[int, int]:
        """A range in pages as one in bytes."""
        return start << self.format.page_shift, end << self.format.page_shift

    def expect(self, start: int, end: int, change: Change) -> list[tuple[int, int]]:
        """Change the model's segments of a range (None: gone). Returns what that owes the TLB."""
        fmt, owed = self.format, []
        parts = cut(self.segments, start, end)
        self.segments = []
        for segment in parts:
            if not start <= segment.page < end:
                self.segments.append(segment)
                continue
            after = change(segment)
            entry = 0 if after is None else after.entry(fmt)
            moved = after is None or after.value != segment.value
            if owes_flush(fmt, segment.entry(fmt), entry, 1, moved=moved):
                owed.append((segment.page, segment.pages))
            if after is not None:
                self.segments.append(after)
        return joined(owed)

    def read(self, table: PageTable | None = None) -> list[Segment]:
        """What a table says, merged."""
        table = table or self.table
        return merged(segment_of(self.format, f) for f in table.cursor(0, 1 << self.format.virtual_bits))

    def check(self, *others: PageTable) -> None:
        """The table says what the model says, and every frame is counted as often as tables show it."""
        assert self.read() == merged(self.segments)
        shown = [*self.segments, *(s for other in others for s in self.read(other))]
        expected, tables = self.expected_counts(shown), self.frames.kind_array == Kind.TABLE
        assert np.array_equal(self.frames.refs_array * ~tables, expected)
        assert np.array_equal(self.frames.maps_array, expected)
        assert int(np.count_nonzero(tables)) == self.table.tables + sum(other.tables for other in others)

    def close(self) -> None:
        """Everything goes; each table comes back."""
        self.table.destroy()
        assert self.buddy.free_frames == self.buddy.total
        self.ram.close()


def _pages(mixture: Mixture, at: int) -> None:
    """A table of small entries of every sort, some of the same kind in a row."""
    random, block = mixture.random, mixture.block
    places = sorted({0, block - 1, *(random.randrange(block) for _ in range(30))})
    used: set[int] = set()
    for place in places:
        count = min(random.choice([1, 1, 3]), block - place)
        sort = random.choice(["leaf", "leaf", "file", "zero", "below", "beyond", "junk", *HeldKind])
        frameless = sort == "junk" or (isinstance(sort, HeldKind) and not sort.has_frame)
        kind = (
            Kind.FILE if sort == "file" or frameless else Kind.ANON
        )  # what is no frame's number looks like one
        first = mixture.take(4, kind)
        flags = mixture._flags()
        for number in range(count):
            page = at + place + number
            if page in used:
                continue
            used.add(page)
            mixture.put(_small(mixture, page, sort, first + number, flags), 1)


def _small(mixture: Mixture, page: int, sort: str | HeldKind, value: int, flags: PageFlags) -> Segment:
    fmt = mixture.format
    if sort == "zero":
        return Segment(page, 1, mixture.zero, None, flags & ~PageFlags.WRITE)
    if sort in ("below", "beyond"):  # devices, on either side of the frame table
        below, size = RAM_BASE >> fmt.page_shift, mixture.frames.size >> fmt.page_shift
        return Segment(page, 1, value % below if sort == "below" else value + size, None, flags)
    if sort == "junk":
        return Segment(page, 1, fmt.held_entry(Held(HeldKind.SWAP, value)) | 1 << 5, junk=True)
    if not isinstance(sort, HeldKind):
        return Segment(page, 1, value, None, flags)
    if sort is HeldKind.NO_ACCESS:
        return Segment(page, 1, value, sort, flags & NOTED)
    return Segment(page, 1, value, sort)


def _leaf(kind: Kind) -> Callable[[Mixture, int], None]:
    def put(mixture: Mixture, at: int) -> None:
        first = mixture.take(mixture.block, kind)
        mixture.put(Segment(at, mixture.block, first, None, mixture._flags()), 2)

    return put


def _held(kind: HeldKind) -> Callable[[Mixture, int], None]:
    def put(mixture: Mixture, at: int) -> None:
        value = mixture.take(mixture.block, Kind.ANON) if kind.has_frame else 77
        flags = mixture._flags() & NOTED if kind is HeldKind.NO_ACCESS else PageFlags(0)
        mixture.put(Segment(at, mixture.block, value, kind, flags), 2)

    return put


_BLOCKS: list[Callable[[Mixture, int], None]] = [
    _pages,
    _pages,
    _leaf(Kind.ANON),
    _leaf(Kind.ANON),
    _leaf(Kind.FILE),
    *(_held(kind) for kind in HeldKind),
    lambda _mixture, _at: None,
]
