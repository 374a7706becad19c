"""Host files as memory objects: their pages stand in the aperture, where the host maps them.

`HostFiles` finds the object of a file by the file's key, so that every mapping of one file shows one object.
When the aperture wants a slot for another file, or the host has taken pages away, the pages are unmapped
everywhere first (`mm.rmap`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Container, Iterator
from contextlib import suppress
from typing import Any, Protocol

from aether_emu.errors import OutOfFrames, Refused
from aether_emu.machine.memory.aperture import SLOT_SIZE, ApertureFile, BackingFailed
from aether_emu.mm.frames.table import Flags, Kind
from aether_emu.mm.objects.protocol import Backing, Window
from aether_emu.mm.page_cache import PageCache
from aether_emu.mm.physical import Physical
from aether_emu.mm.protection import Protection

_STALE = int(Flags.STALE)  # plain: numpy needs 20 us for an operation with an enum


class Contents(Protocol):
    """Which pages of a file are in memory, where they count: those of a memory file have no other place.

    All in pages of the guest's size.
    """

    mounted: bool  # whether the file has, or had, a name in a mounted file system
    folios: set[int]  # the first page of each huge page that came as such

    def admit(self, first: int, count: int) -> int:
        """How many pages from `first` on may be shown now. One is the page that is touched.

        Of more, only those that are there already. Raises BackingFailed when there is no room for the page.
        """

    def lacks(self, first: int, count: int) -> bool:
        """Whether none of the pages is there, and there is room for all of them before the end."""

    def show(self, first: int, count: int) -> None:
        """Those pages are shown: from now on they are there."""

    def bring_folio(self, first: int, count: int) -> bool:
        """Have all pages of a huge page. False where the file ends before, or there is no room."""

    def resident(self, first: int, count: int) -> bytes:
        """See `Backing.resident`."""

    def punch(self, first: int, count: int) -> None:
        """See `Backing.remove`."""

    def let_go(self) -> None:
        """No mapping shows the file any more."""


_FILE = int(Kind.FILE)


class WriteFailures:
    """That pages of a file could not be written back: how often (`count`), and why the last time (`errno`).

    Each who syncs the file is told of that once; also who opens it before anybody was told (Linux: errseq_t).
    """

    def __init__(self) -> None:
        self.count = self.errno = 0
        self._told = True

    def note(self, number: int) -> None:
        """It happened again."""
        self.count, self.errno, self._told = self.count + 1, number, False

    def sample(self) -> int:
        """What somebody knows who opens the file now."""
        return self.count - (not self._told)

    def tell(self, known: int) -> int:
        """The errno for somebody who knows of so many; 0 if nothing is new. Then he knows of `count`."""
        if known == self.count:
            return 0
        self._told = True
        return self.errno

    def capture(self) -> tuple[int, int, bool]:
        """All of it, as plain data."""
        return self.count, self.errno, self._told

    def restore(self, state: tuple[int, int, bool]) -> None:
        """Become the captured one."""
        self.count, self.errno, self._told = state


class FileBacking(Backing):
    """A host file in the aperture. Pages are the file's own host pages: nothing is copied.

    `identity` is the device and inode number under which programs know the file. `contents` says which pages
    are in memory; without it (a file on storage) `Physical.cache` does, or all up to the end are, as in the
    host's page cache.
    """

    in_place = True

    def __init__(
        self,
        physical: Physical,
        file: ApertureFile,
        key: tuple[int, int],
        name: str,
        files: HostFiles,
    ) -> None:
        super().__init__(physical.objects)
        self._physical = physical
        self.file, self.key = file, key
        self.identity = (0, 0)
        self.contents: Contents | None = None
        self.failed = WriteFailures()
        self.failures_known = 0  # of those, what msync has told
        self._name = name
        self._files = files

    @property
    def name(self) -> str:
        return self._name

    @property
    def writable(self) -> bool:
        return self.file.writable

    def frames(self, index: int, count: int, *, write: bool) -> tuple[int, int]:
        if self.contents is not None:
            return self._shown(index, self.contents.admit(index, count), write=write)
        cache = self._physical.cache
        if cache is not None and count > 1:
            count = self._in_a_row(cache, index, count)
        first, count = self._shown(index, count, write=write)
        if cache is not None and count == 1:
            if not cache.has(first):
                cache.bring(first)
                self._read_around(cache, index, first)
            if write:
                cache.soil(first)
        return first, count

    def bring(self, index: int, count: int, *, write: bool) -> tuple[int, int]:
        """As `frames`, of a memory file that lacks all of these pages: from now on it has those returned."""
        return self._shown(index, count, write=write)

    def _shown(self, index: int, count: int, *, write: bool) -> tuple[int, int]:
        address, count = self.file.frames(index, count, write=write)
        if self.contents is not None:
            self.contents.show(index, count)
        table = self._physical.frames
        first = table.number(address)
        if bytes(table.kind[first : first + count]).count(_FILE) < count:
            table.claim(first, count, Kind.FILE, self.number, index)
        return first, count

    @property
    def cache(self) -> PageCache | None:
        """What counts its pages as memory, if something does."""
        return self._physical.cache if self.contents is None else None

    def _in_a_row(self, cache: PageCache, index: int, count: int) -> int:
        """How many of `count` pages from `index` on are in memory, up to the first that is not."""
        first, each = self._frame_of(cache, index), SLOT_SIZE >> self._physical.frames.page_shift
        found = 0 if first < 0 else cache.row(first, min(count, each - index % each))
        if not found:
            raise BackingFailed(index, "it is not in memory yet")
        return found

    def _frame_of(self, cache: PageCache, index: int) -> int:
        """The frame of a page whose slot is bound; -1 where it is not."""
        extent, within = divmod(index << self._physical.frames.page_shift, SLOT_SIZE)
        slot = self.file.slots.get(extent)
        shift = self._physical.frames.page_shift
        return -1 if slot is None else cache.base + (slot.index * SLOT_SIZE + within >> shift)

    def _read_around(self, cache: PageCache, index: int, frame: int) -> None:
        """A page was read: read those around it, as long as memory is not short."""
        physical, first = self._physical, index - index % cache.around
        shift, reclaim = physical.frames.page_shift, physical.reclaim
        end = min(first + cache.around, self.file.size + (1 << shift) - 1 >> shift)
        at = frame - (index - first)
        physical.frames.claim(at, end - first, Kind.FILE, self.number, first)
        with suppress(OutOfFrames):  # the page that is wanted is there
            for near in range(at, at + end - first):
                if reclaim is not None and reclaim.is_short:
                    return
                if not cache.has(near):
                    cache.bring(near)

    def stretches(self, cache: PageCache, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Those of some pages whose slots are bound, in rows: (first page, its frame, how many)."""
        each = SLOT_SIZE >> self._physical.frames.page_shift
        for extent in sorted(self.file.slots):
            low, high = max(first, extent * each), min(first + count, (extent + 1) * each)
            if low < high:
                yield low, self._frame_of(cache, low), high - low

    def leave_memory(self, first: int, count: int) -> None:
        """Pages that no entry shows any more leave memory, as the file is about to lose them."""
        if self.cache is not None:
            for _page, frame, length in self.stretches(self.cache, first, count):
                self.cache.forget(frame, length)

    @property
    def takes_stores(self) -> bool:
        """See `Backing.takes_stores`. Pages in memory do; on storage a block may be missing, and who caches
        pages hears of the first store.
        """
        return self.contents is not None

    @property
    def folios(self) -> Collection[int]:
        """See `Backing.folios`."""
        return () if self.contents is None else self.contents.folios

    @property
    def length_in_pages(self) -> int:
        """See `Backing.length_in_pages`."""
        return self.file.size >> self._physical.frames.page_shift

    def block(self, first: int, count: int, *, write: bool) -> int | None:
        """The first frame of all pages of a huge page of a memory file, ready to map.

        None where the file ends before, or the memory for it cannot be had.
        """
        assert self.contents is not None, "only memory files have huge pages"
        if not self.contents.bring_folio(first, count):
            return None
        frame, there = self.frames(first, count, write=write)
        return frame if there == count else None

    def copy_page(self, index: int, into: memoryview) -> None:
        if self.contents is not None:
            self.contents.admit(index, 1)
        elif self.cache is not None:
            self.frames(index, 1, write=False)  # what is copied comes into memory first
        self.file.read_page(index, into)
        if self.contents is not None:
            self.contents.show(index, 1)

    def resident(self, first: int, count: int) -> bytes:
        if self.contents is not None:
            return self.contents.resident(first, count)
        page_size = 1 << self._physical.frames.page_shift
        there = max(0, min(count, -(-self.file.size // page_size) - first))
        if self.cache is None:
            return b"\1" * there + bytes(count - there)
        answer = bytearray(count)
        for page, frame, length in self.stretches(self.cache, first, there):
            answer[page - first : page - first + length] = self.cache.there(frame, length).tobytes()
        return bytes(answer)

    def remove(self, first: int, count: int) -> None:
        if self.contents is not None:
            self.contents.punch(first, count)
        else:
            if self.key in self._files.swap_files:
                raise Refused(errno.ETXTBSY, "it is a swap file")
            self.leave_memory(first, count)
            self.file.punch(first, count)

    def shows_stores(self) -> bool:
        """Whether an area shows the file shared, and may ever be written (Linux: `i_mmap_writable`)."""
        return any(area.shared and area.maximum & Protection.WRITE for area in self.windows)

    def sync(self) -> None:
        failure, self.failures_known = self.failed.tell(self.failures_known), self.failed.count
        self.file.sync()
        if failure:
            raise Refused(failure, "pages could not be written back")

    def link(self, area: Window, first: int, count: int) -> None:
        super().link(area, first, count)
        if self._physical.cache is not None:
            self._physical.cache.unused.pop(self.number, None)

    def _release_if_unused(self) -> None:
        cache = self.cache
        is_unused = not self._holds and not self.windows
        if is_unused and cache is not None and (self.number in cache.unused or cache.keep(self)):
            return
        super()._release_if_unused()

    def has_name(self) -> bool:
        """Whether the host has a name for it."""
        return self.file.links > 0

    def end(self) -> None:
        """Let go of the file, which no area shows, and which the page cache keeps no longer."""
        super()._release_if_unused()

    def release(self) -> None:
        self._files.forget(self)
        self.file.close()
        if self.contents is not None:
            self.contents.let_go()

    def capture(self) -> dict[str, Any]:
        """See `Backing.capture`. Which file it is; its contents stay on the host."""
        which = {"name": self.name, "key": self.key, "writable": self.writable}
        failed = {"failed": self.failed.capture(), "failures_known": self.failures_known}
        return {"kind": "file", "number": self.number} | which | failed


class HostFiles:
    """The files that areas show, one `FileBacking` for each host file, found again by its key.

    `unmap` removes every entry that shows some pages of an object, and flushes.
    """

    def __init__(self, physical: Physical, unmap: Callable[[FileBacking, int, int], None]) -> None:
        self._physical, self._unmap = physical, unmap
        self._by_key: dict[object, FileBacking] = {}
        self.swap_files: Container[tuple[int, int]] = ()  # whose pages nobody takes from them
        physical.aperture.on_evict = self._evict

    def open(
        self,
        fd: int,
        key: tuple[int, int],
        name: str,
        *,
        writable: bool,
        identity: tuple[int, int] = (0, 0),
    ) -> FileBacking:
        """The object of a host file; `fd` may be closed afterwards. Raises what the aperture refuses."""
        known = self._by_key.get(key)
        if known is not None:
            if writable and not known.file.writable:
                known.file = self._physical.aperture.attach(fd, key, writable=True)
                self._becomes_shared(known)  # code of it may be mapped already
                known.file.close()  # `attach` counted one more reference to the same file
            return known
        file = self._physical.aperture.attach(fd, key, writable=writable)
        backing = FileBacking(self._physical, file, key, name, self)
        backing.identity = identity
        self._by_key[key] = backing
        return backing

    def _becomes_shared(self, backing: FileBacking) -> None:
        """Stores may reach the file from now on."""
        physical = self._physical
        count = SLOT_SIZE >> physical.frames.page_shift
        for slot in backing.file.slots.values():
            first = physical.frames.number(physical.aperture.base + slot.index * SLOT_SIZE)
            physical.code.become_shared(first, count)

    def showing(self, file: ApertureFile) -> FileBacking | None:
        """The object of a file of the aperture."""
        found = self._by_key.get(file.key)
        return found if found is not None and found.file is file else None

    def find(self, key: tuple[int, int]) -> FileBacking | None:
        """The object of a file that some area shows now."""
        return self._by_key.get(key)

    def forget(self, backing: FileBacking) -> None:
        """Nobody shows that object any more."""
        del self._by_key[backing.key]

    def unmap_pages(self, backing: FileBacking, first: int, count: int) -> None:
        """Remove every entry that shows pages `[first, first + count)` of a file, and flush."""
        self._unmap(backing, first, count)

    def _evict(self, address: int, length: int) -> None:
        """The aperture wants a slot back: unmap its pages everywhere, then let its frames go."""
        physical = self._physical
        first = physical.frames.number(address)
        count = length >> physical.frames.page_shift
        file, index = physical.aperture.owner_of(address)
        backing = self._by_key.get(file.key)
        if backing is not None:
            self._unmap(backing, index, count)
        physical.tlb.settle()  # also where its last area has just gone
        if physical.cache is not None:
            physical.cache.forget(first, count)
        physical.code.retire_range(first, count)
        physical.frames.flags_array[first : first + count] &= _STALE
        physical.frames.release(first, count)
