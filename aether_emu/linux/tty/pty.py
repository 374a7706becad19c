"""Pseudo-terminals: pairs of a terminal and its master (pty(7)), as Linux has them below /dev/pts.

    master write --> Line --> Discipline --> read of the terminal
    master read <-- inbox <-- Line <-- Output <-- write of the terminal, and echo

A `Line` holds what the other side has no room for. What was typed, and the modes, stay when nobody has the
terminal open, until the master is closed: then it is gone, and whoever has it open finds its end.
"""

from __future__ import annotations

import errno
import select
from collections.abc import Callable, Mapping
from dataclasses import astuple
from typing import TYPE_CHECKING, ClassVar

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import POLLERR, POLLHUP, POLLIN, POLLOUT, OpenFile, WouldBlock
from aether_emu.linux.files.ownership import POLL_IN, POLL_OUT, Listeners, set_asynchronous
from aether_emu.linux.files.stat import Stat, StatFs
from aether_emu.linux.tty import modes as m
from aether_emu.linux.tty.discipline import SIZE, Discipline
from aether_emu.linux.tty.limits import MOST
from aether_emu.linux.tty.modes import Modes
from aether_emu.linux.tty.output import Output
from aether_emu.linux.tty.terminal import Terminal
from aether_emu.waiting import WaitQueue

if TYPE_CHECKING:
    from aether_emu.linux.files.streams import Stream
    from aether_emu.linux.tty.console import Console

_LINE = 8192
"""Bytes on their way to one side, beside those in its buffer."""
_PKT_FLUSHREAD, _PKT_FLUSHWRITE, _PKT_STOP, _PKT_START, _PKT_NOSTOP, _PKT_DOSTOP, _PKT_IOCTL = (
    1 << bit for bit in range(7)
)


class Line:
    """The way to one side: `receive` takes what it has room for, and `gone` hears of what is dropped."""

    def __init__(self, receive: Callable[[bytes], int], gone: Callable[[], None]) -> None:
        self._receive, self._gone = receive, gone
        self.pending = bytearray()

    @property
    def room(self) -> int:
        """Bytes that it takes."""
        return _LINE - len(self.pending)

    def put(self, data: bytes) -> None:
        """Send bytes, which fit."""
        self.pending += data
        self.shovel()

    def shovel(self) -> None:
        """Bring on what there is room for by now."""
        if self.pending:
            del self.pending[: self._receive(bytes(self.pending))]

    def drop(self) -> None:
        """Forget what has not arrived."""
        self.pending.clear()
        self._gone()


