"""What a process does with descriptors: moving data, sizes, and the descriptors themselves.

`files.Files` adds the calls on paths. Each method is one call, with the kernel's argument order.
"""

from __future__ import annotations

import errno
import stat as modes
import struct
from collections.abc import Callable

from aether_emu.errors import OutOfFrames, Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.host_file import HostData
from aether_emu.linux.files.huge_file import (
    MFD_HUGE_MASK,
    MFD_HUGE_SHIFT,
    MFD_HUGETLB,
    HugeFile,
    create_huge,
)
from aether_emu.linux.files.memory_file import (
    MFD_ALLOW_SEALING,
    MFD_CLOEXEC,
    MFD_EXEC,
    MFD_NOEXEC_SEAL,
    MemoryFile,
    create_memory,
)
from aether_emu.linux.files.namespace import Namespace
from aether_emu.linux.files.open_file import MOST_PER_CALL, POLLNVAL, SEEK_HOLE, OpenFile, WouldBlock
from aether_emu.linux.files.ownership import set_asynchronous
from aether_emu.linux.files.pipe import EFD_SEMAPHORE, EventCounter, Pipe, PipeEnd
from aether_emu.linux.files.stat import Stat, StatFs
from aether_emu.linux.files.table import DescriptorTable
from aether_emu.mm.physical import Physical

_COPY_STEP = 1 << 16
_COPY_MOST = 1 << 20
_CLOSE_RANGE_CLOEXEC = 4
_FIONREAD, _FIONBIO, _FIONCLEX, _FIOCLEX, _FIOASYNC = 0x541B, 0x5421, 0x5450, 0x5451, 0x5452
_F_DUPFD, _F_GETFD, _F_SETFD, _F_GETFL, _F_SETFL = 0, 1, 2, 3, 4
_F_DUPFD_CLOEXEC, _F_SETPIPE_SZ, _F_GETPIPE_SZ, _F_ADD_SEALS, _F_GET_SEALS = range(1030, 1035)
_FD_CLOEXEC = 1


