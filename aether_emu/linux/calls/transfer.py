"""read(2), write(2) and their relatives: bytes between open files and user memory.

Large transfers go in chunks, so that a guest cannot make the host hold gigabytes. A bad address in the
middle ends the call with the count so far, and nothing is taken out of a pipe or stream that could not be
delivered. A blocking write to a full pipe is issued again until all is taken, as one call to the guest.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import ParamSpec

from aether_emu.errors import Refused
from aether_emu.linux.calls import user
from aether_emu.linux.calls.arguments import broken_pipe, reader, wait_for, writer
from aether_emu.linux.calls.user import Piece, read_struct, s32, s64, u32, write_struct
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.host_file import HostData
from aether_emu.linux.files.notices import SIGNAL_SIZE, SignalFile
from aether_emu.linux.files.open_file import (
    LARGEST_OFFSET,
    MOST_PER_CALL,
    POLLHUP,
    POLLIN,
    POLLOUT,
    OpenFile,
    Seekable,
    WouldBlock,
)
from aether_emu.linux.files.pipe import PipeEnd
from aether_emu.linux.files.region import RegionFile
from aether_emu.linux.files.streams import StreamFile
from aether_emu.linux.files.synthetic import DeviceFile
from aether_emu.linux.mappable import rewriting
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Wait
from aether_emu.machine.cpu import UserFault

_P = ParamSpec("_P")
CHUNK = 1 << 20
"""Bytes that are on their way at once."""
_STREAM_CHUNK = 1 << 16
_PIPE_PAGE = 4096
_COUNTER_SIZE = 8
_RWF_HIPRI, _RWF_DSYNC, _RWF_SYNC, _RWF_APPEND, _RWF_NOAPPEND = 1, 2, 4, 0x10, 0x20
_RWF_KNOWN = _RWF_HIPRI | _RWF_DSYNC | _RWF_SYNC | _RWF_APPEND | _RWF_NOAPPEND
_AT_POSITION = (1 << 64) - 1


# ---- reading


def sys_read(task: Task, fd: int, buffer: int, count: int, *_: int) -> int:
    file = reader(task, fd)
    pieces = user.read_buffer(buffer, count, task.process.abi.user_end)
    _check_end(file, count)
    return _read(task, file, pieces)


def sys_readv(task: Task, fd: int, vector: int, count: int, *_: int) -> int:
    file = reader(task, fd)
    return _read_vector(task, file, vector, count)


def sys_pread64(task: Task, fd: int, buffer: int, count: int, offset: int, *_: int) -> int:
    file = _positioned(task, reader, fd, s64(offset))
    pieces = user.read_buffer(buffer, count, task.process.abi.user_end)
    _check_end(file, count, s64(offset))
    return _read_at(task, file, pieces, s64(offset))


def sys_preadv(task: Task, fd: int, vector: int, count: int, offset: int, *_: int) -> int:
    file = _positioned(task, reader, fd, s64(offset))
    pieces = user.read_vector(task.cpu, vector, count, task.process.abi.user_end)
    _check_end(file, user.total(pieces), s64(offset))
    return _read_at(task, file, pieces, s64(offset)) if user.total(pieces) else 0


def sys_preadv2(task: Task, fd: int, vector: int, count: int, offset: int, _high: int, flags: int) -> int:
    """preadv2(2). Of its flags only RWF_HIPRI concerns reading; it says to poll a device, and there is none.

    On 64-bit ISAs `offset` holds the whole offset, and the high word is ignored.
    """
    if offset == _AT_POSITION:
        file = reader(task, fd)
        _check_flags(flags)
        return _read_vector(task, file, vector, count)
    _positioned(task, reader, fd, s64(offset))
    _check_flags(flags)
    return sys_preadv(task, fd, vector, count, offset)


def _positioned(task: Task, opened: Callable[[Task, int], OpenFile], fd: int, offset: int) -> OpenFile:
    """The file of a call at an offset, with Linux's order of refusals."""
    if offset < 0:
        raise Refused(errno.EINVAL, f"offset {offset}")
    if not task.files.table.file(s32(fd)).seekable:
        raise Refused(errno.ESPIPE, f"descriptor {s32(fd)} has no positions")
    return opened(task, fd)


def _check_end(file: OpenFile, count: int, offset: int | None = None) -> None:
    """No transfer reaches behind the largest offset (Linux: rw_verify_area). Regions check it themselves."""
    if isinstance(file, Seekable) and not isinstance(file, RegionFile):
        begin = file.position if offset is None else offset
        if begin + count > LARGEST_OFFSET:
            raise Refused(errno.EINVAL, f"{count} bytes from {begin} on")


def _read_vector(task: Task, file: OpenFile, vector: int, count: int) -> int:
    pieces = user.read_vector(task.cpu, vector, count, task.process.abi.user_end)
    _check_end(file, user.total(pieces))
    return _read(task, file, pieces) if user.total(pieces) else 0


