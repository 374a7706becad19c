"""Merging: private pages with equal bytes become one frame, of which whoever writes gets a copy (Linux: KSM).

    page ─▶ frame  "abc"        no entry permits a write, and every CPU knows        nobody stores meanwhile
    page ─▶ frame  "abc"        the bytes are compared once more                     now they count
         │
    page ─┬▶ frame "abc"        one entry is exchanged (broken before it is made), the other frame goes
    page ─┘                     back when every CPU has acknowledged

What may be merged a program says (MADV_MERGEABLE, PR_SET_MEMORY_MERGE). A scan looks for it: at first for a
merged frame with the same bytes; else, if the page has not changed since the last pass, for another page of
this pass. Nobody writes to a merged frame: a write gets a copy, even where no other page shows it any more.
A large leaf, or a contiguous run, is looked at page by page, and cut as soon as one of them is to be merged.
"""

from __future__ import annotations

import errno
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from aether_emu.arch.paging import PageTableFormat
from aether_emu.errors import OutOfFrames, Refused
from aether_emu.mm.allocation import Area, AreaFlags
from aether_emu.mm.counters import Event
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.hugepage import split_at
from aether_emu.mm.objects.merged import MergedMemory, Page
from aether_emu.mm.physical import Physical
from aether_emu.mm.protection import Protection
from aether_emu.mm.rmap import Mapping, mappings
from aether_emu.mm.scanned import Scanned
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.count import has_frame
from aether_emu.mm.tables.damage import TableDamaged
from aether_emu.mm.tables.tree import Found

MOST_SHARING = 256
"""Pages that show one merged frame, unless root says otherwise (Linux: max_page_sharing)."""

_ANON, _MERGEABLE = int(Kind.ANON), int(AreaFlags.MERGEABLE)


class _Page(NamedTuple):
    """A page that may be merged: where it is, the entry that shows it, and its frame."""

    space: AddressSpace
    area: Area
    found: Found
    frame: int


def mergeable(area: Area) -> bool:
    """Whether pages of an area may be merged: private, advised so, and nobody answers its faults."""
    return bool(area.flags & _MERGEABLE) and not area.shared and area.watcher is None


# ---- undoing it


def unmerge(space: AddressSpace, start: int, end: int) -> None:
    """Give each page of a range that is merged a frame of its own. Raises OutOfFrames in the midst of it.

    So with those that the scan let show the zero page (Linux: break_ksm of a ksm_zero_pte).
    """
    merged, scan = space.physical.merged, space.physical.merge_scan
    if merged is not None:
        try:
            for found in space.table.cursor(start, end):
                _give_own(space, found, _merged_frame)
        finally:
            merged.living()  # the others are forgotten at once: nobody may scan any more
    if isinstance(scan, MergeScan):
        for address in scan.zeros_of(space):
            zero = space.table.find(address) if start <= address < end else None
            if zero is not None:
                _give_own(space, Found(address, zero.level, zero.slot, zero.entry), _zero_frame)


def _give_own(
    space: AddressSpace, found: Found, shown: Callable[[Physical, PageTableFormat, Found], int | None]
) -> None:
    """Give a page a frame of its own, if its entry shows one of those that `shown` tells."""
    physical, fmt = space.physical, space.table.format
    frame = shown(physical, fmt, found)
    while frame is not None:
        try:
            _unmerge_one(space, found, frame)
            return
        except OutOfFrames as short:
            if physical.reclaim is None or not physical.reclaim.make_room(short.wanted):
                raise
        found = Found(found.start, 1, found.slot, physical.ram.words[found.slot])  # it may have gone
        frame = shown(physical, fmt, found)


def _zero_frame(physical: Physical, fmt: PageTableFormat, found: Found) -> int | None:
    """The zero page, if an entry shows it."""
    if found.level != 1 or not has_frame(fmt, found.entry, 1):
        return None
    zero = physical.zero_frame
    return zero if found.entry & fmt.address_mask == physical.frames.address(zero) else None


