"""What a terminal does for a task: job control, reads that wait for so many bytes or so long, ioctl_tty(2).

Who is not in front is stopped before it reads (SIGTTIN), before it changes the terminal, and with TOSTOP
before it writes (SIGTTOU). Rules and their order are those of Linux 6.6 (drivers/tty).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from aether_emu.errors import Refused
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.calls import user
from aether_emu.linux.calls.arguments import open_flags, wait_for
from aether_emu.linux.calls.user import Piece, s32, u32
from aether_emu.linux.credentials import SYS_ADMIN
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files import opening
from aether_emu.linux.files.open_file import POLLIN, OpenFile, WouldBlock
from aether_emu.linux.task import job_control
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Sent, Wait
from aether_emu.linux.tty import modes as m
from aether_emu.linux.tty.pty import Pty, PtyMaster
from aether_emu.linux.tty.terminal import Terminal
from aether_emu.machine.cpu import UserFault

if TYPE_CHECKING:
    from typing import Protocol

    class TerminalFile(Protocol):
        """An open file of a terminal."""

        terminal: Terminal
        hung_up: bool
        is_master: bool


_TENTH = 100_000_000
"""Nanoseconds of VTIME's unit."""
_MOST_AT_FIRST = 64
"""Bytes that Linux reads before it asks whether they are enough for VMIN."""
_GENERIC = (0x5421, 0x541B, 0x5450, 0x5451, 0x5452)  # FIONBIO, FIONREAD, FIONCLEX, FIOCLEX, FIOASYNC
_TIOCSPGRP = 0x5410


def _terminal(file: OpenFile) -> TerminalFile:
    return cast("TerminalFile", file)


def terminal_of(file: OpenFile) -> Terminal:
    """The terminal behind an open file of one."""
    return _terminal(file).terminal


# ---- job control


def check(task: Task, terminal: Terminal, number: int) -> None:
    """A process in the background stops its group by signal `number`, and makes its call anew later.

    Not where it ignores or blocks that; a read is EIO then, as it is in an orphaned group, which nobody could
    bring back.
    """
    process = task.process
    in_front = terminal.foreground in (0, process.group)
    if process.terminal is not terminal or in_front:
        return
    action = process.signals.actions[number]
    if task.signals.blocks(number) or action.handler == sig.SIG_IGN:
        if number == sig.SIGTTIN:
            raise Refused(errno.EIO, "the process is in the background, and does not hear SIGTTIN")
        return
    if job_control.is_orphaned(process.registry, process.group):
        raise Refused(errno.EIO, "the process is in the background, and nobody can bring it back")
    job_control.post_to_group(process.registry, process.group, number)
    raise Sent("the terminal's foreground")


def opened(task: Task, file: OpenFile, flags: int) -> None:
    """A terminal was opened: a session's leader without one gets it (O_NOCTTY)."""
    process, terminal = task.process, _terminal(file).terminal
    leads = process.pid == process.session and process.terminal is None
    if flags & fl.O_NOCTTY or _terminal(file).is_master or not leads or terminal.session or not file.readable:
        return
    job_control.take_terminal(process, terminal)


# ---- reading and writing


def read(task: Task, file: OpenFile, pieces: list[Piece]) -> int:
    """read(2) of a terminal or a master."""
    terminal, wanted = _terminal(file), user.total(pieces)
    if terminal.hung_up and task.wait is not None:
        raise Refused(errno.EIO, "the terminal is gone")
    if not terminal.is_master and not terminal.hung_up:
        check(task, terminal.terminal, sig.SIGTTIN)
    if not wanted:
        return 0
    if terminal.is_master or terminal.hung_up or terminal.terminal.modes.local & m.ICANON:
        data = file.read(wanted)
    else:
        data = _read_at_least(task, file, wanted)
    if isinstance(data, WouldBlock):
        wait_for(data)
    moved = user.scatter(task.cpu, pieces, data)
    if data and not moved:
        raise UserFault("nothing of the buffer can be written")
    return moved


