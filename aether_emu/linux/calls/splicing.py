"""splice(2), tee(2), vmsplice(2): bytes into pipes and out of them, without the program's memory between.

Linux moves pages; here bytes are moved, which no program can tell apart but by what it writes into pages that
it has given away (vmsplice).
"""

from __future__ import annotations

import errno

from aether_emu.errors import Refused
from aether_emu.linux.calls import user
from aether_emu.linux.calls.arguments import broken_pipe, reader, wait_for, writer
from aether_emu.linux.calls.user import Piece as Place
from aether_emu.linux.calls.user import read_struct, s32, u32, write_struct
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import (
    MOST_PER_CALL,
    POLLIN,
    POLLOUT,
    OpenFile,
    Seekable,
    WouldBlock,
)
from aether_emu.linux.files.pipe import FIXED, PIPE_BUF, Piece, PipeEnd
from aether_emu.linux.files.streams import StreamFile
from aether_emu.linux.mappable import rewriting
from aether_emu.linux.task.task import Task
from aether_emu.machine.cpu import UserFault

_NONBLOCK, _KNOWN = 2, 0xF
_STEP = 1 << 16


def _no_data(end: PipeEnd, flags: int) -> None:
    """Wait for bytes in a pipe. Refused(EAGAIN) if the call may not."""
    if flags & _NONBLOCK:
        raise Refused(errno.EAGAIN, "the pipe is empty")
    wait_for(WouldBlock(end, POLLIN))


def _no_room(end: PipeEnd, flags: int) -> None:
    """Wait for room in a pipe. Refused(EAGAIN) if the call may not."""
    if flags & _NONBLOCK:
        raise Refused(errno.EAGAIN, "the pipe is full")
    wait_for(WouldBlock(end, POLLOUT))


def _require_reader(task: Task, end: PipeEnd) -> None:
    if not end.pipe.readers:
        broken_pipe(task)
        raise Refused(errno.EPIPE, "no reader is left")


def sys_splice(
    task: Task, source: int, source_offset: int, out: int, out_offset: int, count: int, flags: int
) -> int:
    if not count:
        return 0
    flags, count = u32(flags), min(count, MOST_PER_CALL)
    if flags & ~_KNOWN:
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    reading, writing = reader(task, source), writer(task, out)
    offsets = [_offset(task, file, at) for file, at in ((reading, source_offset), (writing, out_offset))]
    if isinstance(reading, PipeEnd) and isinstance(writing, PipeEnd):
        if reading.pipe is writing.pipe:
            raise Refused(errno.EINVAL, "one pipe at both ends")
        if (reading.flags | writing.flags) & fl.O_NONBLOCK:
            flags |= _NONBLOCK
        return _between(task, reading, writing, count, flags, takes=True)
    if isinstance(reading, PipeEnd):
        return _out_of(task, reading, writing, offsets[1], out_offset, count, flags)
    if isinstance(writing, PipeEnd):
        return _into(task, reading, writing, offsets[0], source_offset, count, flags)
    raise Refused(errno.EINVAL, "neither is a pipe")


def _offset(task: Task, file: OpenFile, address: int) -> int | None:
    """The offset at an address, if there is one. Refused(ESPIPE, EINVAL) for a file without positions."""
    if not address:
        return None
    if isinstance(file, PipeEnd):
        raise Refused(errno.ESPIPE, "a pipe has no positions")
    if not file.seekable:
        raise Refused(errno.EINVAL, f"a {file.kind} has no positions")
    at = int(read_struct(task.cpu, address, "q")[0])
    if at < 0:
        raise Refused(errno.EINVAL, f"offset {at}")
    return at


def _out_of(
    task: Task, end: PipeEnd, out: OpenFile, at: int | None, address: int, count: int, flags: int
) -> int:
    """From a pipe to a file or socket."""
    if out.seekable and out.flags & fl.O_APPEND:
        raise Refused(errno.EINVAL, "the target only appends")
    if not end.pipe.size:
        if not end.pipe.writers:
            return 0
        _no_data(end, flags)
    change, done = rewriting(task.process.kernel, out), 0
    try:
        while done < count and end.pipe.size:
            data = end.pipe.look(min(count - done, _STEP))
            took = out.write(data) if at is None else out.pwrite(data, at + done)
            if isinstance(took, WouldBlock):
                if done:
                    break
                wait_for(took)
            end.pipe.take(took)
            end.pipe.tell_writers()
            done += took
            if took < len(data):
                break
    except Refused as refused:
        if refused.errno == errno.EPIPE:
            broken_pipe(task)
        if not done:
            raise
    finally:
        if change is not None:
            change.done()
    if at is not None:
        write_struct(task.cpu, address, "q", at + done)
    return done


