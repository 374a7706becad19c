"""Open files as mmap sees them, and what must happen to mappings when a file's bytes change.

A mapped page is the file's own host page, so bytes written by write(2) are in memory at once. Left to do:

    the size changes      pages behind the new end go (`before_truncate`), the last one's tail is fitted
    a hole is made        its pages go (`before_punch`)
    bytes change          translations of code in those pages go (`Rewriting`)
"""

from __future__ import annotations

import errno
import os

from aether_emu.errors import Refused
from aether_emu.linux.cached_files import connect_cache
from aether_emu.linux.files.host_file import HostData
from aether_emu.linux.files.huge_file import HugeFile
from aether_emu.linux.files.inodes import FileKey
from aether_emu.linux.files.memory_file import F_SEAL_FUTURE_WRITE, F_SEAL_WRITE, MemoryFile
from aether_emu.linux.files.namespace import Namespace
from aether_emu.linux.files.open_file import LARGEST_OFFSET, OpenFile
from aether_emu.linux.kernel import Kernel
from aether_emu.linux.task.task import Task
from aether_emu.machine.memory.aperture import SLOT_SIZE
from aether_emu.mm.objects.device import DeviceMemory
from aether_emu.mm.objects.file import FileBacking
from aether_emu.mm.objects.protocol import Backing
from aether_emu.mm.protection import Protection
from aether_emu.mm.rmap import unmap

_ZERO_DEVICE = os.makedev(1, 5)


def file_backing(kernel: Kernel, file: HostData, *, writable: bool, name: str | None = None) -> FileBacking:
    """The pages of an open file, known to /proc/self/maps as `stat` knows it. Refused as the host refuses.

    `name` is what it was called when it was mapped, if that is not now.
    """
    shown = file.stat()
    name, identity = os.fsdecode(file.link()) if name is None else name, (shown.dev, shown.ino)
    backing = kernel.file_backings.open(file.host_fd, file.key, name, writable=writable, identity=identity)
    if isinstance(file, MemoryFile) and backing.contents is None:
        # What is mapped still takes of the limit on memory files when the last descriptor is closed.
        file.memory.hold()
        backing.contents = file.memory
    return backing


class MappedDevice:
    """An open device as `mm.mapping.Mappable`: what its descriptor allows, and its own memory."""

    huge_size = 0
    in_memory = False

    def __init__(self, file: OpenFile, memory: DeviceMemory) -> None:
        self._memory = memory
        self.readable, self.writable = file.readable, file.writable

    def may_store(self, protection: int) -> bool:
        """As its descriptor allows, whatever the protection."""
        return self.writable

    def open_backing(self, *, shared_writable: bool) -> Backing:
        """The device's pages."""
        return self._memory


class MappedFile:
    """An open file as `mm.mapping.Mappable`: what its descriptor allows, and its pages."""

    def __init__(self, kernel: Kernel, file: OpenFile) -> None:
        self._kernel, self._file = kernel, file
        self.huge_size = file.contents.huge_size if isinstance(file, HugeFile) else 0
        self.in_memory = isinstance(file, MemoryFile) and not file.memory.mounted
        self.readable, self.writable = file.readable, file.writable

    def may_store(self, protection: int) -> bool:
        """Whether a new shared mapping may ever be written. EPERM for one that a seal forbids.

        That is one that may be written at once; under a seal any other stays as it is (Linux since 6.7).
        """
        file = self._file
        if protection & Protection.WRITE and isinstance(file, HostData):
            file.require_no_swap()
        if not self.writable or not isinstance(file, MemoryFile | HugeFile):
            return self.writable
        seals = file.contents.seals if isinstance(file, HugeFile) else file.memory.seals
        sealed = bool(seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))
        if sealed and protection & Protection.WRITE:
            raise Refused(errno.EPERM, "the memory file is sealed against writing")
        return not sealed

    def open_backing(self, *, shared_writable: bool) -> Backing:
        """The file's pages. ENODEV for what has none; or what the host refuses."""
        file = self._file
        if isinstance(file, HugeFile):
            file.contents.rename(os.fsdecode(file.link()))
            return file.contents
        if not isinstance(file, HostData):
            raise Refused(errno.ENODEV, f"a {file.kind} can't be mapped")
        return file_backing(self._kernel, file, writable=shared_writable and file.writable_grant)


class ZeroDevice:
    """/dev/zero as `mm.mapping.Mappable`: what its descriptor allows, and anonymous pages."""

    huge_size = 0
    in_memory = False

    def __init__(self, file: OpenFile) -> None:
        self.readable, self.writable = file.readable, file.writable

    def may_store(self, protection: int) -> bool:
        """As its descriptor allows, whatever the protection."""
        return self.writable

    def open_backing(self, *, shared_writable: bool) -> None:
        """None: private memory has no object, and shared memory gets one of its own."""
        return


def mappable(task: Task, fd: int) -> MappedFile | MappedDevice | ZeroDevice:
    """What mmap maps for `fd`. EBADF as Linux."""
    file = task.files.table.file(fd)
    if file.device_memory is not None:
        return MappedDevice(file, file.device_memory)
    return ZeroDevice(file) if file.stat().rdev == _ZERO_DEVICE else MappedFile(task.process.kernel, file)


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
    backing.leave_memory(gone, everything - gone)
    _forget_code(kernel, backing)


def before_punch(kernel: Kernel, key: FileKey, offset: int, length: int) -> None:
    """Bytes of a file are about to become a hole: take its whole pages out of all mappings.

    Private copies of them stay, and what is left of the pages at its ends is zeroed where it is.
    """
    backing = kernel.file_backings.find(key)
    if backing is None:
        return
    page_shift = kernel.physical.frames.page_shift
    first, end = offset + (1 << page_shift) - 1 >> page_shift, offset + length >> page_shift
    if first < end:
        unmap(backing, first, end - first)
        backing.leave_memory(first, end - first)
    _forget_code(kernel, backing)


def connect_mappings(kernel: Kernel, namespace: Namespace) -> None:
    """Let a namespace's files and the mappings of them know of each other."""

    def shows_stores(key: FileKey) -> bool:
        backing = kernel.file_backings.find(key)
        return backing is not None and backing.shows_stores()

    namespace.on_truncate = lambda key, old, new: before_truncate(kernel, key, old, new)
    namespace.on_punch = lambda key, offset, length: before_punch(kernel, key, offset, length)
    namespace.shows_stores = shows_stores
    namespace.cached = connect_cache(kernel)
    namespace.pipes.physical = kernel.physical


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