class DescriptorOperations:
    """The calls of one process on `table`, in `namespace`. See `files.Files`."""

    def __init__(self, namespace: Namespace, table: DescriptorTable) -> None:
        self.namespace = namespace
        self.table = table

    # Making and closing

    def close(self, fd: int) -> None:
        """close(2)."""
        self.table.close(fd)

    def close_range(self, first: int, last: int, flags: int = 0) -> None:
        """close_range(2), without CLOSE_RANGE_UNSHARE, which is the caller's."""
        if first > last or flags & ~_CLOSE_RANGE_CLOEXEC:
            raise Refused(errno.EINVAL, f"{first}..{last}, flags {flags:#x}")
        for fd, descriptor in self.table.descriptors.items():
            if first <= fd <= last:
                if flags:
                    descriptor.cloexec = True
                else:
                    self.table.close_each([fd])

    def pipe(self, flags: int = 0) -> tuple[int, int]:
        """pipe2(2): the reading and the writing descriptor."""
        if flags & ~(fl.O_CLOEXEC | fl.O_NONBLOCK | fl.O_DIRECT):
            raise Refused(errno.EINVAL, f"pipe flags {flags:#x}")
        self.table.require_room(2)
        try:
            pipe = Pipe(self.namespace.nameless_stat(modes.S_IFIFO | 0o600), self.namespace.pipes)
        except OutOfFrames:  # as Linux has it: the inode can't be had
            raise Refused(errno.ENFILE, "no memory is left for a pipe") from None
        status, cloexec = flags & (fl.O_NONBLOCK | fl.O_DIRECT), bool(flags & fl.O_CLOEXEC)
        reading, writing = PipeEnd(pipe, status | fl.O_RDONLY), PipeEnd(pipe, status | fl.O_WRONLY)
        return self.table.install(reading, cloexec=cloexec), self.table.install(writing, cloexec=cloexec)

    def eventfd(self, initial: int, flags: int = 0) -> int:
        """eventfd2(2)."""
        if flags & ~(fl.O_CLOEXEC | fl.O_NONBLOCK | EFD_SEMAPHORE):
            raise Refused(errno.EINVAL, f"eventfd flags {flags:#x}")
        self.table.require_room()
        stat = self.namespace.nameless_stat(0o600)
        file = EventCounter(initial, bool(flags & EFD_SEMAPHORE), flags & fl.O_NONBLOCK, stat)
        return self.table.install(file, cloexec=bool(flags & fl.O_CLOEXEC))

    def memfd_create(self, name: bytes, flags: int = 0, physical: Physical | None = None) -> int:
        """memfd_create(2); with huge pages if `physical` has some."""
        contrary, huge = MFD_NOEXEC_SEAL | MFD_EXEC, physical is not None and flags & MFD_HUGETLB
        known = MFD_CLOEXEC | MFD_ALLOW_SEALING | contrary
        if huge:
            known |= MFD_HUGETLB | MFD_HUGE_MASK << MFD_HUGE_SHIFT
        if len(name) > 249 or flags & ~known or flags & contrary == contrary:
            raise Refused(errno.EINVAL, f"name of {len(name)} bytes, flags {flags:#x}")
        self.table.require_room()
        file: OpenFile
        if physical is not None and huge:
            file = create_huge(physical, self.namespace, name, flags)
        else:
            file = create_memory(self.namespace, name, flags)
        return self.table.install(file, cloexec=bool(flags & MFD_CLOEXEC))

    # Data

    def _for_reading(self, fd: int) -> OpenFile:
        file = self.table.file(fd)
        if not file.readable:
            raise Refused(errno.EBADF, f"descriptor {fd} is not open for reading")
        return file

    def _for_writing(self, fd: int) -> OpenFile:
        file = self.table.file(fd)
        if not file.writable:
            raise Refused(errno.EBADF, f"descriptor {fd} is not open for writing")
        return file

    def read(self, fd: int, count: int) -> bytes | WouldBlock:
        """read(2): up to `count` bytes, none at the end."""
        return self._for_reading(fd).read(min(count, MOST_PER_CALL))

    def write(self, fd: int, data: bytes) -> int | WouldBlock:
        """write(2): the number of bytes taken. EPIPE is without SIGPIPE, which is the caller's to send."""
        return self._for_writing(fd).write(data)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        """pread64(2)."""
        if offset < 0:
            raise Refused(errno.EINVAL, f"offset {offset}")
        return self._for_reading(fd).pread(min(count, MOST_PER_CALL), offset)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """pwrite64(2)."""
        if offset < 0:
            raise Refused(errno.EINVAL, f"offset {offset}")
        return self._for_writing(fd).pwrite(data, offset)

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        """lseek(2): the new position."""
        file = self.table.file(fd)
        if whence > SEEK_HOLE:
            raise Refused(errno.EINVAL, f"whence {whence}")
        return file.seek(offset, whence)

    def getdents64(self, fd: int, size: int) -> bytes:
        """getdents64(2): whole entries for a buffer of `size` bytes; empty at the end."""
        return self.table.file(fd).read_entries(size)

    def sendfile(self, out: int, source: int, offset: int | None, count: int) -> int | WouldBlock:
        """sendfile(2): the number of bytes moved; with `offset` the caller advances its own by that."""
        reading, writing = self._for_reading(source), self._for_writing(out)
        if not reading.seekable or writing.flags & fl.O_APPEND or (offset is not None and offset < 0):
            raise Refused(errno.EINVAL, "the source has no positions, or the target only appends")
        return self._copy(reading, offset, writing, None, count)

    def copy_file_range(
        self, source: int, source_offset: int | None, out: int, out_offset: int | None, count: int
    ) -> int:
        """copy_file_range(2): the number of bytes moved, for offsets see `sendfile`."""
        reading, writing = self._for_reading(source), self._for_writing(out)
        if not (isinstance(reading, HostData) and isinstance(writing, HostData)):
            directories = reading.stat().is_directory
            raise Refused(errno.EISDIR if directories else errno.EINVAL, "both must be regular files")
        if writing.flags & fl.O_APPEND:
            raise Refused(errno.EBADF, "the target only appends")
        for file in (reading, writing):
            self.namespace.require_no_swap(file.key)
        if reading.stat().dev != writing.stat().dev:
            raise Refused(errno.EXDEV, "the files are on different file systems")
        begin = reading.position if source_offset is None else source_offset
        end = writing.position if out_offset is None else out_offset
        count = min(count, max(0, reading.size() - begin))
        if min(begin, end) < 0 or (reading.key == writing.key and abs(begin - end) < count):
            raise Refused(errno.EINVAL, "negative or overlapping ranges")
        moved = self._copy(reading, source_offset, writing, out_offset, count)
        assert isinstance(moved, int), "regular files never wait"
        return moved

    def _copy(
        self, source: OpenFile, source_offset: int | None, out: OpenFile, out_offset: int | None, count: int
    ) -> int | WouldBlock:
        """Move bytes in steps, and at most 1 MiB: who wants more asks again."""
        begin = source.position if source_offset is None else source_offset
        moved, count = 0, min(count, _COPY_MOST)
        while moved < count:
            try:
                data = source.pread(min(_COPY_STEP, count - moved), begin + moved)
                if not data:
                    break
                done = out.write(data) if out_offset is None else out.pwrite(data, out_offset + moved)
            except Refused:
                if not moved:
                    raise
                break
            if isinstance(done, WouldBlock):
                if not moved:
                    return done
                break
            moved += done
            if done < len(data):
                break
        if source_offset is None and not source.stat().rdev:
            source.position = begin + moved
        return moved

    # Sizes, storage, attributes

    def ftruncate(self, fd: int, size: int) -> None:
        """ftruncate(2)."""
        if size < 0:
            raise Refused(errno.EINVAL, f"size {size}")
        self.table.file(fd).truncate(size)

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2)."""
        self._for_writing(fd).allocate(mode, offset, length)

    def fsync(self, fd: int) -> None:
        """fsync(2) and fdatasync(2)."""
        self.table.file(fd).sync()

    def fstat(self, fd: int) -> Stat:
        """fstat(2)."""
        return self.table.held(fd).stat()

    def fstatfs(self, fd: int) -> StatFs:
        """fstatfs(2)."""
        return self.table.held(fd).statfs()

    # Duplicating and control

    def dup(self, fd: int) -> int:
        """dup(2)."""
        return self.table.install(self.table.held(fd))

    def dup2(self, fd: int, target: int) -> int:
        """dup2(2)."""
        file = self.table.held(fd)
        if target != fd:
            self._duplicate(file, target, cloexec=False)
        return target

    def dup3(self, fd: int, target: int, flags: int) -> int:
        """dup3(2)."""
        if fd == target or flags & ~fl.O_CLOEXEC:
            raise Refused(errno.EINVAL, f"dup3 of {fd} to {target}, flags {flags:#x}")
        self._duplicate(self.table.held(fd), target, cloexec=bool(flags))
        return target

    def _duplicate(self, file: OpenFile, target: int, cloexec: bool) -> None:
        if not 0 <= target < self.table.limit:
            raise Refused(errno.EBADF, f"descriptor {target}, of {self.table.limit}")
        self.table.place(target, file, cloexec=cloexec)

    def poll(self, fd: int) -> int:
        """The poll(2) events that hold on `fd` now; POLLNVAL if it is not open."""
        try:
            return self.table.file(fd).poll()
        except Refused:
            return POLLNVAL

    def watch_locks(self, file: OpenFile) -> None:
        """A lock is taken on the file: closing is to give it up, from now on."""
        locks = self.namespace.locks
        table = self.table
        table.on_close = lambda closed: locks.drop(closed, table)
        file.on_last_close = locks.closed

    def fcntl(self, fd: int, command: int, argument: int) -> int:
        """fcntl(2) but for locks, which `locks.FileLocks` has."""
        descriptor = self.table.descriptor(fd)
        if command in (_F_DUPFD, _F_DUPFD_CLOEXEC):
            if not 0 <= argument < self.table.limit:
                raise Refused(errno.EINVAL, f"descriptor {argument}, of {self.table.limit}")
            return self.table.install(descriptor.file, cloexec=command == _F_DUPFD_CLOEXEC, lowest=argument)
        if command == _F_GETFD:
            return _FD_CLOEXEC if descriptor.cloexec else 0
        if command == _F_SETFD:
            descriptor.cloexec = bool(argument & _FD_CLOEXEC)
            return 0
        if command == _F_GETFL:
            return descriptor.file.flags
        return self._fcntl_contents(fd, self.table.file(fd), command, argument)

    def _fcntl_contents(self, fd: int, file: OpenFile, command: int, argument: int) -> int:
        if command == _F_SETFL:
            if (file.flags ^ argument) & fl.FASYNC:
                set_asynchronous(file, fd, on=bool(argument & fl.FASYNC))
            file.flags = file.flags & ~fl.SETTABLE | argument & fl.SETTABLE
            return 0
        if command in (_F_GETPIPE_SZ, _F_SETPIPE_SZ):
            if not isinstance(file, PipeEnd):
                raise Refused(errno.EBADF, "no pipe")
            return file.pipe.capacity if command == _F_GETPIPE_SZ else file.pipe.resize(argument)
        if command in (_F_ADD_SEALS, _F_GET_SEALS) and isinstance(file, MemoryFile):
            if command == _F_GET_SEALS:
                return file.memory.seals
            file.add_seals(argument)
            return 0
        if command in (_F_ADD_SEALS, _F_GET_SEALS) and isinstance(file, HugeFile):
            if command == _F_GET_SEALS:
                return file.contents.seals
            if not file.writable:
                raise Refused(errno.EPERM, "not open for writing")
            file.contents.add_seals(argument)
            return 0
        raise Refused(errno.EINVAL, f"fcntl command {command} on a {file.kind}")

    def ioctl(self, fd: int, request: int, fetch: Callable[[int], bytes]) -> bytes:
        """ioctl(2). `fetch(n)` reads n bytes at the argument; the caller writes the answer there."""
        descriptor = self.table.descriptor(fd)
        file = self.table.file(fd)
        if request in (_FIOCLEX, _FIONCLEX):
            descriptor.cloexec = request == _FIOCLEX
            return b""
        if request == _FIONBIO:
            (on,) = struct.unpack("<i", fetch(4))
            file.flags = file.flags & ~fl.O_NONBLOCK | (fl.O_NONBLOCK if on else 0)
            return b""
        if request == _FIOASYNC:
            (on,) = struct.unpack("<i", fetch(4))
            if bool(on) != bool(file.flags & fl.FASYNC) and not set_asynchronous(file, fd, on=bool(on)):
                raise Refused(errno.ENOTTY, f"a {file.kind} tells nobody by signals")
            return b""
        if request == _FIONREAD:
            return struct.pack("<i", min(file.available(), (1 << 31) - 1))
        return file.ioctl(request, fetch)
