"""Where the pages of an area come from, behind one protocol.

Private anonymous memory has no backing object: its pages belong to the address space. Every other
area names a `Backing` and a page offset into it. Reverse mapping goes through here: a frame names
(owner, index), the backing of that number knows the areas that show it, and an area's start and
offset give the address. No list is kept for each entry.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from aether_emu.machine.memory.aperture import ApertureFile, BeyondEnd
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.physical import Physical

if TYPE_CHECKING:
    from aether_emu.mm.space import AddressSpace


class Backing(ABC):
    """An object whose pages areas can show. `spaces` are the address spaces that have such areas."""

    in_place: bool  # frames live in the aperture and are never freed to the buddy allocator

    def __init__(self, physical: Physical) -> None:
        self.physical = physical
        self.number = physical.new_owner()
        self.spaces: dict[AddressSpace, int] = {}  # space -> how many of its areas

    @property
    @abstractmethod
    def name(self) -> str:
        """What /proc/self/maps shows."""

    @property
    @abstractmethod
    def writable(self) -> bool:
        """Whether any mapping may store into the pages."""

    @abstractmethod
    def frames(self, index: int, count: int, *, write: bool) -> tuple[int, int]:
        """Frame of page `index` and how many of up to `count` pages follow it in a row, ready to map.

        Raises BeyondEnd or BackingFailed when there is no such page, OutOfFrames, ApertureFull.
        """

    @abstractmethod
    def copy_page(self, index: int, into: memoryview) -> None:
        """Copy page `index` into a buffer of one page. Raises as `frames`."""

    @abstractmethod
    def sync(self) -> None:
        """Write back what was stored (msync). Raises Refused."""

    @abstractmethod
    def release(self) -> None:
        """The last area is gone and nobody else holds the object."""

    def attach(self, space: AddressSpace) -> None:
        """`space` has one more area of this backing."""
        self.spaces[space] = self.spaces.get(space, 0) + 1

    def detach(self, space: AddressSpace) -> None:
        """`space` has one area less; the last one anywhere releases the object."""
        self.spaces[space] -= 1
        if not self.spaces[space]:
            del self.spaces[space]
        if not self.spaces:
            self.release()


class FileBacking(Backing):
    """A host file in the aperture. Pages are the file's own host pages: nothing is copied."""

    in_place = True

    def __init__(
        self, physical: Physical, file: ApertureFile, key: tuple[int, int], name: str, files: FileTable
    ) -> None:
        super().__init__(physical)
        self.file, self.key = file, key
        self.identity = (0, 0)
        self._name = name
        self._files = files

    @property
    def name(self) -> str:
        return self._name

    @property
    def writable(self) -> bool:
        return self.file.writable

    def frames(self, index: int, count: int, *, write: bool) -> tuple[int, int]:
        address, count = self.file.frames(index, count, write=write)
        table = self.physical.frames
        first = table.number(address)
        if (table.kind_array[first : first + count] != Kind.FILE).any():
            table.claim(first, count, Kind.FILE, self.number, index)
        return first, count

    def copy_page(self, index: int, into: memoryview) -> None:
        self.file.read_page(index, into)

    def sync(self) -> None:
        self.file.sync()

    def release(self) -> None:
        self._files.forget(self)
        self.file.close()


class FileTable:
    """The files that areas show, one `FileBacking` for each host file, found again by its key."""

    def __init__(self, physical: Physical) -> None:
        self._physical = physical
        self._by_key: dict[object, FileBacking] = {}
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
        """The backing of a host file; `fd` may be closed afterwards. Raises what the aperture refuses.

        `identity` are the device and inode number under which programs know the file.
        """
        known = self._by_key.get(key)
        if known is not None:
            if writable and not known.file.writable:
                known.file = self._physical.aperture.attach(fd, key, writable=True)
                self._physical.code.mutable = True  # code of it may be mapped already
                known.file.close()  # `attach` counted one more reference to the same file
            return known
        file = self._physical.aperture.attach(fd, key, writable=writable)
        backing = FileBacking(self._physical, file, key, name, self)
        backing.identity = identity
        self._by_key[key] = backing
        return backing

    def showing(self, file: ApertureFile) -> FileBacking | None:
        """The backing of a file of the aperture."""
        found = self._by_key.get(file.key)
        return found if found is not None and found.file is file else None

    def find(self, key: tuple[int, int]) -> FileBacking | None:
        """The backing of a file that some area shows now."""
        return self._by_key.get(key)

    def forget(self, backing: FileBacking) -> None:
        """Called by a backing that is being released."""
        del self._by_key[backing.key]

    def unmap_pages(self, backing: FileBacking, first: int, count: int) -> None:
        """Remove every entry that shows pages `[first, first + count)` of a file, and flush."""
        for space in list(backing.spaces):
            space.zap_backing(backing, first, count)

    def _evict(self, address: int, length: int) -> None:
        """The aperture wants a slot back: unmap its pages everywhere, then let its frames go."""
        physical = self._physical
        first = physical.frames.number(address)
        count = length >> physical.frames.page_shift
        file, index = physical.aperture.owner_of(address)
        backing = self._by_key.get(file.key)
        if backing is not None:
            self.unmap_pages(backing, index, count)
        physical.code.written(first, count)
        physical.frames.flags_array[first : first + count] = 0
        physical.frames.release(first, count)


class SharedMemory(Backing):
    """Shared anonymous memory of `pages` pages, each with a frame from its first touch to the end.

    An area that mremap made longer than the object shows nothing there: SIGBUS, as on Linux.
    """

    in_place = False

    def __init__(self, physical: Physical, pages: int) -> None:
        super().__init__(physical)
        self.pages = pages
        self._frames: dict[int, int] = {}

    @property
    def name(self) -> str:
        return "/dev/zero (deleted)"

    @property
    def writable(self) -> bool:
        return True

    def frames_by_page(self) -> dict[int, int]:
        """The frame of each page that has one, for capture."""
        return dict(self._frames)

    def restore(self, number: int, frames: dict[int, int]) -> None:
        """Become the object that was captured; the frame table already counts its references."""
        self.number = number
        self._frames = dict(frames)

    def frames(self, index: int, count: int, *, write: bool) -> tuple[int, int]:
        frame = self._frames.get(index)
        if frame is None:
            if index >= self.pages:
                raise BeyondEnd(index, f"the object has {self.pages} pages")
            frame = self._frames[index] = self.physical.take(Kind.ANON, self.number, index)
        return frame, 1

    def remove(self, first: int, count: int) -> None:
        """Forget pages that no entry shows any more: the next touch finds zeros."""
        table = self.physical.frames
        gone = sorted(index for index in self._frames if first <= index < first + count)
        held = [self._frames.pop(index) for index in gone]
        self.physical.give_back([frame for frame in held if table.put(frame)])

    def copy_page(self, index: int, into: memoryview) -> None:
        frame, _count = self.frames(index, 1, write=False)
        into[:] = self.physical.page_bytes(frame)

    def sync(self) -> None:
        """Nothing stands behind anonymous memory."""

    def release(self) -> None:
        table = self.physical.frames
        unused = [frame for _index, frame in sorted(self._frames.items()) if table.put(frame)]
        self._frames.clear()
        self.physical.give_back(unused)
