"""Memory files (memfd_create): sparse contents, what they take of the host's memory, and seals.

    descriptions (MemoryFile) ─┐
    mappings (FileBacking) ────┴──▶ Memory: the host's descriptor, the pages that are there, the seals

A memory file takes memory for the pages that were touched or allocated, whatever its size is. The host's own
memory file behind it has the bytes, and is never sealed: who may write is decided here, so that the host's
answer to a mapping that is made late, at a touch, cannot differ from what the program was told.
"""

from __future__ import annotations

import errno
import os
import stat as modes
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files import host
from aether_emu.linux.files.host_file import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    HostData,
    check_allocation,
)
from aether_emu.linux.files.inodes import UNMOUNTED, FileKey, Inode
from aether_emu.linux.files.mounts import TMPFS_MAGIC
from aether_emu.linux.files.open_file import LARGEST_OFFSET, SEEK_DATA, SEEK_HOLE, OpenFile
from aether_emu.linux.files.stat import Stat, StatFs
from aether_emu.machine.memory.aperture import BackingFailed

if TYPE_CHECKING:
    from aether_emu.linux.files.namespace import Namespace

F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE = 1, 2, 4, 8
F_SEAL_FUTURE_WRITE, F_SEAL_EXEC = 0x10, 0x20
_ALL_SEALS = 0x3F
_NO_WRITES = F_SEAL_WRITE | F_SEAL_FUTURE_WRITE
MFD_CLOEXEC, MFD_ALLOW_SEALING, MFD_NOEXEC_SEAL, MFD_EXEC = 1, 2, 8, 0x10
_EXECUTABLE = 0o111