def _merged_frame(physical: Physical, fmt: PageTableFormat, found: Found) -> int | None:
    """The merged frame that an entry shows, if it does."""
    if found.level != 1 or not has_frame(fmt, found.entry, 1):
        return None
    frames = physical.frames
    frame = (found.entry & fmt.address_mask) - frames.base >> fmt.page_shift
    return frame if 0 <= frame < frames.count and physical.is_merged(frame) else None


def _unmerge_one(space: AddressSpace, found: Found, frame: int) -> None:
    physical, area = space.physical, space.areas.find(found.start)
    assert area is not None, "entries of the user's half lie in areas"
    index = (found.start >> space.table.format.page_shift) + area.moved
    own = physical.take(Kind.ANON, area.owner, index)
    physical.frames.maps[own] = 1
    physical.page_bytes(own)[:] = physical.page_bytes(frame)
    _show(space, area, found, own, frame)
    physical.counters.n[Event.UNMERGED_PAGES] += 1
    physical.counters.n[Event.COPIED_PAGES] += 1


def unmerge_advised(space: AddressSpace, start: int, end: int) -> None:
    """MADV_UNMERGEABLE, before the area forgets its advice. Raises Refused(EAGAIN) as Linux does."""
    try:
        unmerge(space, start, end)
    except OutOfFrames:
        raise Refused(errno.EAGAIN, "no memory to unmerge") from None


def set_merge_any(space: AddressSpace, *, on: bool) -> None:
    """PR_SET_MEMORY_MERGE: let all private memory be mergeable, now and later, or none any more.

    Raises Refused(ENOMEM) where a page cannot have a frame of its own again; the setting stays then.
    """
    if on == space.merge_any:
        return
    if not on:
        try:
            unmerge(space, 0, space.limits.user_end)
        except OutOfFrames:
            raise Refused(errno.ENOMEM, "no memory to unmerge") from None
    for area in list(space.areas):
        if not area.shared and (area.backing is None or not area.backing.whole):
            flags = area.flags | _MERGEABLE if on else area.flags & ~_MERGEABLE
            found = space.areas.find(area.start)  # a neighbour may have taken it in
            assert found is not None, "it is not unmapped"
            space.mark(found, area.start, area.end, flags)
    space.merge_any = on


def _show(space: AddressSpace, area: Area, found: Found, frame: int, old: int) -> None:
    """Let an entry show another frame, with the same rights; `old` loses a reference, after the flush."""
    physical, fmt = space.physical, space.table.format
    if area.protection & Protection.EXECUTE:
        physical.code.executable(frame, mutable=True)
    entry = space.physical.ram.words[found.slot]
    changed = entry ^ physical.frames.address(old) ^ physical.frames.address(frame)
    if entry & fmt.present_mask:
        space.replace_entry(found.start, found.slot, changed, None if old == physical.zero_frame else old)
        physical.tlb.settle()
    else:
        gather = space.gather()
        space.table.write(found.start, 1, found.slot, changed)
        if old != physical.zero_frame:  # which counts no references
            gather.drop(old)
        gather.finish()


# ---- doing it


def _alike(physical: Physical, one: int, other: int) -> bool:
    """Whether two frames have the same bytes. As bytes: Python compares those of views one by one."""
    return bytes(physical.page_bytes(one)) == bytes(physical.page_bytes(other))


def _stands_still(physical: Physical, frame: int) -> bool:
    """See to it that nobody can write to a frame. False where somebody else may: it is left alone then."""
    frames = physical.frames
    shown = list(mappings(physical, frame))
    if len(shown) != frames.maps[frame] or frames.refs[frame] != frames.maps[frame]:
        return False
    if not all(_single(mapping) for mapping in shown):
        try:
            shown = [each for mapping in shown for each in _cut(physical, frame, mapping)]
        except OutOfFrames:
            return False
        if len(shown) != frames.maps[frame]:
            return False
    for mapping in shown:
        table, found = mapping.space.table, mapping.found
        fmt = table.format
        if found.entry & fmt.present_mask and fmt.writable(found.entry):
            gather = mapping.space.gather()
            table.replace(found.start, found, fmt.write_protect(found.entry))
            gather.page(found.start)
            gather.finish_at_once()
    physical.tlb.settle()
    return True


