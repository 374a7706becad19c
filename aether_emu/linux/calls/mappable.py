"""Open files as mmap sees them, and what must happen to mappings when a file's bytes change.

A mapped page is the file's own host page, so bytes written by write(2) are in memory at once. Left to do:

    the size changes      pages behind the new end go (`before_truncate`), the last one's tail is fitted
    bytes change          translations of code in those pages go (`Rewriting`)
"""

from __future__ import annotations

import errno
import os
import weakref

from aether_emu.errors import Refused
from aether_emu.linux.files.host_file import HostData, MemoryFile
from aether_emu.linux.files.inodes import FileKey
from aether_emu.linux.files.open_file import LARGEST_OFFSET, OpenFile
from aether_emu.linux.kernel import Kernel
from aether_emu.linux.task.process import Process
from aether_emu.machine.memory.aperture import SLOT_SIZE
from aether_emu.mm.objects.file import FileBacking
from aether_emu.mm.objects.protocol import Backing
from aether_emu.mm.rmap import unmap

_ZERO_DEVICE = os.makedev(1, 5)


def file_backing(kernel: Kernel, file: HostData, *, writable: bool) -> FileBacking:
    """The pages of an open file, known to /proc/self/maps as `stat` knows it. Refused as the host refuses."""
    shown = file.stat()
    name, identity = os.fsdecode(file.link()), (shown.dev, shown.ino)
    return kernel.file_backings.open(file.host_fd, file.key, name, writable=writable, identity=identity)


class MappedFile:
    """An open file as `mm.mapping.Mappable`: what its descriptor allows, and its pages."""

    def __init__(self, kernel: Kernel, file: OpenFile) -> None:
        self._kernel, self._file = kernel, file
        self.readable, self.writable = file.readable, file.writable

    def open_backing(self, *, shared_writable: bool) -> Backing:
        """The file's pages. ENODEV for what has none; EACCES or EPERM where the host refuses (a seal)."""
        file, backings = self._file, self._kernel.file_backings
        if not isinstance(file, HostData):
            raise Refused(errno.ENODEV, f"a {file.kind} can't be mapped")
        known = backings.find(file.key)
        writable = shared_writable and file.writable_grant
        backing = file_backing(self._kernel, file, writable=writable)
        if known is None and isinstance(file, MemoryFile):
            # What is mapped still takes of the limit on memory files when the last descriptor is closed.
            file.hold()
            weakref.finalize(backing, file.let_go).atexit = False
        return backing


class ZeroDevice:
    """/dev/zero as `mm.mapping.Mappable`: what its descriptor allows, and anonymous pages."""

    def __init__(self, file: OpenFile) -> None:
        self.readable, self.writable = file.readable, file.writable

    def open_backing(self, *, shared_writable: bool) -> None:
        """None: private memory has no object, and shared memory gets one of its own."""
        return


def mappable(process: Process, fd: int) -> MappedFile | ZeroDevice:
    """What mmap maps for `fd`. EBADF as Linux."""
    file = process.files.table.file(fd)
    return ZeroDevice(file) if file.stat().rdev == _ZERO_DEVICE else MappedFile(process.kernel, file)


def before_truncate(kernel: Kernel, key: FileKey, old: int, new: int) -> None:
    """A file is about to change its size (bytes): take what is behind the new end out of all mappings.

    The page that holds an end goes too, but not private copies of it: where the guest's pages are larger
    than the host's, the next touch finds what is behind the end as zeroes, or as data after growing.
    """
    backing = kernel.file_backings.find(key)
    if backing is None or old == new:
        return
    page_shift = kernel.physical.frames.page_shift
    ending = min(old, new) >> page_shift
    gone = new + (1 << page_shift) - 1 >> page_shift
    everything = LARGEST_OFFSET >> page_shift
    unmap(backing, ending, 1)
    unmap(backing, gone, everything - gone, copies=True)
    _forget_code(kernel, backing)


class Rewriting:
    """A system call that changes the bytes of a mapped file, from before it until `done`."""

    def __init__(self, kernel: Kernel, backing: FileBacking) -> None:
        self._kernel, self._backing = kernel, backing
        self._size = backing.file.size

    def done(self) -> None:
        """The bytes have changed, and perhaps the size has grown."""
        if self._backing.file.size > self._size:
            self._backing.file.resized()
        _forget_code(self._kernel, self._backing)


def rewriting(kernel: Kernel, file: OpenFile) -> Rewriting | None:
    """For a call that is about to change a file's bytes; None if no mapping shows the file."""
    backing = kernel.file_backings.find(file.key) if isinstance(file, HostData) else None
    return None if backing is None else Rewriting(kernel, backing)


def _forget_code(kernel: Kernel, backing: FileBacking) -> None:
    """Drop translations of code in the file's pages: the engine does not see the host's stores."""
    physical = kernel.physical
    count = SLOT_SIZE >> physical.frames.page_shift
    for slot in backing.file.slots.values():
        first = physical.frames.number(physical.aperture.base + slot.index * SLOT_SIZE)
        physical.code.written(first, count)
