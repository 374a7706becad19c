"""Host files as memory objects: their pages stand in the aperture, where the host maps them.

`HostFiles` finds the object of a file by the file's key, so that every mapping of one file shows one object.
When the aperture wants a slot for another file, or the host has taken pages away, the pages are unmapped
everywhere first (`mm.rmap`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Container
from typing import Any, Protocol

from aether_emu.errors import Refused
from aether_emu.machine.memory.aperture import SLOT_SIZE, ApertureFile
from aether_emu.mm.frames.table import Flags, Kind
from aether_emu.mm.objects.protocol import Backing
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


class FileBacking(Backing):
    """A host file in the aperture. Pages are the file's own host pages: nothing is copied.

    `identity` is the device and inode number under which programs know the file. `contents` says which pages
    are in memory; without it (a file on storage) all up to the end count as in the host's page cache.
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
            count = self.contents.admit(index, count)
        return self._shown(index, count, write=write)

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
        self.file.read_page(index, into)
        if self.contents is not None:
            self.contents.show(index, 1)

    def resident(self, first: int, count: int) -> bytes:
        if self.contents is not None:
            return self.contents.resident(first, count)
        page_size = 1 << self._physical.frames.page_shift
        there = max(0, min(count, -(-self.file.size // page_size) - first))
        return b"\1" * there + bytes(count - there)

    def remove(self, first: int, count: int) -> None:
        if self.contents is not None:
            self.contents.punch(first, count)
        else:
            if self.key in self._files.swap_files:
                raise Refused(errno.ETXTBSY, "it is a swap file")
            self.file.punch(first, count)

    def shows_stores(self) -> bool:
        """Whether an area shows the file shared, and may ever be written (Linux: `i_mmap_writable`)."""
        return any(area.shared and area.maximum & Protection.WRITE for area in self.windows)

    def sync(self) -> None:
        self.file.sync()

    def release(self) -> None:
        self._files.forget(self)
        self.file.close()
        if self.contents is not None:
            self.contents.let_go()

    def capture(self) -> dict[str, Any]:
        """See `Backing.capture`. Which file it is; its contents stay on the host."""
        which = {"name": self.name, "key": self.key, "writable": self.writable}
        return {"kind": "file", "number": self.number} | which


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
        physical.code.retire_range(first, count)
        physical.frames.flags_array[first : first + count] &= _STALE
        physical.frames.release(first, count)