def _read_at_least(task: Task, file: OpenFile, wanted: int) -> bytes | WouldBlock:
    """A read without ICANON: VMIN bytes, or those that came in VTIME tenths of a second (termios(3))."""
    characters = _terminal(file).terminal.modes.characters
    least, tenths = characters[m.VMIN], characters[m.VTIME]
    if least > _MOST_AT_FIRST:
        wanted = min(wanted, _MOST_AT_FIRST)
    available = file.available()
    if available >= min(max(least, 1), wanted) or (available and file.flags & fl.O_NONBLOCK):
        return file.read(wanted)
    if not least and not tenths:
        return b""
    if file.flags & fl.O_NONBLOCK or not tenths:
        return file.wait_for(POLLIN)
    if not least:
        deadline = task.deadline(tenths * _TENTH)
    elif not available:
        deadline = None
    elif task.progress[:1] == (available,) and task.wait is not None:
        deadline = task.wait.deadline
    else:
        deadline = task.process.kernel.clock.now_ns + tenths * _TENTH
    if task.has_waited_until(deadline):
        return file.read(wanted) if available else b""
    what = file.name_of_one
    raise Wait(file.queues(POLLIN), what, deadline=deadline, progress=(available,))


def before_write(task: Task, file: OpenFile) -> None:
    """With TOSTOP nobody writes from the background."""
    terminal = _terminal(file)
    if not terminal.is_master and not terminal.hung_up and terminal.terminal.modes.local & m.TOSTOP:
        check(task, terminal.terminal, sig.SIGTTOU)


# ---- ioctl


def control(task: Task, fd: int, file: OpenFile, request: int, argument: int) -> int:
    """ioctl(2). ENOTTY for what a pseudo-terminal has not, or the other side of it alone."""
    if _terminal(file).hung_up:
        raise Refused(errno.ENOTTY if request == _TIOCSPGRP else errno.EIO, "the terminal is gone")
    if request in _GENERIC:
        answer = task.files.ioctl(fd, request, lambda size: task.cpu.copy_from_user(argument, size))
        task.cpu.copy_to_user(argument, answer)
        return 0
    serve = _REQUESTS.get(request)
    if serve is None:
        raise Refused(errno.ENOTTY, f"a terminal has no ioctl {request:#x}")
    return serve(task, file, argument)


def _put(task: Task, argument: int, value: int) -> int:
    task.cpu.copy_to_user(argument, struct.pack("<i", value))
    return 0


def _get(task: Task, argument: int) -> int:
    return int(struct.unpack("<i", task.cpu.copy_from_user(argument, 4))[0])


def _master(file: OpenFile) -> Pty:
    if not isinstance(file, PtyMaster):
        raise Refused(errno.ENOTTY, "it is no master of a pseudo-terminal")
    return file.pty


# modes and size


def _get_modes(kind: str) -> Callable[[Task, OpenFile, int], int]:
    def serve(task: Task, file: OpenFile, argument: int) -> int:
        task.cpu.copy_to_user(argument, _terminal(file).terminal.modes.pack(kind))
        return 0

    return serve


def _set_modes(kind: str, *, flush: bool = False) -> Callable[[Task, OpenFile, int], int]:
    def serve(task: Task, file: OpenFile, argument: int) -> int:
        terminal = _terminal(file).terminal
        check(task, terminal, sig.SIGTTOU)
        data = task.cpu.copy_from_user(argument, m.SIZES[kind])
        terminal.change(terminal.modes.changed(kind, data), flush=flush)
        return 0

    return serve


def _get_locked_modes(task: Task, _file: OpenFile, argument: int) -> int:
    """TIOCGLCKTRMIOS: none is."""
    task.cpu.copy_to_user(argument, bytes(m.SIZES["termios"]))
    return 0


def _get_size(task: Task, file: OpenFile, argument: int) -> int:
    task.cpu.copy_to_user(argument, struct.pack("<4H", *_terminal(file).terminal.size))
    return 0


def _set_size(task: Task, file: OpenFile, argument: int) -> int:
    rows, columns, width, height = struct.unpack("<4H", task.cpu.copy_from_user(argument, 8))
    _terminal(file).terminal.resize((rows, columns, width, height))
    return 0


def _get_carrier(task: Task, file: OpenFile, argument: int) -> int:
    return _put(task, argument, bool(_terminal(file).terminal.modes.control & m.CLOCAL))


def _set_carrier(task: Task, file: OpenFile, argument: int) -> int:
    terminal = _terminal(file).terminal
    wanted = m.CLOCAL if _get(task, argument) else 0
    terminal.modes.control = terminal.modes.control & ~m.CLOCAL | wanted
    return 0


# flow