def _read(task: Task, file: OpenFile, pieces: list[Piece]) -> int:
    return _reading(task, _read_file, task, file, pieces)


def _reading(task: Task, read: Callable[_P, int], *arguments: _P.args, **named: _P.kwargs) -> int:
    """Make a transfer, and note in the accounts of /proc/PID/io what it has read. A refused one counts."""
    usage = task.usage
    usage.reads += 1
    try:
        done = read(*arguments, **named)
    except (Refused, UserFault):
        raise
    except BaseException:  # it is made again
        usage.reads -= 1
        raise
    usage.read += done
    return done


def _writing(task: Task, write: Callable[_P, int], *arguments: _P.args, **named: _P.kwargs) -> int:
    """Likewise, written."""
    usage = task.usage
    usage.writes += 1
    try:
        done = write(*arguments, **named)
    except (Refused, UserFault):
        raise
    except BaseException:  # it is made again
        usage.writes -= 1
        raise
    usage.written += done
    return done


def _read_file(task: Task, file: OpenFile, pieces: list[Piece]) -> int:
    if file.is_socket:
        return _receive(task, file, pieces)
    if file.is_terminal:
        from aether_emu.linux.calls import terminals  # noqa: PLC0415  # few programs have one

        return terminals.read(task, file, pieces)
    if not file.seekable:
        return _read_stream(task, file, pieces)

    def take(count: int, _done: int) -> bytes:
        data = file.read(count)
        assert isinstance(data, bytes), "only streams wait"
        return data

    def give_back(count: int) -> None:
        if isinstance(file, Seekable):
            file.position -= count

    return _load(task, pieces, take, give_back)


def _receive(task: Task, socket: OpenFile, pieces: list[Piece]) -> int:
    """read(2) of a socket: open files that come with the bytes are lost."""
    from aether_emu.linux.calls import socket_transfer  # noqa: PLC0415  # for who has sockets

    if not user.total(pieces):
        return 0
    got, done = socket_transfer.receive(task, socket_transfer.checked(socket), pieces, 0)
    for file in got.rights:
        file.let_go()
    return done


def _read_at(task: Task, file: OpenFile, pieces: list[Piece], offset: int) -> int:
    def get(count: int, done: int) -> bytes:
        return file.pread(count, offset + done)

    return _reading(task, _load, task, pieces, get, lambda _count: None)


def _load(
    task: Task, pieces: list[Piece], take: Callable[[int, int], bytes], give_back: Callable[[int], None]
) -> int:
    """Read a file with positions into memory until its end, a bad address or an error."""
    wanted, done = user.total(pieces), _done_before(task)
    while True:
        task.checkpoint(done)
        step = min(CHUNK, wanted - done)
        try:
            data = take(step, done)
        except Refused:
            if not done:
                raise
            return done
        moved = user.scatter(task.cpu, user.behind(pieces, done) if done else pieces, data)
        done += moved
        if moved < len(data):
            give_back(len(data) - moved)
            if not done:
                raise UserFault("nothing of the buffer can be written")
            return done
        if moved < step or done == wanted:
            return done


def _read_stream(task: Task, file: OpenFile, pieces: list[Piece]) -> int:
    """Take what is there, but no more than can be delivered."""
    wanted = user.total(pieces)
    if isinstance(file, PipeEnd):
        return _read_pipe(task, file, pieces, wanted)
    if isinstance(file, SignalFile):
        return _read_signals(task, file, pieces)
    if file.kind == "userfaultfd":
        from aether_emu.linux.calls import user_faults  # noqa: PLC0415  # few programs have one

        return user_faults.read(task, file, pieces)
    count = min(wanted, _most_there(file))
    ready = file.poll() & (POLLIN | POLLHUP)
    if wanted and not ready and isinstance(file, StreamFile):
        wait_for(file.wait_for(POLLIN))  # without a read, which might take what came after the look
    if count and ready:
        deliverable = user.writable(task.cpu, pieces, count)
        if deliverable < count and file.is_counter:
            raise UserFault("the counter's value can't be delivered whole")
        count = deliverable
    elif not count:
        count = min(wanted, 1)
    data = file.read(count)
    if isinstance(data, WouldBlock):
        wait_for(data)
    return user.scatter(task.cpu, pieces, data)


def _read_pipe(task: Task, end: PipeEnd, pieces: list[Piece], wanted: int) -> int:
    """Take what is there, but no page of it that can't be delivered whole."""
    pipe = end.pipe
    data = pipe.look(wanted)
    if not data:
        nothing = end.read(wanted)
        if isinstance(nothing, WouldBlock):
            wait_for(nothing)
        return 0
    moved = user.scatter(task.cpu, pieces, data)
    if moved < len(data):
        moved = pipe.whole_slots(moved)
        if not moved:
            raise UserFault("the first page of it can't be written whole")
    pipe.take(moved)
    pipe.tell_writers()
    return moved


