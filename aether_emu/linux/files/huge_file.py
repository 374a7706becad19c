"""Memory files of huge pages (memfd_create with MFD_HUGETLB): a file of the kernel's own hugetlbfs.

    descriptions (HugeFile) ─┐
    areas                   ─┴──▶ HugeContents: pages of a pool, the length, the seals

They are read, mapped, and made longer and shorter in whole huge pages; write(2) is refused, as on Linux.
"""

from __future__ import annotations

import errno
import os
import stat as modes
from dataclasses import astuple
from typing import Any

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.host_file import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE
from aether_emu.linux.files.memory_file import (
    F_SEAL_EXEC,
    F_SEAL_FUTURE_WRITE,
    F_SEAL_GROW,
    F_SEAL_SEAL,
    F_SEAL_SHRINK,
    F_SEAL_WRITE,
    MFD_ALLOW_SEALING,
    MFD_NOEXEC_SEAL,
)
from aether_emu.linux.files.mounts import HUGETLBFS_MAGIC
from aether_emu.linux.files.namespace import Namespace
from aether_emu.linux.files.open_file import LARGEST_OFFSET, OpenFile, Seekable
from aether_emu.linux.files.stat import Stat, StatFs
from aether_emu.machine.memory.aperture import BackingFailed
from aether_emu.mm import hugetlb
from aether_emu.mm.objects.hugetlb import HugeMemory, HugePool
from aether_emu.mm.physical import Physical
from aether_emu.mm.protection import Protection

MFD_HUGETLB, MFD_HUGE_SHIFT, MFD_HUGE_MASK = 4, 26, 63
_NO_WRITES = F_SEAL_WRITE | F_SEAL_FUTURE_WRITE
_ALL_SEALS = 0x3F
_EXECUTABLE = 0o111