def _flush(task: Task, file: OpenFile, argument: int) -> int:
    terminal, what = _terminal(file), u32(argument)
    if not terminal.is_master:
        check(task, terminal.terminal, sig.SIGTTOU)
    if what > 2:
        raise Refused(errno.EINVAL, f"no queue {what}")
    flush = file.pty.flush_master if isinstance(file, PtyMaster) else terminal.terminal.flush
    flush(typed=what != 1, written=what != 0)
    return 0


def _flow(task: Task, file: OpenFile, argument: int) -> int:
    terminal, what = _terminal(file), u32(argument)
    if not terminal.is_master:
        check(task, terminal.terminal, sig.SIGTTOU)
    if what > 3:
        raise Refused(errno.EINVAL, f"no action {what}")
    if what > 1:
        character = terminal.terminal.modes.characters[m.VSTOP if what == 2 else m.VSTART]
        if character:
            terminal.terminal.send_at_once(bytes((character,)), by_master=terminal.is_master)
    elif isinstance(file, PtyMaster):
        file.stop_output(what == 0)
    else:
        terminal.terminal.hold(what == 0)
    return 0


def _drain(task: Task, file: OpenFile, _argument: int) -> int:
    """TCSBRK and those for a break: what was written has arrived at once, and no break can be sent."""
    if not _terminal(file).is_master:
        check(task, _terminal(file).terminal, sig.SIGTTOU)
    return 0


def _nothing_on_its_way(task: Task, _file: OpenFile, argument: int) -> int:
    return _put(task, argument, 0)


def _typed_by_program(_task: Task, _file: OpenFile, _argument: int) -> int:
    raise Refused(errno.EIO, "nobody may type for others (dev.tty.legacy_tiocsti is 0)")


def _for_administrators(_task: Task, _file: OpenFile, _argument: int) -> int:
    raise Refused(errno.EPERM, "nobody may redirect, hang up or lock (TIOCCONS, TIOCVHANGUP, TIOCSLCKTRMIOS)")


# whose it is


def _take(task: Task, file: OpenFile, argument: int) -> int:
    """TIOCSCTTY."""
    process, terminal = task.process, _terminal(file).terminal
    leads = process.pid == process.session
    if leads and terminal.session == process.session:
        return 0
    if not leads or process.terminal is not None:
        raise Refused(errno.EPERM, "only who leads a session without a terminal takes one")
    if terminal.session:
        if s32(argument) != 1 or not task.credentials.has(SYS_ADMIN):
            raise Refused(errno.EPERM, "it is another session's")
        job_control.lose_terminal(process.registry, terminal.session)
    if not file.readable and not task.credentials.has(SYS_ADMIN):
        raise Refused(errno.EPERM, "it is not open for reading")
    job_control.take_terminal(process, terminal)
    return 0


def _leave(task: Task, file: OpenFile, _argument: int) -> int:
    """TIOCNOTTY."""
    process = task.process
    if _terminal(file).is_master or process.terminal is not _terminal(file).terminal:
        raise Refused(errno.ENOTTY, "it is not the controlling terminal")
    job_control.leave_terminal(process.registry, process, ends=False)
    process.terminal = None
    return 0


def _require_own(task: Task, file: OpenFile) -> Terminal:
    terminal = _terminal(file)
    if not terminal.is_master and task.process.terminal is not terminal.terminal:
        raise Refused(errno.ENOTTY, "it is not the controlling terminal")
    return terminal.terminal


def _get_group(task: Task, file: OpenFile, argument: int) -> int:
    return _put(task, argument, _require_own(task, file).foreground)


def _get_session(task: Task, file: OpenFile, argument: int) -> int:
    session = _require_own(task, file).session
    if not session:
        raise Refused(errno.ENOTTY, "it is no session's")
    return _put(task, argument, session)


def _set_group(task: Task, file: OpenFile, argument: int) -> int:
    process, terminal = task.process, _terminal(file).terminal
    try:
        check(task, terminal, sig.SIGTTOU)
    except Refused:
        raise Refused(errno.ENOTTY, "the process is in the background, and orphaned") from None
    if process.terminal is not terminal or terminal.session != process.session:
        raise Refused(errno.ENOTTY, "it is not the controlling terminal")
    group = _get(task, argument)
    if group < 0:
        raise Refused(errno.EINVAL, f"no group {group}")
    session = process.registry.session_of(group)
    if session is None:
        raise Refused(errno.ESRCH, f"no group {group}")
    if session != process.session:
        raise Refused(errno.EPERM, "a group of another session")
    terminal.foreground = group
    return 0


