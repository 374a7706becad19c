"""How a call's bytes go through a socket: waiting, timeouts, partial transfers, SIGPIPE.

read(2), write(2) and sendfile(2) come here for sockets, as send(2) and recv(2) and their relatives do.
"""

from __future__ import annotations

import errno
from typing import NoReturn

from aether_emu.errors import Refused
from aether_emu.linux.calls import user
from aether_emu.linux.calls.arguments import broken_pipe
from aether_emu.linux.calls.user import Piece
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import OpenFile, WouldBlock
from aether_emu.linux.net.inbox import Credentials, Received
from aether_emu.linux.net.options import SO_RCVLOWAT, SOL_SOCKET
from aether_emu.linux.net.socket import PLAIN, SOCK_DGRAM, SOCK_STREAM, Outgoing, Socket
from aether_emu.linux.net.unix import UnixSocket
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Restart, Wait
from aether_emu.machine.cpu import UserFault

MSG_OOB, MSG_PEEK, MSG_DONTROUTE, MSG_CTRUNC, MSG_TRUNC, MSG_DONTWAIT = 1, 2, 4, 8, 0x20, 0x40
MSG_EOR, MSG_WAITALL, MSG_ERRQUEUE, MSG_NOSIGNAL, MSG_MORE = 0x80, 0x100, 0x2000, 0x4000, 0x8000
MSG_WAITFORONE, MSG_FASTOPEN, MSG_CMSG_CLOEXEC = 0x10000, 0x2000_0000, 0x4000_0000
_CHUNK = 1 << 20


def credentials(task: Task) -> Credentials:
    """Who makes the call, as messages tell it: the real user."""
    return Credentials(task.process.pid, task.credentials.uid, task.credentials.gid)


def peer_credentials(task: Task) -> Credentials:
    """Who the call's process is to whom it is connected (SO_PEERCRED): the effective user."""
    return Credentials(task.process.pid, task.credentials.euid, task.credentials.egid)


def checked(file: OpenFile) -> Socket:
    """The socket that an open file is which says so."""
    assert isinstance(file, Socket), f"{file.name_of_one} is no socket"
    return file


def wait_for_socket(
    task: Task,
    reason: WouldBlock,
    flags: int,
    *,
    sending: bool,
    progress: tuple[int, ...] = (),
    done: int = 0,
) -> NoReturn:
    """Wait until a socket can go on, as long as it may. Refused(EAGAIN) when it may not, or no longer.

    `done` is what the call answers instead, if it is not 0.
    """
    socket = checked(reason.file)
    if socket.flags & fl.O_NONBLOCK or flags & MSG_DONTWAIT:
        raise Refused(errno.EAGAIN, "the socket can't go on now")
    options = socket.options
    deadline = task.deadline(after=options.send_timeout if sending else options.receive_timeout)
    if task.has_waited_until(deadline):
        raise Refused(errno.EAGAIN, "the socket's timeout is over")
    queues = socket.queues_in_call(reason.events)
    restart = Restart.BY_ACTION if deadline is None else Restart.NEVER
    answer = done or -errno.EINTR
    raise Wait(queues, "a socket", deadline=deadline, progress=progress, interrupted=answer, restart=restart)


def _begun(task: Task, is_first: bool) -> int:
    """Bytes that the call moved before it last waited: those of its first message."""
    return task.progress[0] if is_first and task.progress else 0