def _into(
    task: Task, source: OpenFile, end: PipeEnd, at: int | None, address: int, count: int, flags: int
) -> int:
    """From a file or socket to a pipe, as much as there is room for."""
    _require_reader(task, end)
    if not end.pipe.free:
        _no_room(end, flags)
    base = _in_page(source, at)
    count = min(count, end.pipe.free * PIPE_BUF - base)
    if isinstance(source, StreamFile) and not source.poll() & POLLIN:
        wait_for(source.wait_for(POLLIN))  # without a read, which might take what came after the look
    data = source.read(count) if at is None else source.pread(count, at)
    if isinstance(data, WouldBlock):
        wait_for(data)
    if data:
        end.pipe.append(Piece(data, base, FIXED))
        end.pipe.tell_readers()
    if at is not None:
        write_struct(task.cpu, address, "q", at + len(data))
    return len(data)


def _in_page(source: OpenFile, at: int | None) -> int:
    """Where in its page a file's next byte stands: pages of a file go into a pipe as they are."""
    if not isinstance(source, Seekable):
        return 0
    return (source.position if at is None else at) % PIPE_BUF


def _between(task: Task, source: PipeEnd, out: PipeEnd, count: int, flags: int, *, takes: bool) -> int:
    """From pipe to pipe; unless it `takes` the bytes, they stay in the first too."""
    if not source.pipe.size:
        if not source.pipe.writers:
            return 0
        _no_data(source, flags)
    _require_reader(task, out)
    if not out.pipe.free:
        _no_room(out, flags)
    done, there = 0, source.pipe.size
    while done < min(count, there) and out.pipe.free:
        done += source.pipe.pass_slot(out.pipe, count - done, takes=takes, behind=0 if takes else done)
    out.pipe.tell_readers()
    if takes:
        source.pipe.tell_writers()
    return done


def sys_tee(task: Task, source: int, out: int, count: int, flags: int, *_: int) -> int:
    flags = u32(flags)
    if flags & ~_KNOWN:
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    if not count:
        return 0
    reading, writing = reader(task, source), writer(task, out)
    if not isinstance(reading, PipeEnd) or not isinstance(writing, PipeEnd) or reading.pipe is writing.pipe:
        raise Refused(errno.EINVAL, "not two pipes")
    if (reading.flags | writing.flags) & fl.O_NONBLOCK:
        flags |= _NONBLOCK
    return _between(task, reading, writing, count, flags, takes=False)


def sys_vmsplice(task: Task, fd: int, vector: int, count: int, flags: int, *_: int) -> int:
    """vmsplice(2). The pages that are given away are copied at once."""
    flags = u32(flags)
    if flags & ~_KNOWN:
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    end = task.files.table.file(s32(fd))
    if not end.readable and not end.writable:
        raise Refused(errno.EBADF, f"descriptor {s32(fd)} is for neither reading nor writing")
    pieces = user.read_vector(task.cpu, vector, count, task.process.abi.user_end)
    if not user.total(pieces):
        return 0
    if not isinstance(end, PipeEnd):
        raise Refused(errno.EBADF, f"descriptor {s32(fd)} is no pipe")
    if end.writable:
        _require_reader(task, end)
        if not end.pipe.free:
            _no_room(end, flags | (_NONBLOCK if end.flags & fl.O_NONBLOCK else 0))
        return _give(task, end, pieces)
    if not end.pipe.size:
        if not end.pipe.writers:
            return 0
        _no_data(end, flags | (_NONBLOCK if end.flags & fl.O_NONBLOCK else 0))
    data = end.pipe.look(user.total(pieces))
    moved = user.scatter(task.cpu, pieces, data)
    end.pipe.take(moved)
    end.pipe.tell_writers()
    return moved


def _give(task: Task, end: PipeEnd, pieces: list[Place]) -> int:
    """vmsplice(2) into a pipe: the pages of each piece, as far as there are slots and they can be read."""
    done = 0
    for start, length in pieces:
        base = start % PIPE_BUF
        count = min(length, end.pipe.free * PIPE_BUF - base)
        if count <= 0:
            if length:
                break
            continue
        try:
            data = user.gather(task.cpu, [(start, count)], count)
        except UserFault:
            if not done:
                raise
            break
        end.pipe.append(Piece(data, base, FIXED))
        done += len(data)
        if len(data) < length:
            break
    end.pipe.tell_readers()
    return done