class Memory:
    """One memory file, shared by its descriptions and its mappings. All in bytes but pages.

    `touched` are the pages that have contents, `reserved` those that fallocate(2) alone brought. Each takes a
    page of `Namespace.memory_limit`, in pages of the guest. Beyond that limit a write is short, then ENOSPC,
    and a touch of a mapped page is SIGBUS, as with a full tmpfs. `folios` has the first page of each huge
    page, until a page of it goes. `mounted` files have names in a file system of their own.
    """

    mounted = False

    def __init__(self, namespace: Namespace, name: bytes, inode: Inode, stat: Stat) -> None:
        self.namespace, self.name, self.inode, self.mode = namespace, name, inode, stat.mode
        self.stat = stat
        self.seals = F_SEAL_SEAL
        self.touched: set[int] = set()
        self.reserved: set[int] = set()
        self.folios: set[int] = set()
        self._folio_pages = 1
        self._page = namespace.page_size
        self._holders = 0
        self.host_fd = -1
        self.key: FileKey = (0, 0)
        self._begin()

    def _begin(self) -> None:
        """Have an empty file of the host's, by which this one is known."""
        self._take_storage()
        self.key = (UNMOUNTED, self.inode.number)

    def _take_storage(self) -> None:
        with host.refusals("memfd_create"):
            self.host_fd = os.memfd_create("guest", os.MFD_CLOEXEC)

    def _give_back_storage(self) -> None:
        os.close(self.host_fd)

    def hold(self) -> None:
        """One more description, or the mappings all together, refer to it."""
        self._holders += 1

    def let_go(self) -> None:
        """One reference fewer; the last gives the memory back."""
        self._holders -= 1
        if not self._holders:
            self._forget(self.touched | self.reserved)
            self._give_back_storage()

    @property
    def size(self) -> int:
        """Its length."""
        return os.fstat(self.host_fd).st_size

    @property
    def allocated(self) -> int:
        """What it takes."""
        return (len(self.touched) + len(self.reserved)) * self._page

    def modified(self) -> None:
        """The contents changed now."""
        self.namespace.inodes.modified(self.inode)

    # Accounts

    def _free(self) -> int:
        """Pages that are left of the limit."""
        return max(0, self.namespace.memory_limit - self.namespace.memory_used) // self._page

    def _has(self, page: int) -> bool:
        return page in self.touched or page in self.reserved

    def _keep(self, pages: range) -> None:
        """Those pages have contents from now on."""
        fresh = set(pages) - self.touched
        self.namespace.memory_used += len(fresh - self.reserved) * self._page
        self.reserved -= fresh
        self.touched |= fresh

    def _forget(self, pages: Iterable[int]) -> None:
        """Those pages, which are there, are gone."""
        gone = set(pages)
        self.namespace.memory_used -= len(gone) * self._page
        self.touched -= gone
        self.reserved -= gone
        if self.folios:
            self.folios -= {page & -self._folio_pages for page in gone}

    def _pages(self, offset: int, end: int) -> range:
        """The pages that a range of bytes meets."""
        return range(offset // self._page, -(-end // self._page))

    def _within(self, first: int, end: int) -> list[int]:
        """The pages of `[first, end)` that are there."""
        if end - first < len(self.touched) + len(self.reserved):
            return [page for page in range(first, end) if self._has(page)]
        return [page for page in self.touched | self.reserved if first <= page < end]

    # Writing and sizes

    def room(self, offset: int, length: int) -> int:
        """How many of `length` bytes can be written. EPERM or ENOSPC if not even the first page's.

        Page after page (Linux `shmem_write_begin`): what a seal or the limit stops is written up to there.
        """
        if self.seals & _NO_WRITES:
            raise Refused(errno.EPERM, "the memory file is sealed against writing")
        end = offset + length
        if self.seals & F_SEAL_GROW and end > (size := self.size):
            end = size - size % self._page
            if end <= offset:
                raise Refused(errno.EPERM, "the memory file is sealed against growing")
        pages, free = self._pages(offset, end), self._free()
        if len(pages) <= free:
            return end - offset
        for page in pages:
            if not self._has(page):
                if not free:
                    end = page * self._page
                    break
                free -= 1
        if end <= offset:
            raise Refused(errno.ENOSPC, f"memory files may hold {self.namespace.memory_limit} bytes in all")
        return end - offset

    def wrote(self, offset: int, length: int) -> None:
        """Bytes were written there."""
        self._keep(self._pages(offset, offset + length))

    def resize(self, size: int) -> None:
        """ftruncate(2): what is behind the new end is given back, what is added is a hole."""
        old = self.size
        if (size < old and self.seals & F_SEAL_SHRINK) or (size > old and self.seals & F_SEAL_GROW):
            raise Refused(errno.EPERM, f"the memory file is sealed at {old} bytes")
        self.namespace.on_truncate(self.key, old, size)
        with host.refusals("truncate"):
            os.ftruncate(self.host_fd, size)
        if size <= old:
            self._forget(self._within(-(-size // self._page), LARGEST_OFFSET))
        self.modified()

    def allocate(self, mode: int, offset: int, length: int) -> None:
        """fallocate(2), as tmpfs has it: pages that are there although nothing was written, and holes."""
        if mode & FALLOC_ZERO_RANGE:
            raise Refused(errno.EOPNOTSUPP, "tmpfs has no FALLOC_FL_ZERO_RANGE")
        if mode & FALLOC_PUNCH_HOLE:
            self._punch(offset, length)
            return
        old, end = self.size, offset + length
        if self.seals & F_SEAL_GROW and end > old:
            raise Refused(errno.EPERM, "the memory file is sealed against growing")
        pages = self._pages(offset, end)
        if len(pages) - len(self._within(pages.start, pages.stop)) > self._free():
            raise Refused(errno.ENOSPC, f"memory files may hold {self.namespace.memory_limit} bytes in all")
        if not mode & FALLOC_KEEP_SIZE:
            self.namespace.on_truncate(self.key, old, max(old, end))
        with host.refusals("fallocate"):
            host.fallocate(self.host_fd, mode, offset, length)
        fresh, again = set(pages) - self.touched - self.reserved, self.reserved.intersection(pages)
        self.namespace.memory_used += len(fresh) * self._page
        self.reserved ^= fresh | again
        self.touched |= again  # to allocate a page twice gives it contents (Linux `shmem_get_folio_gfp`)
        self.modified()

    def _punch(self, offset: int, length: int) -> None:
        if self.seals & _NO_WRITES:
            raise Refused(errno.EPERM, "the memory file is sealed against writing")
        self.namespace.on_punch(self.key, offset, length)
        with host.refusals("fallocate"):
            host.fallocate(self.host_fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, offset, length)
        self._forget(self._within(-(-offset // self._page), (offset + length) // self._page))
        self.modified()

    def next_data(self, offset: int) -> int:
        """The first byte from `offset` on that is in a page with contents; the size if there is none."""
        first = offset // self._page
        for page in range(first, first + len(self.touched)):
            if page in self.touched:
                return max(offset, page * self._page)
        following = [page for page in self.touched if page > first]
        return min(min(following, default=LARGEST_OFFSET) * self._page, self.size)

    def next_hole(self, offset: int) -> int:
        """The first byte from `offset` on that is in no page with contents; the end is a hole."""
        page = offset // self._page
        while page in self.touched:
            page += 1
        return min(max(offset, page * self._page), self.size)

    # Seals

    def add_seals(self, seals: int) -> None:
        """F_ADD_SEALS. EBUSY for F_SEAL_WRITE while an area shows it shared that is, or can become, writable.

        F_SEAL_EXEC on a file that can be executed brings the other seals with it.
        """
        if seals & ~_ALL_SEALS:
            raise Refused(errno.EINVAL, f"seals {seals:#x}")
        if self.seals & F_SEAL_SEAL:
            raise Refused(errno.EPERM, "the seals of the memory file are sealed")
        if seals & F_SEAL_WRITE and not self.seals & F_SEAL_WRITE and self.namespace.shows_stores(self.key):
            raise Refused(errno.EBUSY, "a mapping may still write to the memory file")
        if seals & F_SEAL_EXEC and self.mode & _EXECUTABLE:
            seals |= F_SEAL_SHRINK | F_SEAL_GROW | _NO_WRITES
        self.seals |= seals

    def set_mode(self, mode: int) -> None:
        """fchmod(2). EPERM for a change of the execute bits under F_SEAL_EXEC."""
        if self.seals & F_SEAL_EXEC and (self.mode ^ mode) & _EXECUTABLE:
            raise Refused(errno.EPERM, "the memory file is sealed against changes of its execute bits")
        self.mode = modes.S_IFMT(self.mode) | modes.S_IMODE(mode)
        self.namespace.inodes.changed(self.inode)

    # What mappings ask (`mm.objects.file.Contents`), in pages

    def admit(self, first: int, count: int) -> int:
        """See `Contents.admit`. A page behind the end is not this account's to refuse."""
        if first * self._page >= self.size:
            return count
        if count == 1:
            if not self._has(first) and not self._free():
                raise BackingFailed(first, f"memory files hold {self.namespace.memory_used} bytes already")
            return 1
        for done in range(count):
            if first + done not in self.touched:
                break
        else:
            return count
        if not done:
            raise BackingFailed(first, "it is not there yet")
        return done

    def lacks(self, first: int, count: int) -> bool:
        """See `Contents.lacks`."""
        fits = (first + count - 1) * self._page < self.size and count <= self._free()
        return fits and self.touched.isdisjoint(range(first, first + count))

    def show(self, first: int, count: int) -> None:
        """See `Contents.show`."""
        self._keep(range(first, first + count))

    def bring_folio(self, first: int, count: int) -> bool:
        """See `Contents.bring_folio`."""
        missing = count - len(self._within(first, first + count))
        if (first + count) * self._page > self.size or missing > self._free():
            return False
        self._keep(range(first, first + count))
        self._folio_pages = count
        self.folios.add(first)
        return True

    def resident(self, first: int, count: int) -> bytes:
        """See `Contents.resident`."""
        return bytes(page in self.touched for page in range(first, first + count))

    def punch(self, first: int, count: int) -> None:
        """See `Contents.punch`."""
        self._punch(first * self._page, count * self._page)

    # State

    def capture(self) -> dict[str, Any]:
        """Everything about it as plain data, of its contents the pages that are there."""
        pages = {page: os.pread(self.host_fd, self._page, page * self._page) for page in sorted(self.touched)}
        attributes = {"size": self.size, "seals": self.seals, "mode": self.mode}
        folios = (self._folio_pages, sorted(self.folios))
        return {**attributes, "pages": pages, "reserved": sorted(self.reserved), "folios": folios}

    def restore(self, state: dict[str, Any]) -> None:
        """Become the captured one: this one is new and empty."""
        self._fill(state)
        self.touched, self.reserved = set(state["pages"]), set(state["reserved"])
        self._folio_pages, folios = state["folios"]
        self.folios = set(folios)
        self.namespace.memory_used += self.allocated
        self.seals, self.mode = state["seals"], state["mode"]

    def _fill(self, state: dict[str, Any]) -> None:
        """Put captured contents into the host's file, which is empty."""
        with host.refusals("memfd_create"):
            os.ftruncate(self.host_fd, state["size"])
            for page, content in state["pages"].items():
                os.pwrite(self.host_fd, content, page * self._page)
            behind = [page for page, content in state["pages"].items() if not content]
            for page in (*behind, *state["reserved"]):
                host.fallocate(self.host_fd, FALLOC_KEEP_SIZE, page * self._page, self._page)


class MemoryFile(HostData):
    """An open file of memfd_create. All descriptions use the one host descriptor: each has its position."""

    kind = "memory"

    def __init__(self, memory: Memory, flags: int) -> None:
        super().__init__(memory.namespace, memory.host_fd, flags, memory.inode, memory.stat)
        self.memory = memory
        self.key = memory.key
        memory.hold()

    def release(self) -> None:
        """See `OpenFile.release`."""
        self._end_writing()
        self.memory.let_go()

    def pwrite(self, data: bytes, offset: int) -> int:
        """See `OpenFile.pwrite`."""
        if not data:
            return 0
        if self.flags & fl.O_APPEND:
            offset = self.size()
        if offset > LARGEST_OFFSET - len(data):
            raise Refused(errno.EFBIG, f"offset {offset}")
        if self.namespace.sizes is not None:
            data = data[: self.namespace.sizes.admitted(offset, len(data))]
        done = super().pwrite(data[: self.memory.room(offset, len(data))], offset)
        self.memory.wrote(offset, done)
        return done

    def truncate(self, size: int) -> None:
        """See `OpenFile.truncate`."""
        if not self.writable:
            raise Refused(errno.EINVAL, "not open for writing")
        self.require_size(self.size(), size)
        self.memory.resize(size)

    def allocate(self, mode: int, offset: int, length: int) -> None:
        """See `OpenFile.allocate`."""
        check_allocation(mode, offset, length)
        if not mode & FALLOC_PUNCH_HOLE:  # tmpfs looks at the limit though the size stays
            self.require_size(self.size(), offset + length)
        self.memory.allocate(mode, offset, length)

    def seek(self, offset: int, whence: int) -> int:
        """See `OpenFile.seek`. Pages without contents are holes."""
        if whence not in (SEEK_DATA, SEEK_HOLE):
            return super().seek(offset, whence)
        size = self.size()
        found = self.memory.next_data(offset) if whence == SEEK_DATA else self.memory.next_hole(offset)
        if not 0 <= offset < size or (whence == SEEK_DATA and found >= size):
            raise Refused(errno.ENXIO, f"nothing from offset {offset} on")
        self.position = found
        return found

    def stat(self) -> Stat:
        """See `OpenFile.stat`."""
        memory, stat, inode = self.memory, self._stat, self.inode
        return Stat(
            *(stat.dev, stat.ino, memory.mode, 0, stat.uid, stat.gid, 0, memory.size),
            *(inode.atime, inode.mtime, inode.ctime, memory.allocated),
        )

    def statfs(self) -> StatFs:
        """See `OpenFile.statfs`: the kernel's own tmpfs, which says of no limit."""
        return StatFs(TMPFS_MAGIC, number=os.minor(self._stat.dev), blocks=0, free=0, read_only=False)

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return b"/memfd:" + self.memory.name + b" (deleted)"

    def add_seals(self, seals: int) -> None:
        """`F_ADD_SEALS`. EPERM unless open for writing."""
        if not self.writable:
            raise Refused(errno.EPERM, "not open for writing")
        self.memory.add_seals(seals)

    def reopen(self, flags: int) -> OpenFile:
        """The same memory through another description."""
        if fl.wants_write(flags):
            self.namespace.require_idle(self.key)
        if flags & fl.O_TRUNC:
            self.memory.resize(0)
        file = MemoryFile(self.memory, flags)
        if file.writable:
            file.begin_writing()
        return file


def create_memory(namespace: Namespace, name: bytes, flags: int) -> MemoryFile:
    """memfd_create(2): an empty memory file. `flags` are MFD_*.

    Linux does not count this description among those that write (`alloc_file`): such a file can be executed.
    """
    executable = 0 if flags & MFD_NOEXEC_SEAL else _EXECUTABLE
    stat = namespace.nameless_stat(modes.S_IFREG | 0o666 | executable)
    memory = Memory(namespace, name, namespace.inodes.created(), stat)
    if flags & MFD_NOEXEC_SEAL:
        memory.seals = F_SEAL_EXEC
    elif flags & MFD_ALLOW_SEALING:
        memory.seals = 0
    return MemoryFile(memory, fl.O_RDWR)