def _read_signals(task: Task, file: SignalFile, pieces: list[Piece]) -> int:
    """As many as there are and have room. One that cannot be written is lost, as on Linux."""
    done = 0
    try:
        for address, length in pieces:
            for at in range(0, max(length - SIGNAL_SIZE, 0) + 1, SIGNAL_SIZE):
                if done and not file.poll():
                    return done
                data = file.read(length - at)
                if isinstance(data, WouldBlock):
                    wait_for(data)
                task.cpu.copy_to_user(address + at, data)
                done += SIGNAL_SIZE
    except (Refused, UserFault):
        if not done:
            raise
    return done


# ---- writing


def sys_write(task: Task, fd: int, buffer: int, count: int, *_: int) -> int:
    file = writer(task, fd)
    pieces = user.read_buffer(buffer, count, task.process.abi.user_end)
    _check_end(file, count)
    return _write(task, file, pieces)


def sys_writev(task: Task, fd: int, vector: int, count: int, *_: int) -> int:
    file = writer(task, fd)
    pieces = user.read_vector(task.cpu, vector, count, task.process.abi.user_end)
    _check_end(file, user.total(pieces))
    return _write(task, file, pieces) if user.total(pieces) else 0


def sys_pwrite64(task: Task, fd: int, buffer: int, count: int, offset: int, *_: int) -> int:
    file = _positioned(task, writer, fd, s64(offset))
    pieces = user.read_buffer(buffer, count, task.process.abi.user_end)
    _check_end(file, count, s64(offset))
    return _write_at(task, file, pieces, s64(offset))


def sys_pwritev(task: Task, fd: int, vector: int, count: int, offset: int, *_: int) -> int:
    file = _positioned(task, writer, fd, s64(offset))
    pieces = user.read_vector(task.cpu, vector, count, task.process.abi.user_end)
    _check_end(file, user.total(pieces), s64(offset))
    return _write_at(task, file, pieces, s64(offset)) if user.total(pieces) else 0


def sys_pwritev2(task: Task, fd: int, vector: int, count: int, offset: int, _high: int, flags: int) -> int:
    """pwritev2(2): RWF_APPEND and RWF_NOAPPEND stand for O_APPEND, RWF_SYNC and RWF_DSYNC for O_SYNC."""
    at_position = offset == _AT_POSITION
    file = writer(task, fd) if at_position else _positioned(task, writer, fd, s64(offset))
    _check_flags(flags)
    kept = file.flags
    if flags & _RWF_APPEND:
        file.flags |= fl.O_APPEND
    elif flags & _RWF_NOAPPEND:
        file.flags &= ~fl.O_APPEND
    try:
        if at_position:
            done = sys_writev(task, fd, vector, count)
        else:
            done = sys_pwritev(task, fd, vector, count, offset)
    finally:
        file.flags = kept
    if done and flags & (_RWF_SYNC | _RWF_DSYNC) and isinstance(file, HostData):
        file.sync()
    return done


def _check_flags(flags: int) -> None:
    if u32(flags) & ~_RWF_KNOWN:
        raise Refused(errno.EOPNOTSUPP, f"flags {u32(flags):#x}")
    if flags & _RWF_APPEND and flags & _RWF_NOAPPEND:
        raise Refused(errno.EINVAL, "to append and not to append")


def _write(task: Task, file: OpenFile, pieces: list[Piece]) -> int:
    return _writing(task, _write_file, task, file, pieces)


def _write_file(task: Task, file: OpenFile, pieces: list[Piece]) -> int:
    if file.is_socket:
        from aether_emu.linux.calls import socket_transfer  # noqa: PLC0415  # for who has sockets

        return socket_transfer.send(task, socket_transfer.checked(file), pieces, 0)
    if file.is_terminal:
        from aether_emu.linux.calls import terminals  # noqa: PLC0415  # few programs have one

        terminals.before_write(task, file)
    return _store(task, file, pieces, lambda data, _done: file.write(data))


def _write_at(task: Task, file: OpenFile, pieces: list[Piece], offset: int) -> int:
    def put(data: bytes, done: int) -> int | WouldBlock:
        return file.pwrite(data, offset + done)

    return _writing(task, _store, task, file, pieces, put)