def send(
    task: Task,
    socket: Socket,
    pieces: list[Piece],
    flags: int,
    outgoing: Outgoing = PLAIN,
    *,
    is_first: bool = True,
) -> int:
    """Send what `pieces` have, from where the call stood when it last waited. How many bytes went.

    `is_first` says that this is the call's first message, for which it may have waited.
    """
    if flags & (MSG_OOB | MSG_FASTOPEN):
        raise Refused(errno.EOPNOTSUPP, "no urgent data, nor data with a connection")
    wanted, done = user.total(pieces), _begun(task, is_first)
    if isinstance(socket, UnixSocket):
        outgoing = outgoing._replace(credentials=outgoing.credentials or credentials(task))
    if flags & MSG_MORE:
        outgoing = outgoing._replace(more=True)
    try:
        while True:
            task.checkpoint(done)
            step = wanted - done
            if socket.is_stream:
                step = min(step, _CHUNK, max(socket.send_room(), 1))
            elif step > _CHUNK:
                raise Refused(errno.EMSGSIZE, f"a message of {step} bytes")
            data = user.gather(task.cpu, user.behind(pieces, done) if done else pieces, step)
            if len(data) < step and not socket.is_stream:
                raise UserFault("the message can't be read whole")
            took = socket.send(data, outgoing._replace(rights=()) if done else outgoing)
            if isinstance(took, WouldBlock):
                wait_for_socket(task, took, flags, sending=True, progress=(done,), done=done)
            done += took
            if done >= wanted or not socket.is_stream:
                return done
    except (Refused, UserFault) as error:
        if done:
            return done
        is_broken = isinstance(error, Refused) and error.errno == errno.EPIPE
        if is_broken and socket.type == SOCK_STREAM and not flags & MSG_NOSIGNAL:
            broken_pipe(task)
        raise


def receive(
    task: Task, socket: Socket, pieces: list[Piece], flags: int, *, is_first: bool = True
) -> tuple[Received, int]:
    """Receive into `pieces`: what came, and how many bytes of it the call has delivered in all."""
    if flags & MSG_OOB:
        number = errno.EINVAL if socket.is_stream else errno.EOPNOTSUPP
        if socket.is_listening and not isinstance(socket, UnixSocket):
            number = errno.ENOTCONN
        raise Refused(number, "there is no urgent data")
    if flags & MSG_ERRQUEUE:
        raise Refused(errno.EAGAIN, "nothing is in the queue of errors")
    if socket.is_stream:
        return _receive_bytes(task, socket, pieces, flags, is_first)
    ended = socket.type == SOCK_DGRAM and socket.reads_shut and not socket.inbox and not socket.error
    if ended and (socket.flags & fl.O_NONBLOCK or flags & MSG_DONTWAIT):
        raise Refused(errno.EAGAIN, "who may not wait sees no end, as on Linux")
    got = socket.receive(user.total(pieces), peek=bool(flags & MSG_PEEK))
    if isinstance(got, WouldBlock):
        wait_for_socket(task, got, flags, sending=False)
    if user.scatter(task.cpu, pieces, got.data) < len(got.data):
        for file in got.rights:
            file.let_go()
        raise UserFault("the message can't be written whole")
    return got, len(got.data)


def _receive_bytes(
    task: Task, socket: Socket, pieces: list[Piece], flags: int, is_first: bool
) -> tuple[Received, int]:
    wanted, done = user.total(pieces), _begun(task, is_first)
    peek = bool(flags & MSG_PEEK)
    least = wanted if flags & MSG_WAITALL else min(socket.options.get(SOL_SOCKET, SO_RCVLOWAT), wanted)
    if not wanted and socket.inbox:
        return Received(b"", 0), 0
    try:
        while True:
            there = socket.inbox.size
            count = min(wanted - done, there, _CHUNK)
            left = user.behind(pieces, done) if done else pieces
            discards = flags & MSG_TRUNC and not isinstance(socket, UnixSocket)
            if count and not discards:
                count = user.writable(task.cpu, left, count)
            got = socket.receive(count or 1, peek=peek)
            if isinstance(got, WouldBlock):
                wait_for_socket(task, got, flags, sending=False, progress=(done,), done=done)
            if not discards:
                user.scatter(task.cpu, left, got.data)
            done += len(got.data)
            if peek or got.rights or not got.data or done >= wanted:
                return got, done
            if done >= least and not socket.inbox:
                return got, done
    except (Refused, UserFault):
        if not done:
            raise
        return Received(b"", 0), done