def _single(mapping: Mapping) -> bool:
    """Whether an entry stands for one page alone."""
    fmt, found = mapping.space.table.format, mapping.found
    return found.level == 1 and not (found.entry & fmt.present_mask and found.entry & fmt.contiguous_bit)


def _cut(physical: Physical, frame: int, mapping: Mapping) -> list[Mapping]:
    """A mapping by an entry of one page, cut out of a large leaf or a run. Raises OutOfFrames."""
    if _single(mapping):
        return [mapping]
    space, address = mapping.space, int(mapping.address)
    assert isinstance(space, AddressSpace), "areas are of such"
    found = split_at(space, address, mapping.found)
    return [] if found is None else [Mapping(space, mapping.address, found)]


class MergeScan:
    """Looks at mergeable pages of all address spaces in turn, some at a time, and merges equal ones.

    `position` is where it goes on: the number of a space, and an address there. `unshared` and `volatile` are
    pages of the last whole pass that were found alone, and that had changed since the one before. At most
    `most` pages come to show one frame, so that the way back from it stays short; others get another.
    """

    def __init__(self, physical: Physical, pages: int, *, zero_pages: bool = False) -> None:
        self.physical, self.pages, self.zero_pages = physical, pages, zero_pages
        self.position, self.most = (0, 0), MOST_SHARING
        self.passes = self.unshared = self.volatile = 0
        self._scanned, self._shift = Scanned(), physical.frames.page_shift
        self._changed = 0
        self._spaces: dict[int, AddressSpace] = {}

    def look(self, spaces: Sequence[AddressSpace]) -> int:
        """Look at so many pages as it does at once, or at all. Returns how many it merged."""
        self._spaces = {space.number: space for space in spaces}
        left, done = self.pages, 0
        for space, area, found in self._from_here():
            self.position = (space.number, found.start + space.page_size)
            try:
                done += self._look_at(space, area, found)
            except TableDamaged:
                done += 0  # whoever needs the page finds that
            left -= 1
            if not left:
                return done
        self._end_pass()
        return done

    def looked_at(self, space: AddressSpace) -> int:
        """How many pages of a space it keeps in mind."""
        return self._scanned.known(space.number)

    def zeros_of(self, space: AddressSpace) -> list[int]:
        """The pages of a space, by address, that it let show the zero page, and that still do."""
        zero, fmt = self.physical.frames.address(self.physical.zero_frame), space.table.format
        pages = [page << self._shift for page in self._scanned.zeros_of(space.number)]
        found = [space.table.find(address) for address in pages]
        return [
            address
            for address, each in zip(pages, found, strict=True)
            if each is not None and each.entry & fmt.address_mask == zero
        ]

    def forget(self) -> None:
        """Begin anew, as if nothing had been looked at (Linux: remove_all_stable_nodes)."""
        self.position = (0, 0)
        self.passes = self.unshared = self.volatile = self._changed = 0
        self._scanned = Scanned()

    def _end_pass(self) -> None:
        self.position = (0, 0)
        self.passes += 1
        self.unshared, self.volatile = self._scanned.alone, self._changed
        self._scanned.end_pass(self._spaces)
        self._changed = 0
        if self.physical.merged is not None:
            _tidy(self.physical, self.physical.merged)

    def _from_here(self) -> Iterator[tuple[AddressSpace, Area, Found]]:
        """Each entry of what may be merged, from the position on."""
        number, address = self.position
        for space in sorted(self._spaces.values(), key=lambda each: each.number):
            if space.number < number:
                continue
            at = address if space.number == number else 0
            while (area := space.areas.following(at)) is not None:
                start = max(at, area.start)
                at = area.end
                if mergeable(area):
                    try:
                        for found in space.table.cursor(start, area.end):
                            if found.level == 1:
                                yield space, area, found
                            else:
                                yield from self._pages_of(space, area, found, start)
                    except TableDamaged:
                        continue

    def _pages_of(
        self, space: AddressSpace, area: Area, found: Found, start: int
    ) -> Iterator[tuple[AddressSpace, Area, Found]]:
        """What stands at each page of a large leaf, which may be cut meanwhile."""
        end = found.start + space.table.format.levels[found.level - 1].size
        if self._page(space, area, found) is None:  # the huge page of zeros, or held
            return
        for address in range(max(start, found.start), end, space.page_size):
            there = space.table.find(address)
            if there is not None:
                yield space, area, Found(address, there.level, there.slot, there.entry)

    def _page(self, space: AddressSpace, area: Area, found: Found) -> _Page | None:
        """The page at an entry's start, if it may be merged and is not yet."""
        fmt, frames = space.table.format, self.physical.frames
        if not found.entry & fmt.present_mask or (area.backing is not None and area.backing.huge_size):
            return None
        within = found.start & fmt.levels[found.level - 1].size - 1
        frame = fmt.leaf_address(found.entry, found.level) + within - frames.base >> fmt.page_shift
        if not 0 <= frame < frames.count or frames.kind[frame] != _ANON or self.physical.is_merged(frame):
            return None
        return _Page(space, area, found, frame) if frames.refs[frame] == frames.maps[frame] else None

    def _look_at(self, space: AddressSpace, area: Area, found: Found) -> bool:
        page, physical, scanned = self._page(space, area, found), self.physical, self._scanned
        if page is None:
            if _merged_frame(physical, space.table.format, found) is not None:
                scanned.note_merged(space.number, found.start >> self._shift)
            return False
        physical.counters.n[Event.MERGE_SCANNED] += 1
        checksum = zlib.crc32(physical.page_bytes(page.frame))
        if self.zero_pages and area.backing is None and _alike(physical, page.frame, physical.zero_frame):
            return self._look_at_zeros(page, checksum)
        same = scanned.note(space.number, found.start >> self._shift, checksum)
        equal = None if physical.merged is None else self._equal_frame(physical.merged, page.frame, checksum)
        if equal is not None:
            return self._join(page, equal)
        if not same:
            self._changed += 1
            return False
        other = self._waiting(checksum)
        if other is None:
            scanned.let_wait(found.start >> self._shift, checksum)
            return False
        if other.frame == page.frame or not self._pair(page, other, checksum):
            return False
        scanned.found(checksum)
        return True

    def _equal_frame(self, merged: MergedMemory, frame: int, checksum: int) -> int | None:
        physical = self.physical
        for other in merged.alike(checksum, self.most):
            if _alike(physical, other, frame):
                return other
        return None

    def _waiting(self, checksum: int) -> _Page | None:
        """The page of this pass with this checksum, if it is still there."""
        place = self._scanned.waits_for(checksum)
        if place is None:
            return None
        space, address = self._spaces.get(place[0]), place[1] << self._shift
        area = None if space is None else space.areas.find(address)
        if space is None or area is None or not mergeable(area):
            return None
        found = space.table.find(address)
        if found is None:
            return None
        return self._page(space, area, Found(address, found.level, found.slot, found.entry))

    def _pair(self, page: _Page, other: _Page, checksum: int) -> bool:
        """Two pages that may be equal: the frame of the one becomes a merged one, if they are."""
        physical = self.physical
        if not _stands_still(physical, page.frame) or not _stands_still(physical, other.frame):
            return False
        if not _alike(physical, page.frame, other.frame):
            return False
        physical.with_merged().adopt(page.frame, checksum)
        physical.counters.n[Event.MERGED_PAGES] += 1
        return self._join(other, page.frame)

    def _join(self, page: _Page, merged: int) -> bool:
        """A page that is equal to a merged frame shows that from now on."""
        physical, frames, old = self.physical, self.physical.frames, page.frame
        if not _stands_still(physical, old):
            return False
        if not _alike(physical, old, merged):
            return False
        found = page.space.table.find(page.found.start)
        assert found is not None and found.level == 1, "the page stands still, by an entry of its own"
        physical.with_merged().join(merged, (frames.owner[old], frames.index[old]))
        frames.refs[merged] += 1
        frames.maps[merged] += 1
        _show(page.space, page.area, found, merged, old)
        physical.counters.n[Event.MERGED_PAGES] += 1
        return True

    def _look_at_zeros(self, page: _Page, checksum: int) -> bool:
        joined = False
        try:
            joined = self._join_zeros(page)
        finally:
            if not joined:
                self._scanned.note(page.space.number, page.found.start >> self._shift, checksum)
        return joined

    def _join_zeros(self, page: _Page) -> bool:
        """A page of zeros shows the zero page from now on."""
        physical = self.physical
        if not _stands_still(physical, page.frame) or not _alike(physical, page.frame, physical.zero_frame):
            return False
        found = page.space.table.find(page.found.start)
        assert found is not None and found.level == 1, "the page stands still, by an entry of its own"
        _show(page.space, page.area, found, physical.zero_frame, page.frame)
        self._scanned.note_zero(page.space.number, page.found.start >> self._shift)
        physical.counters.n[Event.MERGED_ZEROS] += 1
        return True

    def kept(self) -> int:
        """Bytes that it takes for what it remembers."""
        return sum(column.nbytes for column in self._scanned.kept())

    def capture(self) -> dict[str, Any]:
        """Where it is, and what it remembers."""
        return {
            "pages": self.pages,
            "most": self.most,
            "zero_pages": self.zero_pages,
            "position": self.position,
            "figures": (self.passes, self.unshared, self.volatile, self._changed),
            "scanned": self._scanned.capture(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Be there."""
        self.most = state["most"]
        self.pages, self.zero_pages, self.position = state["pages"], state["zero_pages"], state["position"]
        self.passes, self.unshared, self.volatile, self._changed = state["figures"]
        self._scanned.restore(state["scanned"])


def _tidy(physical: Physical, merged: MergedMemory) -> None:
    """Forget the pages that show their merged frames no more."""

    def still_shows(frame: int, pages: list[Page]) -> list[Page]:
        try:
            return [page for page in pages if any(mappings(physical, frame, page))]
        except TableDamaged:  # whoever needs the page finds that
            return pages

    merged.tidy(still_shows)


def figures(physical: Physical) -> tuple[int, int]:
    """Merged frames, and how many pages show one beyond the first of each: pages_shared, pages_sharing."""
    merged = physical.merged
    shown = [] if merged is None else [physical.frames.maps[frame] for frame in merged.living()]
    return len(shown), sum(shown) - len(shown)


def duplicates(physical: Physical) -> tuple[int, int]:
    """Contents of which there is more than one merged frame, and how many frames those are."""
    merged, alike = physical.merged, dict[bytes, int]()
    for frame in () if merged is None else merged.living():
        content = bytes(physical.page_bytes(frame))
        alike[content] = alike.get(content, 0) + 1
    several = [count for count in alike.values() if count > 1]
    return len(several), sum(several)


def merged_pages(space: AddressSpace) -> int:
    """How many pages of a space show a merged frame."""
    merged = space.physical.merged
    if merged is None:
        return 0
    shown = space.shown(0, space.limits.user_end)
    frames = space.physical.frames
    alike = (frames.owner_array[shown] == merged.number) & (frames.kind_array[shown] == _ANON)
    return int(alike.sum())