def _store(
    task: Task, file: OpenFile, pieces: list[Piece], put: Callable[[bytes, int], int | WouldBlock]
) -> int:
    """Write memory to a file, from where the call stood when it last waited. The count."""
    done = _done_before(task)
    wanted = user.total(pieces)
    if isinstance(file, DeviceFile) and file.take is not None:
        return file.take(wanted)
    change = rewriting(task.process.kernel, file)
    try:
        while True:
            task.checkpoint(done)
            step = min(CHUNK, wanted - done)
            if step and isinstance(file, PipeEnd):
                step = _most_of_pipe(task, file, wanted - done, done)
            data = _gather(task, file, user.behind(pieces, done) if done else pieces, step)
            took = put(data, done)
            if isinstance(took, WouldBlock):
                wait_for(took, done)
            done += took
            whole = took == step or (took and (file.is_terminal or isinstance(file, PipeEnd | StreamFile)))
            if done == wanted or not whole:
                return done
    except (Refused, UserFault) as error:
        if isinstance(error, Refused) and error.errno == errno.EPIPE:
            broken_pipe(task)
        if not done:
            raise
        return done
    finally:
        if change is not None:
            change.done()


def _most_of_pipe(task: Task, end: PipeEnd, count: int, done: int) -> int:
    """How many bytes of a write a pipe takes now. Refused(EPIPE, EAGAIN), or a wait, if there are none."""
    end.require_reader()
    most = end.pipe.accepts(count)
    if not most:
        moved = done > _done_before(task)  # then readers were told of that
        wait_for(end.wait_for(POLLOUT) if moved else end.wait_for_slot(), done)
    return most


def _gather(task: Task, file: OpenFile, pieces: list[Piece], count: int) -> bytes:
    """The next bytes to write. Linux fills a pipe by pages: a page that meets a bad address is not sent."""
    data = user.gather(task.cpu, pieces, count)
    if len(data) < count and isinstance(file, PipeEnd):
        data = data[: len(data) & -_PIPE_PAGE]
        if not data:
            raise UserFault("no whole page can be read")
    return data


# ---- from file to file


def sys_sendfile(task: Task, out: int, source: int, offset: int, count: int, *_: int) -> int:
    at = int(read_struct(task.cpu, offset, "q")[0]) - _done_before(task) if offset else None
    if at is not None and not reader(task, source).seekable:
        raise Refused(errno.ESPIPE, f"descriptor {s32(source)} has no positions")
    reading, writing, files = reader(task, source), writer(task, out), task.files
    _check_end(reading, count, at)
    _check_end(writing, count)

    def move(most: int, done: int) -> int | WouldBlock:
        return files.sendfile(s32(out), s32(source), None if at is None else at + done, most)

    try:
        moved = _copying(task, writing, count, move)
    except Wait as wait:
        if at is not None:  # a signal may end the wait, and what went has gone
            write_struct(task.cpu, offset, "q", at + (wait.progress[0] if wait.progress else 0))
        raise
    if at is not None:
        write_struct(task.cpu, offset, "q", at + moved)
    return moved


def sys_copy_file_range(
    task: Task, source: int, source_offset: int, out: int, out_offset: int, count: int, flags: int
) -> int:
    offsets = [
        int(read_struct(task.cpu, address, "q")[0]) if address else None
        for address in (source_offset, out_offset)
    ]
    if flags:
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    files = task.files

    def move(most: int, done: int) -> int | WouldBlock:
        begin, end = (None if before is None else before + done for before in offsets)
        return files.copy_file_range(s32(source), begin, s32(out), end, most)

    moved = _copying(task, files.table.file(s32(out)), count, move)
    for address, before in zip((source_offset, out_offset), offsets, strict=True):
        if before is not None:
            write_struct(task.cpu, address, "q", before + moved)
    return moved


def _copying(task: Task, out: OpenFile, count: int, move: Callable[[int, int], int | WouldBlock]) -> int:
    """`_move`, noted as read and as written."""
    return _writing(task, _reading, task, _move, task, out, count, move)


def _move(task: Task, out: OpenFile, count: int, move: Callable[[int, int], int | WouldBlock]) -> int:
    """Copy up to `count` bytes to a file by `move(most, done)`, which may move fewer. How many went."""
    done, count = _done_before(task), min(count, MOST_PER_CALL)
    change = rewriting(task.process.kernel, out)
    try:
        while True:
            task.checkpoint(done)
            moved = move(count - done, done)
            if isinstance(moved, WouldBlock):
                if done and not out.is_socket:
                    return done
                wait_for(moved, done)
            done += moved
            if not moved or done == count:
                return done
    except Refused as refused:
        if refused.errno == errno.EPIPE:
            broken_pipe(task)
        if not done:
            raise
        return done
    finally:
        if change is not None:
            change.done()


def _done_before(task: Task) -> int:
    """Bytes that the call in progress moved before it last waited."""
    return task.progress[0] if task.progress else 0


def _most_there(file: OpenFile) -> int:
    """The most that one read of a stream gives now, as far as that is known beforehand."""
    if isinstance(file, StreamFile):
        return _STREAM_CHUNK
    return _COUNTER_SIZE if file.is_counter else 0
