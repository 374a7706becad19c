"""read(2), write(2) and their relatives: bytes between open files and user memory.

Large transfers go in chunks, so that a guest cannot make the host hold gigabytes. A bad address in the
middle ends the call with the count so far, and nothing is taken out of a pipe or stream that could not be
delivered. A blocking write to a full pipe is issued again until all is taken, as one call to the guest.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from aether_emu.errors import Refused
from aether_emu.linux.calls import user
from aether_emu.linux.calls.family import FileFamily
from aether_emu.linux.calls.mappable import rewriting
from aether_emu.linux.calls.user import Piece, read_struct, s32, s64, u32, write_struct
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.host_file import HostData
from aether_emu.linux.files.open_file import POLLHUP, POLLIN, OpenFile, Seekable, WouldBlock
from aether_emu.linux.files.pipe import PIPE_BUF, EventCounter, PipeEnd
from aether_emu.linux.files.streams import StreamFile
from aether_emu.linux.task.signals import SI_USER, SIGPIPE, SignalInfo
from aether_emu.machine.cpu import UserFault

if TYPE_CHECKING:
    from aether_emu.linux.task.process import Process

CHUNK = 1 << 20
"""Bytes that are on their way at once."""
_STREAM_CHUNK = 1 << 16
_PIPE_PAGE = 4096
_COUNTER_SIZE = 8
_RWF_HIPRI, _RWF_DSYNC, _RWF_SYNC, _RWF_APPEND, _RWF_NOAPPEND = 1, 2, 4, 0x10, 0x20
_RWF_KNOWN = _RWF_HIPRI | _RWF_DSYNC | _RWF_SYNC | _RWF_APPEND | _RWF_NOAPPEND
_AT_POSITION = (1 << 64) - 1


class TransferCalls(FileFamily):
    """The calls that move data."""

    def __init__(self, process: Process) -> None:
        super().__init__(process)
        # A write that waits for room: which call it is, and how much of it is already taken.
        self._begun: tuple[tuple[int, ...], int] | None = None

    # ---- reading

    def sys_read(self, fd: int, buffer: int, count: int, *_: int) -> int | None:
        file = self._reader(fd)
        return self._read(file, user.read_buffer(buffer, count, self._user_end))

    def sys_readv(self, fd: int, vector: int, count: int, *_: int) -> int | None:
        file = self._reader(fd)
        return self._read_vector(file, vector, count)

    def sys_pread64(self, fd: int, buffer: int, count: int, offset: int, *_: int) -> int:
        file = self._positioned(self._reader, fd, s64(offset))
        return self._read_at(file, user.read_buffer(buffer, count, self._user_end), s64(offset))

    def sys_preadv(self, fd: int, vector: int, count: int, offset: int, *_: int) -> int:
        file = self._positioned(self._reader, fd, s64(offset))
        pieces = user.read_vector(self._cpu, vector, count, self._user_end)
        return self._read_at(file, pieces, s64(offset)) if user.total(pieces) else 0

    def sys_preadv2(
        self, fd: int, vector: int, count: int, offset: int, _high: int, flags: int
    ) -> int | None:
        """preadv2(2). The flags are for writing, but for RWF_HIPRI: poll the device, of which there is none.

        On 64-bit ISAs the low word of the offset is all of it.
        """
        if offset == _AT_POSITION:
            file = self._reader(fd)
            self._check_flags(flags)
            return self._read_vector(file, vector, count)
        self._positioned(self._reader, fd, s64(offset))
        self._check_flags(flags)
        return self.sys_preadv(fd, vector, count, offset)

    def _positioned(self, opened: Callable[[int], OpenFile], fd: int, offset: int) -> OpenFile:
        """The file of a call at an offset, with Linux's order of refusals."""
        if offset < 0:
            raise Refused(errno.EINVAL, f"offset {offset}")
        if not self._files.table.file(s32(fd)).seekable:
            raise Refused(errno.ESPIPE, f"descriptor {s32(fd)} has no positions")
        return opened(fd)

    def _read_vector(self, file: OpenFile, vector: int, count: int) -> int | None:
        pieces = user.read_vector(self._cpu, vector, count, self._user_end)
        return self._read(file, pieces) if user.total(pieces) else 0

    def _read(self, file: OpenFile, pieces: list[Piece]) -> int | None:
        if not file.seekable:
            return self._read_stream(file, pieces)

        def take(count: int, _done: int) -> bytes:
            data = file.read(count)
            assert isinstance(data, bytes), "only streams wait"
            return data

        def give_back(count: int) -> None:
            if isinstance(file, Seekable):
                file.position -= count

        return self._load(pieces, take, give_back)

    def _read_at(self, file: OpenFile, pieces: list[Piece], offset: int) -> int:
        return self._load(pieces, lambda count, done: file.pread(count, offset + done), lambda _count: None)

    def _load(
        self, pieces: list[Piece], take: Callable[[int, int], bytes], give_back: Callable[[int], None]
    ) -> int:
        """Read a file with positions into memory until its end, a bad address or an error."""
        wanted, done = user.total(pieces), 0
        while True:
            step = min(CHUNK, wanted - done)
            try:
                data = take(step, done)
            except Refused:
                if not done:
                    raise
                return done
            moved = user.scatter(self._cpu, user.behind(pieces, done) if done else pieces, data)
            done += moved
            if moved < len(data):
                give_back(len(data) - moved)
                if not done:
                    raise UserFault("nothing of the buffer can be written")
                return done
            if moved < step or done == wanted:
                return done

    def _read_stream(self, file: OpenFile, pieces: list[Piece]) -> int | None:
        """Take what is there, but no more than can be delivered."""
        wanted = user.total(pieces)
        count = min(wanted, _most_there(file))
        ready = file.poll() & (POLLIN | POLLHUP)
        if wanted and not ready and isinstance(file, StreamFile):
            self._wait(file.wait_for(POLLIN))  # not read: something may have come meanwhile
            return None
        if count and ready:
            deliverable = user.writable(self._cpu, pieces, count)
            if deliverable < count and isinstance(file, EventCounter):
                raise UserFault("the counter's value can't be delivered whole")
            count = deliverable
        elif not count:
            count = min(wanted, 1)
        makes_room = not isinstance(file, PipeEnd) or file.pipe.room < PIPE_BUF
        data = file.read(count)
        if isinstance(data, WouldBlock):
            self._wait(data)
            return None
        if makes_room:
            self._took(file)
        return user.scatter(self._cpu, pieces, data)

    # ---- writing

    def sys_write(self, fd: int, buffer: int, count: int, *_: int) -> int | None:
        file = self._writer(fd)
        pieces = user.read_buffer(buffer, count, self._user_end)
        return self._write(file, pieces, (s32(fd), buffer, count))

    def sys_writev(self, fd: int, vector: int, count: int, *_: int) -> int | None:
        file = self._writer(fd)
        pieces = user.read_vector(self._cpu, vector, count, self._user_end)
        return self._write(file, pieces, (s32(fd), vector, count)) if user.total(pieces) else 0

    def sys_pwrite64(self, fd: int, buffer: int, count: int, offset: int, *_: int) -> int:
        file = self._positioned(self._writer, fd, s64(offset))
        return self._write_at(file, user.read_buffer(buffer, count, self._user_end), s64(offset))

    def sys_pwritev(self, fd: int, vector: int, count: int, offset: int, *_: int) -> int:
        file = self._positioned(self._writer, fd, s64(offset))
        pieces = user.read_vector(self._cpu, vector, count, self._user_end)
        return self._write_at(file, pieces, s64(offset)) if user.total(pieces) else 0

    def sys_pwritev2(
        self, fd: int, vector: int, count: int, offset: int, _high: int, flags: int
    ) -> int | None:
        """pwritev2(2): RWF_APPEND and RWF_NOAPPEND stand for O_APPEND, RWF_SYNC and RWF_DSYNC for O_SYNC."""
        at_position = offset == _AT_POSITION
        file = self._writer(fd) if at_position else self._positioned(self._writer, fd, s64(offset))
        self._check_flags(flags)
        kept = file.flags
        if flags & _RWF_APPEND:
            file.flags |= fl.O_APPEND
        elif flags & _RWF_NOAPPEND:
            file.flags &= ~fl.O_APPEND
        try:
            if at_position:
                done = self.sys_writev(fd, vector, count)
            else:
                done = self.sys_pwritev(fd, vector, count, offset)
        finally:
            file.flags = kept
        if done and flags & (_RWF_SYNC | _RWF_DSYNC) and isinstance(file, HostData):
            file.sync()
        return done

    @staticmethod
    def _check_flags(flags: int) -> None:
        if u32(flags) & ~_RWF_KNOWN:
            raise Refused(errno.EOPNOTSUPP, f"flags {u32(flags):#x}")
        if flags & _RWF_APPEND and flags & _RWF_NOAPPEND:
            raise Refused(errno.EINVAL, "to append and not to append")

    def _write(self, file: OpenFile, pieces: list[Piece], arguments: tuple[int, ...]) -> int | None:
        call = (self._cpu.pc, self._cpu.sp, *arguments)
        done = self._begun[1] if self._begun is not None and self._begun[0] == call else 0
        self._begun = None
        result = self._store(file, pieces, lambda data, _done: file.write(data), done)
        if isinstance(result, int):
            return result
        reason, done = result
        if done:
            self._begun = (call, done)
        self._wait(reason)
        return None

    def _write_at(self, file: OpenFile, pieces: list[Piece], offset: int) -> int:
        done = self._store(file, pieces, lambda data, done: file.pwrite(data, offset + done), 0)
        assert isinstance(done, int), "a file with positions never waits"
        return done

    def _store(
        self,
        file: OpenFile,
        pieces: list[Piece],
        put: Callable[[bytes, int], int | WouldBlock],
        done: int,
    ) -> int | tuple[WouldBlock, int]:
        """Write memory to a file from `done` bytes on: the count, or why to wait and the count so far."""
        wanted = user.total(pieces)
        change = rewriting(self._process.kernel, file)
        try:
            while True:
                step = min(CHUNK, wanted - done)
                data = self._gather(file, user.behind(pieces, done) if done else pieces, step)
                took = put(data, done)
                if isinstance(took, WouldBlock):
                    return took, done
                self._gave(file)
                done += took
                whole = took == step or (took and isinstance(file, PipeEnd | StreamFile))
                if done == wanted or not whole:
                    return done
        except (Refused, UserFault) as error:
            if isinstance(error, Refused) and error.errno == errno.EPIPE:
                self._broken_pipe()
            if not done:
                raise
            return done
        finally:
            if change is not None:
                change.done()

    def _gather(self, file: OpenFile, pieces: list[Piece], count: int) -> bytes:
        """The next bytes to write. Linux fills a pipe by pages, and one that meets a bad address is lost."""
        data = user.gather(self._cpu, pieces, count)
        if len(data) < count and isinstance(file, PipeEnd):
            data = data[: len(data) & -_PIPE_PAGE]
            if not data:
                raise UserFault("no whole page can be read")
        return data

    def _broken_pipe(self) -> None:
        """Nobody reads what is written: the signal comes before the error is seen."""
        process = self._process
        process.signals.post(SignalInfo(SIGPIPE, SI_USER, pid=process.pid, uid=process.config.uid))

    # ---- from file to file

    def sys_sendfile(self, out: int, source: int, offset: int, count: int, *_: int) -> int | None:
        at = int(read_struct(self._cpu, offset, "q")[0]) if offset else None
        if at is not None and not self._reader(source).seekable:
            raise Refused(errno.ESPIPE, f"descriptor {s32(source)} has no positions")
        writing = self._writer(out)
        change = rewriting(self._process.kernel, writing)
        try:
            moved = self._files.sendfile(s32(out), s32(source), at, count)
        except Refused as refused:
            if refused.errno == errno.EPIPE:
                self._broken_pipe()
            raise
        finally:
            if change is not None:
                change.done()
        if isinstance(moved, WouldBlock):
            self._wait(moved)
            return None
        self._gave(writing)
        if at is not None:
            write_struct(self._cpu, offset, "q", at + moved)
        return moved

    def sys_copy_file_range(
        self, source: int, source_offset: int, out: int, out_offset: int, count: int, flags: int
    ) -> int:
        offsets = [
            int(read_struct(self._cpu, address, "q")[0]) if address else None
            for address in (source_offset, out_offset)
        ]
        if flags:
            raise Refused(errno.EINVAL, f"flags {flags:#x}")
        change = rewriting(self._process.kernel, self._files.table.file(s32(out)))
        try:
            moved = self._files.copy_file_range(s32(source), offsets[0], s32(out), offsets[1], count)
        finally:
            if change is not None:
                change.done()
        for address, before in zip((source_offset, out_offset), offsets, strict=True):
            if before is not None:
                write_struct(self._cpu, address, "q", before + moved)
        return moved

    def sys_splice(self, *_: int) -> int:
        """Programs fall back on reading and writing."""
        raise Refused(errno.EINVAL, "pipes give their pages to nobody")

    # ---- what edge-triggered waiting wants to hear (see `epolling`)

    def _took(self, file: OpenFile) -> None:
        """Bytes were taken out of a stream, a counter or a pipe that was full to writers."""

    def _gave(self, file: OpenFile) -> None:
        """Bytes were put into a file."""


def _most_there(file: OpenFile) -> int:
    """The most that one read of a stream gives now, as far as that is known beforehand."""
    if isinstance(file, PipeEnd):
        return file.available()
    if isinstance(file, StreamFile):
        return _STREAM_CHUNK
    return _COUNTER_SIZE if isinstance(file, EventCounter) else 0