class Pty(Terminal):
    """A pair. `locked` until the master lets others open it; `packet` mode, its `status`: see ioctl_tty(2).

    `was_left`: everybody has closed the terminal, which is the end for who reads the master.
    `keys` is woken for those at the terminal, `screen` for those at the master.
    """

    def __init__(self, number: int, post: Callable[[int, int], None], gone: Callable[[Pty], None]) -> None:
        super().__init__(number, post)
        self._gone = gone
        self.modes = Modes()
        self.keys, self.screen = WaitQueue(), WaitQueue()
        self.inbox = bytearray()
        self.to_master = Line(self._arrive, lambda: self._tell(_PKT_FLUSHWRITE))
        self.output = Output(self.modes, self.to_master)
        self.discipline = Discipline(
            self.modes,
            self.output,
            signal=self.signal,
            flow=self._flows,
            flushed=lambda: self._tell(_PKT_FLUSHREAD),
        )
        self.to_slave = Line(self._typed, lambda: None)
        self.files: list[PtyTerminal] = []
        self.has_master = True
        self.locked = True
        self.packet, self.status = False, 0
        self.was_left = False
        self.told: Listeners | None = None
        self.master_told: Listeners | None = None
        self.wants_room = self.master_wants_room = False  # of those that are told

    # ---- bytes

    def _arrive(self, data: bytes) -> int:
        taken = data[: SIZE - 1 - len(self.inbox)]
        self.inbox += taken
        if taken:
            self.screen.wake()
            if self.master_told:
                self.master_told.tell(POLL_IN)
        return len(taken)

    def _typed(self, data: bytes) -> int:
        lines = self.discipline.lines
        done = self.discipline.receive(data)
        if self.discipline.has_input():
            self.keys.wake()
            if self.told:
                for _ in range(self.discipline.lines - lines if self.modes.local & m.ICANON else 1):
                    self.told.tell(POLL_IN)
        return done

    def has_read(self) -> None:
        """Somebody has read at the terminal: what waits on the way comes on."""
        self.to_slave.shovel()
        self.screen.wake()
        if self.master_told and self.master_wants_room:
            self.master_wants_room = False
            self.master_told.tell(POLL_OUT)

    def has_shown(self) -> None:
        """Somebody has read at the master, likewise."""
        self.to_master.shovel()
        self.keys.wake()
        if self.told and self.wants_room:
            self.wants_room = False
            self.told.tell(POLL_OUT)

    # ---- packet mode

    def _tell(self, status: int, instead_of: int = 0) -> None:
        if self.packet:
            self.status = self.status & ~instead_of | status
            self.screen.wake()

    def _flows(self, flows: bool) -> None:
        self._tell(*((_PKT_START, _PKT_STOP) if flows else (_PKT_STOP, _PKT_START)))
        if flows:
            self.keys.wake()

    def set_packet(self, on: bool) -> None:
        """TIOCPKT."""
        if on and not self.packet:
            self.status = 0
        self.packet = on

    # ---- what a terminal is asked

    def change(self, modes: Modes, *, flush: bool) -> None:
        """See `Terminal.change`. A pseudo-terminal always has eight bits, and no parity."""
        if flush:
            self.flush(typed=True, written=False)
        modes.control = modes.control & ~(m.CSIZE | m.PARENB) | m.CS8 | m.CREAD
        before, self.modes = self.modes, modes
        old, new = _is_usual_flow(before), _is_usual_flow(modes)
        if old != new:
            self._tell(_PKT_DOSTOP if new else _PKT_NOSTOP, _PKT_DOSTOP | _PKT_NOSTOP)
        if (before.local | modes.local) & m.EXTPROC:
            self._tell(_PKT_IOCTL)
        self.discipline.change(modes)
        self.to_slave.shovel()
        self.keys.wake()

    def flush(self, *, typed: bool, written: bool) -> None:
        """See `Terminal.flush`."""
        if typed:
            self.discipline.flush()
            self.to_slave.shovel()
        if written:
            self.to_master.drop()
        self.screen.wake()

    def flush_master(self, *, typed: bool, written: bool) -> None:
        """tcflush(3) at the master."""
        if typed:
            self.inbox.clear()
            self.has_shown()
        if written:
            self.to_slave.drop()
            self.screen.wake()

    def hold(self, held: bool) -> None:
        """See `Terminal.hold`."""
        self.discipline.hold(held)

    def send_at_once(self, data: bytes, *, by_master: bool) -> None:
        """See `Terminal.send_at_once`. Not what TCOOFF holds."""
        line = self.to_slave if by_master else self.to_master
        stopped = self.output.stopped and not by_master
        if stopped and self.discipline.held:
            return
        if stopped:
            self.discipline.start()
        line.put(data[: line.room])
        if stopped:
            self.discipline.stop()

    def open(self, flags: int, stat: Stat, fs: StatFs, name: bytes) -> PtyTerminal:
        """See `Terminal.open`."""
        if self.locked or not self.has_master:
            raise Refused(errno.EIO, "the pseudo-terminal is locked, or its master is closed")
        return PtyTerminal(self, flags, stat, fs, name)

    # ---- coming and going

    def join(self, file: PtyTerminal) -> None:
        """The terminal is opened."""
        self.files.append(file)
        self.was_left = False

    def leave(self, file: PtyTerminal) -> None:
        """An open file of the terminal is gone."""
        self.files.remove(file)
        if not self.files:
            self.was_left = True
            self.exclusive = False
            self.screen.wake()
            if not self.has_master:
                self._gone(self)

    def close_master(self) -> None:
        """The master is gone, and with it the terminal for all who have it open."""
        self.has_master = self.packet = False
        for file in self.files:
            set_asynchronous(file, -1, on=False)
            file.hung_up = True
        self._gone(self)
        self.keys.wake()


def _is_usual_flow(modes: Modes) -> bool:
    stop, start = modes.characters[m.VSTOP], modes.characters[m.VSTART]
    return bool(modes.input & m.IXON) and (stop, start) == (0x13, 0x11)


