"""The line discipline of a terminal: what is typed, until a program reads it (Linux N_TTY, termios(3)).

    keys --> Discipline.receive --> editing, signals, echo --> Discipline.take --> read(2)

The bytes stand in a buffer of 4096, as Linux has it. With ICANON a read gets a line at a time, and what is
typed of the next one can still be edited; `marks` are where lines end. Without it everything can be read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aether_emu.linux.abi.signal import SIGINT, SIGQUIT, SIGTSTP
from aether_emu.linux.tty import modes as m
from aether_emu.linux.tty.modes import Modes
from aether_emu.linux.tty.output import Output, is_alphanumeric, is_control, lower

SIZE = 4096
"""Bytes of the buffer: the longest line, its end included."""
_NO_CHARACTER = 0  # stands in the buffer where the key for the end of a file was typed
_BEFORE_MINIMUM = 64  # bytes that Linux reads at once before it asks for the least number


class Discipline:
    """The way in. `flow` is told whether output goes on, `signal` the signals of keys for who is in front.

    `flushed` is told when what was typed is forgotten. Positions count all bytes that were in the buffer.
    """

    def __init__(
        self,
        modes: Modes,
        output: Output,
        *,
        signal: Callable[[int], None],
        flow: Callable[[bool], None],
        flushed: Callable[[], None],
    ) -> None:
        self.modes, self.output = modes, output
        self._signal, self._flow, self._flushed = signal, flow, flushed
        self._data = bytearray()  # what is not read yet
        self._tail = 0  # the position of its first byte
        self._line = 0  # the position behind the last line that is complete
        self._marks: set[int] = set()
        self.lines = 0  # that were ever complete
        self._literal = self._erasing = False
        self.held = False
        self._keys = _keys(modes)

    def capture(self) -> dict[str, Any]:
        """What was typed and not read yet."""
        return {
            "data": bytes(self._data),
            "marks": sorted(self._marks),
            "rest": [self._tail, self._line, self.lines, self._literal, self._erasing, self.held],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `capture` gave. The modes are those of then already."""
        self._data, self._marks = bytearray(state["data"]), set(state["marks"])
        self._tail, self._line, self.lines, self._literal, self._erasing, self.held = state["rest"]

    # ---- what is there

    @property
    def canonical(self) -> bool:
        """Whether a read gets lines."""
        return bool(self.modes.local & m.ICANON)

    @property
    def _reads_lines(self) -> bool:
        return self.modes.local & (m.ICANON | m.EXTPROC) == m.ICANON

    @property
    def available(self) -> int:
        """Bytes that can be read (FIONREAD)."""
        if not self._reads_lines:
            return len(self._data)
        count = self._line - self._tail
        ends = (at - self._tail for at in self._marks if at < self._line)
        return count - sum(self._data[at] == _NO_CHARACTER for at in ends)

    def has_input(self, least: int = 1) -> bool:
        """Whether there is a line, or so many bytes."""
        return self._line != self._tail if self._reads_lines else len(self._data) >= least

    @property
    def _head(self) -> int:
        return self._tail + len(self._data)

    # ---- reading

    def take(self, count: int) -> bytes:
        """Up to `count` bytes of what is there, which is something; empty for the end of a file."""
        if not self._reads_lines:
            data = bytes(self._data[:count])
            self._drop(len(data))
            is_end = len(data) == 1 and data[0] == self.modes.characters[m.VEOF]
            return b"" if self.canonical and is_end and not self._data else data
        end = min((at for at in self._marks if at < self._line), default=None)
        limit = self._tail + count
        if end is None or end >= limit:
            data = bytes(self._data[: min(limit, self._line) - self._tail])
            self._drop(len(data))
            self._skip_end()
            return data
        length = end - self._tail
        data = bytes(self._data[: length + (self._data[length] != _NO_CHARACTER)])
        self._drop(length + 1)
        return data

    def enough(self, count: int) -> bool:
        """Whether a read of `count` bytes without ICANON need not wait for more (VMIN)."""
        least = max(1, self.modes.characters[m.VMIN])
        return len(self._data) >= min(least, count, _BEFORE_MINIMUM)

    def _skip_end(self) -> None:
        """A read that stops right in front of the key for the end of a file takes that too."""
        if self._tail in self._marks and self._line != self._tail and self._data[0] == _NO_CHARACTER:
            self._drop(1)

    def _drop(self, count: int) -> None:
        del self._data[:count]
        self._tail += count
        if self._marks:
            self._marks = {at for at in self._marks if at >= self._tail}

    def flush(self) -> None:
        """Forget what was typed (TCIFLUSH)."""
        self._forget()
        self._flushed()

    def _forget(self) -> None:
        self._tail = self._line = self._head
        self._data.clear()
        self._marks.clear()
        self._erasing = False

    def change(self, modes: Modes) -> None:
        """Other modes from now on (Linux: n_tty_set_termios)."""
        before, self.modes, self.output.modes = self.modes, modes, modes
        self._keys = _keys(modes)
        if (before.local ^ modes.local) & (m.ICANON | m.EXTPROC):
            self._marks.clear()
            self._line = self._tail
            if modes.local & m.ICANON and self._data:
                self._marks.add(self._head - 1)
                self._line = self._head
            self._erasing = self._literal = False
        if before.input & m.IXON and not modes.input & m.IXON:
            self.start()
            self.output.send_echo()

    # ---- flow

    def start(self) -> None:
        """Output goes on, unless a program holds it (TCOOFF)."""
        if self.output.stopped and not self.held:
            self.output.stopped = False
            self._flow(True)

    def hold(self, held: bool) -> None:
        """tcflow(3) of a program: TCOOFF, TCOON."""
        if held != self.held:
            self.held = held
            if held:
                self.stop()
            else:
                self.start()

    def stop(self) -> None:
        """Output stops."""
        if not self.output.stopped:
            self.output.stopped = True
            self._flow(False)

    # ---- typing

    def receive(self, data: bytes) -> int:
        """What was typed. How many bytes of it are taken: the others find no room."""
        done = 0
        while done < len(data):
            room = SIZE - len(self._data)
            if self.modes.input & m.PARMRK:
                room = -(-room // 3)
            room -= 1
            if room <= 0:
                if not (self.canonical and self._line == self._tail):
                    break
                if room < 0:  # a line that is too long loses its last byte for each further one
                    del self._data[-1:]
                room = 1
            self._take_in(data[done : done + room])
            done += min(room, len(data) - done)
        return done

    def _take_in(self, data: bytes) -> None:
        if self._is_raw():
            self._data += data
            return
        for c in data:
            self._type(c)
        if self.modes.local & (m.ECHO | m.ECHONL):
            self.output.send_echo()

    def _is_raw(self) -> bool:
        i, local = self.modes.input, self.modes.local
        changes = m.ISTRIP | m.IUCLC | m.IGNCR | m.ICRNL | m.INLCR | m.IXON | m.PARMRK
        if not i & changes and not local & (m.ICANON | m.ISIG | m.ECHO):
            return True
        folds = i & m.ISTRIP or (i & m.IUCLC and local & m.IEXTEN)
        return bool(local & m.EXTPROC) and not folds

    def _type(self, c: int) -> None:
        modes = self.modes
        if modes.input & m.ISTRIP:
            c &= 0x7F
        if modes.input & m.IUCLC and modes.local & m.IEXTEN:
            c = lower(c)
        if self._literal:
            self._literal = False
            self._ordinary(c)
        elif modes.local & m.EXTPROC:
            self._data.append(c)
        elif c in self._keys:
            self._special(c)
        else:
            self._ordinary(c)

    def _ordinary(self, c: int) -> None:
        self._go_on_anyway()
        self._keep(c, self.output.echo)

    def _go_on_anyway(self) -> None:
        """IXANY: any key lets the output go on."""
        anyway = m.IXON | m.IXANY
        if self.output.stopped and not self.held and self.modes.input & anyway == anyway:
            self.start()
            self.output.send_echo()

    def _special(self, c: int) -> None:
        modes = self.modes
        if modes.input & m.IXON and (modes.has(m.VSTART, c) or modes.has(m.VSTOP, c)):
            if modes.has(m.VSTART, c):
                self.start()
                self.output.send_echo()
            else:
                self.stop()
            return
        if modes.local & m.ISIG:
            for number, key in ((SIGINT, m.VINTR), (SIGQUIT, m.VQUIT), (SIGTSTP, m.VSUSP)):
                if modes.has(key, c):
                    self._key_signal(number, c)
                    return
        self._go_on_anyway()
        if c == 0x0D and modes.input & m.IGNCR:
            return
        if c == 0x0D and modes.input & m.ICRNL:
            c = 0x0A
        elif c == 0x0A and modes.input & m.INLCR:
            c = 0x0D
        if not (self.canonical and self._edit(c)):
            self._keep(c, self.output.echo_raw if c == 0x0A else self.output.echo)

    def _key_signal(self, number: int, c: int) -> None:
        self._signal(number)
        if not self.modes.local & m.NOFLSH:
            self.output.drop_echo()
            self.output.wire.drop()
            self._forget()
            self._flushed()
        if self.modes.input & m.IXON:
            self.start()
        if self.modes.local & m.ECHO:
            self.output.echo(c)
            self.output.commit_echo()
        else:
            self.output.send_echo()

    def _keep(self, c: int, show: Callable[[int], None]) -> None:
        """Show a character, and put it into the buffer."""
        if self.modes.local & m.ECHO:
            self._finish_erasing()
            if self._line == self._head and show == self.output.echo:
                self.output.set_line_column()
            show(c)
            self.output.commit_echo()
        if c == 0xFF and self.modes.input & m.PARMRK:
            self._data.append(c)
        self._data.append(c)

    def _end_line(self, c: int) -> None:
        self.lines += 1
        self._marks.add(self._head)
        self._data.append(c)
        self._line = self._head

    def _edit(self, c: int) -> bool:
        """With ICANON: whether `c` is a key that edits or ends the line."""
        modes, out = self.modes, self.output
        extended, shows = modes.local & m.IEXTEN, modes.local & m.ECHO
        if modes.has(m.VERASE, c) or modes.has(m.VKILL, c) or (modes.has(m.VWERASE, c) and extended):
            self._erase(c)
            out.commit_echo()
        elif modes.has(m.VLNEXT, c) and extended:
            self._literal = True
            if shows:
                self._finish_erasing()
                if modes.local & m.ECHOCTL:
                    out.echo_raw(0x5E)
                    out.echo_raw(8)
                    out.commit_echo()
        elif modes.has(m.VREPRINT, c) and shows and extended:
            self._finish_erasing()
            out.echo(c)
            out.echo_raw(0x0A)
            for each in self._data[self._line - self._tail :]:
                out.echo(each)
            out.commit_echo()
        elif c == 0x0A:
            if modes.local & (m.ECHO | m.ECHONL):
                out.echo_raw(c)
                out.commit_echo()
            self._end_line(c)
        elif modes.has(m.VEOF, c):
            self._end_line(_NO_CHARACTER)
        elif modes.has(m.VEOL, c) or (modes.has(m.VEOL2, c) and extended):
            if shows:
                if self._line == self._head:
                    out.set_line_column()
                out.echo(c)
                out.commit_echo()
            if c == 0xFF and modes.input & m.PARMRK:
                self._data.append(c)
            self._end_line(c)
        else:
            return False
        return True

    # ---- erasing

    def _finish_erasing(self) -> None:
        if self._erasing:
            self.output.echo_raw(0x2F)
            self._erasing = False

    def _erase(self, key: int) -> None:
        """A character, a word or the line goes, and is taken off the screen."""
        modes, local = self.modes, self.modes.local
        if self._line == self._head:
            return
        one, word = modes.has(m.VERASE, key), False
        if not one:
            word = modes.has(m.VWERASE, key)
            shows = m.ECHO | m.ECHOK | m.ECHOKE | m.ECHOE
            if not word and local & shows != shows:
                self._drop_line(local)
                return
        seen = False
        while self._line < self._head:
            start = self._character_start()
            if start is None:
                break
            if word:
                if is_alphanumeric(self._data[start]) or self._data[start] == 0x5F:
                    seen = True
                elif seen:
                    break
            gone = bytes(self._data[start:])
            del self._data[start:]
            if local & m.ECHO:
                self._show_erased(gone, one)
            if one:
                break
        if self._line == self._head and local & m.ECHO:
            self._finish_erasing()

    def _drop_line(self, local: int) -> None:
        del self._data[self._line - self._tail :]
        if local & m.ECHO:
            self._finish_erasing()
            self.output.echo(self.modes.characters[m.VKILL])
            if local & m.ECHOK:
                self.output.echo_raw(0x0A)

    def _character_start(self) -> int | None:
        """Where the last character begins, in the buffer; None if a part of one is all that is left."""
        first, at = self._line - self._tail, len(self._data) - 1
        while self.output.continues(self._data[at]) and at > first:
            at -= 1
        return None if self.output.continues(self._data[at]) else at

    def _show_erased(self, gone: bytes, one: bool) -> None:
        out, local, c = self.output, self.modes.local, gone[0]
        if local & m.ECHOPRT:
            if not self._erasing:
                out.echo_raw(0x5C)
                self._erasing = True
            out.echo(c)
            for more in gone[1:]:
                out.echo_raw(more)
                out.move_back()
        elif one and not local & m.ECHOE:
            out.echo(self.modes.characters[m.VERASE])
        elif c == 0x09:
            self._show_erased_tab()
        else:
            columns = (2 if local & m.ECHOCTL else 0) if is_control(c) else 1
            for _ in range(columns):
                for shown in b"\b \b":
                    out.echo_raw(shown)

    def _show_erased_tab(self) -> None:
        columns, after_tab = 0, False
        for c in reversed(self._data[self._line - self._tail :]):
            if c == 0x09:
                after_tab = True
                break
            if is_control(c):
                columns += 2 if self.modes.local & m.ECHOCTL else 0
            else:
                columns += not self.output.continues(c)
        self.output.erase_tab(columns, after_tab=after_tab)


def _keys(modes: Modes) -> frozenset[int]:
    """The characters that mean something in these modes."""
    local, numbers, keys = modes.local, [], set()
    if modes.input & (m.IGNCR | m.ICRNL):
        keys.add(0x0D)
    if modes.input & m.INLCR or local & m.ICANON:
        keys.add(0x0A)
    if local & m.ICANON:
        numbers += [m.VERASE, m.VKILL, m.VEOF, m.VEOL]
        if local & m.IEXTEN:
            numbers += [m.VWERASE, m.VLNEXT, m.VEOL2, *([m.VREPRINT] if local & m.ECHO else [])]
    if modes.input & m.IXON:
        numbers += [m.VSTART, m.VSTOP]
    if local & m.ISIG:
        numbers += [m.VINTR, m.VQUIT, m.VSUSP]
    return frozenset(keys | {modes.characters[number] for number in numbers} - {0})