def _exclude(on: bool) -> Callable[[Task, OpenFile, int], int]:
    def serve(_task: Task, file: OpenFile, _argument: int) -> int:
        if not _terminal(file).is_master:
            _terminal(file).terminal.exclusive = on
        return 0

    return serve


def _is_exclusive(task: Task, file: OpenFile, argument: int) -> int:
    terminal = _terminal(file)
    return _put(task, argument, not terminal.is_master and terminal.terminal.exclusive)


def _get_discipline(task: Task, _file: OpenFile, argument: int) -> int:
    return _put(task, argument, 0)


def _set_discipline(task: Task, file: OpenFile, argument: int) -> int:
    if not _terminal(file).is_master:
        check(task, _terminal(file).terminal, sig.SIGTTOU)
    if _get(task, argument):
        raise Refused(errno.EINVAL, "there is no other line discipline")
    return 0


def _get_device(task: Task, file: OpenFile, argument: int) -> int:
    number = _terminal(file).terminal.number
    return _put(task, argument, number & 0xFF | 136 << 8 | (number & ~0xFF) << 12)


# of a master alone


def _get_number(task: Task, file: OpenFile, argument: int) -> int:
    return _put(task, argument, _master(file).number)


def _set_lock(task: Task, file: OpenFile, argument: int) -> int:
    _master(file).locked = _get(task, argument) != 0
    return 0


def _get_lock(task: Task, file: OpenFile, argument: int) -> int:
    return _put(task, argument, _master(file).locked)


def _set_packet(task: Task, file: OpenFile, argument: int) -> int:
    _master(file).set_packet(_get(task, argument) != 0)
    return 0


def _get_packet(task: Task, file: OpenFile, argument: int) -> int:
    return _put(task, argument, _master(file).packet)


def _send(_task: Task, file: OpenFile, argument: int) -> int:
    pty, number = _master(file), s32(argument)
    if number not in (sig.SIGINT, sig.SIGQUIT, sig.SIGTSTP):
        raise Refused(errno.EINVAL, f"no key sends signal {number}")
    pty.signal(number)
    return 0


def _open_peer(task: Task, file: OpenFile, argument: int) -> int:
    """TIOCGPTPEER: the terminal of this master, whatever /dev/pts shows."""
    pty, flags, files = _master(file), open_flags(task, u32(argument)), task.files
    files.table.require_room()
    namespace = files.namespace
    with namespace.lookup(namespace.root(), pty.name) as place:
        peer = opening.open_place(namespace, place, opening.check_flags(flags))
    peer.flags &= ~fl.O_LARGEFILE
    fd = files.table.install(peer, cloexec=bool(flags & fl.O_CLOEXEC))
    opened(task, peer, flags)
    return fd


_REQUESTS: dict[int, Callable[[Task, OpenFile, int], int]] = {
    0x5401: _get_modes("termios"),
    0x5402: _set_modes("termios"),
    0x5403: _set_modes("termios"),
    0x5404: _set_modes("termios", flush=True),
    0x5405: _get_modes("termio"),
    0x5406: _set_modes("termio"),
    0x5407: _set_modes("termio"),
    0x5408: _set_modes("termio", flush=True),
    0x802C542A: _get_modes("termios2"),
    0x402C542B: _set_modes("termios2"),
    0x402C542C: _set_modes("termios2"),
    0x402C542D: _set_modes("termios2", flush=True),
    0x5409: _drain,
    0x540A: _flow,
    0x540B: _flush,
    0x540C: _exclude(True),
    0x540D: _exclude(False),
    0x540E: _take,
    0x540F: _get_group,
    0x5410: _set_group,
    0x5411: _nothing_on_its_way,
    0x5412: _typed_by_program,
    0x5413: _get_size,
    0x5414: _set_size,
    0x5419: _get_carrier,
    0x541A: _set_carrier,
    0x541D: _for_administrators,
    0x5420: _set_packet,
    0x5422: _leave,
    0x5423: _set_discipline,
    0x5424: _get_discipline,
    0x5425: _drain,
    0x5427: _drain,
    0x5428: _drain,
    0x5429: _get_session,
    0x5437: _for_administrators,
    0x5441: _open_peer,
    0x5456: _get_locked_modes,
    0x5457: _for_administrators,
    0x40045431: _set_lock,
    0x40045436: _send,
    0x80045430: _get_number,
    0x80045432: _get_device,
    0x80045438: _get_packet,
    0x80045439: _get_lock,
    0x80045440: _is_exclusive,
}