class _PtyFile(OpenFile):
    """An open file of one side."""

    kind = "pseudo-terminal"
    is_terminal = True
    is_master: ClassVar[bool]
    hung_up = False
    """The terminal is gone for who has it open."""

    def __init__(self, pty: Pty, flags: int, stat: Stat, fs: StatFs, name: bytes) -> None:
        super().__init__(flags & ~fl.O_NOCTTY, stat)
        self.terminal = self.pty = pty
        self._fs, self._name = fs, name

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        return {
            "pty": self.pty.number,
            "master": self.is_master,
            "name": self._name,
            "stat": list(astuple(self._stat)),
            "fs": list(astuple(self._fs)),
            "held": self.hung_up,
        }

    def statfs(self) -> StatFs:
        """See `OpenFile.statfs`."""
        return self._fs


class PtyTerminal(_PtyFile):
    """The terminal of a pair, open."""

    is_master = False

    def __init__(self, pty: Pty, flags: int, stat: Stat, fs: StatFs, name: bytes) -> None:
        super().__init__(pty, flags, stat, fs, name)
        pty.join(self)

    def release(self) -> None:
        """See `OpenFile.release`."""
        self.pty.leave(self)

    def queues(self, events: int) -> tuple[WaitQueue, ...]:
        """See `OpenFile.queues`."""
        return (self.pty.keys,)

    def read(self, count: int) -> bytes | WouldBlock:
        """See `OpenFile.read`. What VMIN and VTIME ask for is the caller's."""
        pty = self.pty
        if self.hung_up or not count:
            return b""
        if not pty.discipline.has_input():
            return self.wait_for(POLLIN)
        data = pty.discipline.take(count)
        pty.has_read()
        return data

    def write(self, data: bytes) -> int | WouldBlock:
        """See `OpenFile.write`."""
        if self.hung_up:
            raise Refused(errno.EIO, "the master is closed")
        if not data:
            return 0
        done = self.pty.output.write(data)
        self.pty.wants_room |= done < len(data)
        return done or self.wait_for(POLLOUT)

    def listeners(self) -> tuple[Listeners, ...]:
        """See `OpenFile.listeners`."""
        if self.hung_up:
            return ()
        if self.pty.told is None:
            self.pty.told = Listeners()
        return (self.pty.told,)

    def available(self) -> int:
        """See `OpenFile.available`."""
        if self.hung_up:
            raise Refused(errno.EIO, "the master is closed")
        return self.pty.discipline.available

    def poll(self) -> int:
        """See `OpenFile.poll`."""
        if self.hung_up:
            return POLLIN | POLLOUT | POLLERR | POLLHUP
        characters = self.pty.modes.characters
        least = 1 if characters[m.VTIME] else max(1, characters[m.VMIN])
        ready = POLLIN if self.readable and self.pty.discipline.has_input(least) else 0
        return ready | (POLLOUT if self.writable and self.pty.output.room else 0)

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return self._name + (b" (deleted)" if self.hung_up and self._name == self.pty.name else b"")

    def reopen(self, flags: int) -> OpenFile:
        """See `OpenFile.reopen`."""
        return self.pty.open(flags, self._stat, self._fs, self._name)