class HugeContents(HugeMemory):
    """One such file, shared by its descriptions and its areas. `length` is in bytes, pages are whole."""

    def __init__(self, physical: Physical, pool: HugePool, name: bytes, stat: Stat) -> None:
        super().__init__(physical, pool, 0, os.fsdecode(b"/memfd:" + name + b" (deleted)"))
        self.stat, self.mode, self.seals = stat, stat.mode, F_SEAL_SEAL
        self._length = 0

    @property
    def length(self) -> int:
        """Bytes up to its end. A mapping that is writable makes it longer, too."""
        page = self._physical.frames.page_shift
        return (
            max(self._length, self.pages << page) if self.pages > -(-self._length >> page) else self._length
        )

    def set_length(self, length: int) -> None:
        """ftruncate(2): in whole huge pages. EINVAL, EPERM for what a seal forbids."""
        if length & self.huge_size - 1:
            raise Refused(errno.EINVAL, f"huge pages have {self.huge_size} bytes")
        old = self.length
        if (length < old and self.seals & F_SEAL_SHRINK) or (length > old and self.seals & F_SEAL_GROW):
            raise Refused(errno.EPERM, f"the memory file is sealed at {old} bytes")
        hugetlb.truncate(self, length >> self._physical.frames.page_shift)
        self._length = length

    def allocate(self, mode: int, offset: int, length: int) -> None:
        """fallocate(2): huge pages that are there although nobody touched them, and holes."""
        if mode & ~(FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE):
            raise Refused(errno.EOPNOTSUPP, f"mode {mode:#x}")
        shift, end = self._physical.frames.page_shift, offset + length
        if mode & FALLOC_PUNCH_HOLE:
            if self.seals & _NO_WRITES:
                raise Refused(errno.EPERM, "the memory file is sealed against writing")
            low, high = -(-offset >> shift), min(end >> shift, self.pages)
            if low < high:
                hugetlb.punch(self, low, high - low)
            return
        if self.seals & F_SEAL_GROW and end > self.length:
            raise Refused(errno.EPERM, "the memory file is sealed against growing")
        kept, self.pages = self.pages, max(self.pages, -(-end // self.huge_size) * self.pool.count)
        try:
            for huge in range(offset // self.huge_size, -(-end // self.huge_size)):
                self.bring(huge)
        except BackingFailed:
            self.pages = kept
            raise Refused(errno.ENOSPC, "the pool of huge pages is empty") from None
        if mode & FALLOC_KEEP_SIZE:
            self.pages = kept
        else:
            self._length = max(self._length, end)

    def pread(self, count: int, offset: int) -> bytes:
        """Bytes from a position on, none at the end; holes read as zeroes."""
        end, found = min(offset + count, self.length), []
        while offset < end:
            page, within = divmod(offset, self._physical.ram.page_size)
            part = min(end - offset, self._physical.ram.page_size - within)
            huge, number = divmod(page, self.pool.count)
            block = self.blocks.get(huge)
            data = bytes(part)
            if block is not None:
                data = bytes(self._physical.page_bytes(block + number)[within : within + part])
            found.append(data)
            offset += part
        return b"".join(found)

    def add_seals(self, seals: int) -> None:
        """F_ADD_SEALS, as `Memory.add_seals`."""
        if seals & ~_ALL_SEALS:
            raise Refused(errno.EINVAL, f"seals {seals:#x}")
        if self.seals & F_SEAL_SEAL:
            raise Refused(errno.EPERM, "the seals of the memory file are sealed")
        shown = any(
            area.shared and area.maximum & Protection.WRITE for area in self.windows.over(0, LARGEST_OFFSET)
        )
        if seals & F_SEAL_WRITE and not self.seals & F_SEAL_WRITE and shown:
            raise Refused(errno.EBUSY, "a mapping may still write to the memory file")
        if seals & F_SEAL_EXEC and self.mode & _EXECUTABLE:
            seals |= F_SEAL_SHRINK | F_SEAL_GROW | _NO_WRITES
        self.seals |= seals

    def take_over(self, state: dict[str, Any]) -> None:
        """Be the captured contents, whose pages the pool and the frame table know."""
        self.go_on(state["number"], state)
        self.rename(state["name"])
        self.pages, self.mode, self.seals = state["pages"], state["mode"], state["seals"]
        self._length = state["length"]

    def capture(self) -> dict[str, Any]:
        """See `Backing.capture`."""
        more = {"stat": astuple(self.stat), "mode": self.mode, "seals": self.seals, "length": self._length}
        return super().capture() | more | {"kind": "hugetlb file"}


def restored_contents(physical: Physical, state: dict[str, Any]) -> HugeContents:
    """The captured contents, the same object for everyone who has them open or mapped."""
    known = physical.objects.find(state["number"])
    if isinstance(known, HugeContents):
        return known
    pool = hugetlb.pool_of_size(physical, state["size"])
    made = HugeContents(physical, pool, b"", Stat(*state["stat"]))
    made.take_over(state)
    return made


class HugeFile(Seekable):
    """An open file of huge pages."""

    kind = "hugetlb file"

    def __init__(self, contents: HugeContents, flags: int) -> None:
        super().__init__(flags, contents.stat)
        self.contents = contents
        contents.hold()

    def release(self) -> None:
        """See `OpenFile.release`."""
        self.contents.let_go()

    def size(self) -> int:
        """See `Seekable.size`."""
        return self.contents.length

    def pread(self, count: int, offset: int) -> bytes:
        """See `OpenFile.pread`."""
        return self.contents.pread(count, offset)

    def write(self, data: bytes) -> int:
        """See `OpenFile.write`: hugetlbfs has no such thing."""
        raise Refused(errno.EINVAL, "a file of huge pages is written by its mappings alone")

    def pwrite(self, data: bytes, offset: int) -> int:
        """See `OpenFile.pwrite`."""
        return self.write(data)

    def truncate(self, size: int) -> None:
        """See `OpenFile.truncate`."""
        if not self.writable:
            raise Refused(errno.EINVAL, "not open for writing")
        self.contents.set_length(size)

    def allocate(self, mode: int, offset: int, length: int) -> None:
        """See `OpenFile.allocate`."""
        self.contents.allocate(mode, offset, length)

    def stat(self) -> Stat:
        """See `OpenFile.stat`."""
        contents, stat = self.contents, self._stat
        return Stat(
            *(stat.dev, stat.ino, contents.mode, 0, stat.uid, stat.gid, 0, contents.length),
            *(stat.atime, stat.mtime, stat.ctime, len(contents.blocks) * contents.huge_size),
            contents.huge_size,
        )

    def statfs(self) -> StatFs:
        """See `OpenFile.statfs`."""
        number, block = os.minor(self._stat.dev), self.contents.huge_size
        return StatFs(HUGETLBFS_MAGIC, number, blocks=0, free=0, read_only=False, block=block)

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return os.fsencode(self.contents.name)

    def reopen(self, flags: int) -> OpenFile:
        """See `OpenFile.reopen`."""
        if flags & fl.O_TRUNC:
            self.contents.set_length(0)
        return HugeFile(self.contents, flags)

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        return {"contents": self.contents.capture()}


def create_huge(physical: Physical, namespace: Namespace, name: bytes, flags: int) -> HugeFile:
    """memfd_create(2) with MFD_HUGETLB: an empty file. ENODEV for a size that there is not."""
    try:
        pool = hugetlb.chosen_pool(physical, flags >> MFD_HUGE_SHIFT & MFD_HUGE_MASK)
    except Refused as refused:
        raise Refused(errno.ENODEV, str(refused)) from None
    executable = 0 if flags & MFD_NOEXEC_SEAL else _EXECUTABLE
    stat = namespace.nameless_stat(modes.S_IFREG | 0o666 | executable)
    contents = HugeContents(physical, pool, name, stat)
    if flags & MFD_NOEXEC_SEAL:
        contents.seals = F_SEAL_EXEC
    elif flags & MFD_ALLOW_SEALING:
        contents.seals = 0
    return HugeFile(contents, fl.O_RDWR)