class PtyMaster(_PtyFile):
    """The master of a pair. `anew` makes another pair, as opening it through its descriptor does."""

    is_master = True

    def __init__(
        self, pty: Pty, flags: int, stat: Stat, fs: StatFs, name: bytes, anew: Callable[[int], OpenFile]
    ) -> None:
        super().__init__(pty, flags, stat, fs, name)
        self._anew = anew
        self._held = False

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        return super().capture() | {"held": self._held}

    def stop_output(self, held: bool) -> None:
        """tcflow(3) at the master: what it sends waits, or goes on."""
        self._held = held
        self.pty.screen.wake()

    @property
    def _room(self) -> int:
        return 0 if self._held else self.pty.to_slave.room

    def release(self) -> None:
        """See `OpenFile.release`."""
        self.pty.close_master()

    def queues(self, events: int) -> tuple[WaitQueue, ...]:
        """See `OpenFile.queues`."""
        return (self.pty.screen,)

    def read(self, count: int) -> bytes | WouldBlock:
        """See `OpenFile.read`. In packet mode a byte comes first that says what the others are."""
        pty = self.pty
        if not count:
            return b""
        if pty.packet and pty.status:
            status, pty.status = pty.status, 0
            return bytes((status,))
        if not pty.inbox:
            if pty.was_left:
                raise Refused(errno.EIO, "nobody has the terminal open any more")
            return self.wait_for(POLLIN)
        head = b"\0" if pty.packet else b""
        data = bytes(pty.inbox[: count - len(head)])
        del pty.inbox[: len(data)]
        pty.has_shown()
        return head + data

    def write(self, data: bytes) -> int | WouldBlock:
        """See `OpenFile.write`."""
        if not data:
            return 0
        taken = data[: self._room]
        self.pty.master_wants_room |= len(taken) < len(data)
        if not taken:
            return self.wait_for(POLLOUT)
        self.pty.to_slave.put(taken)
        return len(taken)

    def listeners(self) -> tuple[Listeners, ...]:
        """See `OpenFile.listeners`."""
        if self.pty.master_told is None:
            self.pty.master_told = Listeners()
        return (self.pty.master_told,)

    def available(self) -> int:
        """See `OpenFile.available`."""
        return len(self.pty.inbox)

    def poll(self) -> int:
        """See `OpenFile.poll`."""
        pty = self.pty
        ready = POLLIN if self.readable and pty.inbox else 0
        if pty.packet and pty.status:
            ready |= POLLIN | select.POLLPRI
        if pty.was_left:
            ready |= POLLHUP
        return ready | (POLLOUT if self.writable and self._room else 0)

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return self._name

    def reopen(self, flags: int) -> OpenFile:
        """See `OpenFile.reopen`."""
        return self._anew(flags)


class Terminals:
    """The terminals of a machine by number. `console` is the run's own, if it has one.

    `post(group, signal)` sends a signal, `hang_up(terminal)` tells its session that it is gone.
    """

    def __init__(self, post: Callable[[int, int], None], hang_up: Callable[[Terminal], None]) -> None:
        self._post, self._hang_up = post, hang_up
        self.by_number: dict[int, Terminal] = {}
        self.console: Console | None = None

    def make_console(self, streams: Mapping[str, Stream]) -> Console:
        """The run's own, behind the first of its streams that is a terminal."""
        from aether_emu.linux.tty.console import Console  # noqa: PLC0415  # what it imports is the host's

        name = next(name for name, stream in streams.items() if stream.terminal_size() is not None)
        number = next(n for n in range(MOST) if n not in self.by_number)
        self.console = self.by_number[number] = Console(number, self._post, name, streams[name])
        return self.console

    @property
    def pairs(self) -> int:
        """How many there are beside the console."""
        return sum(isinstance(terminal, Pty) for terminal in self.by_number.values())

    def shown(self) -> dict[int, Terminal]:
        """Those that have a name."""
        return {
            number: terminal
            for number, terminal in self.by_number.items()
            if not isinstance(terminal, Pty) or terminal.has_master
        }

    def open_pair(self, flags: int, stat: Stat, fs: StatFs, name: bytes) -> PtyMaster:
        """Opening /dev/ptmx: the master of a new pair. Refused(ENOSPC) when there are too many."""
        number = next((n for n in range(MOST) if n not in self.by_number), None)
        if number is None:
            raise Refused(errno.ENOSPC, f"there are {MOST} pseudo-terminals already")
        return self.open_master(self.add(number), flags, stat, fs, name)

    def add(self, number: int) -> Pty:
        """A pair with a number that is free, whose master nobody has open yet."""
        pty = Pty(number, self._post, self._leaves)
        self.by_number[number] = pty
        return pty

    def open_master(self, pty: Pty, flags: int, stat: Stat, fs: StatFs, name: bytes) -> PtyMaster:
        """Its master, open."""
        return PtyMaster(pty, flags, stat, fs, name, lambda again: self.open_pair(again, stat, fs, name))

    def _leaves(self, pty: Pty) -> None:
        """Its master is closed, or after that its last open file."""
        if pty.session:
            self._hang_up(pty)
            pty.session = pty.foreground = 0
        if not pty.files:
            del self.by_number[pty.number]
