"""What a terminal does to bytes on their way out, and to the echo of what is typed (Linux N_TTY)."""

from __future__ import annotations

import re
from typing import Any, Protocol

from aether_emu.linux.tty import modes as m
from aether_emu.linux.tty.modes import Modes

_START, _BACK, _SET_COLUMN, _ERASE_TAB = 0xFF, 0x80, 0x81, 0x82
"""In the echo's buffer: what follows the first is no character, but one of the others, or a control character
that is shown as ^X."""
_BLOCK, _SIZE = 256, 4096
_MOST_PENDING = _SIZE - (_BLOCK + 32)
_TEXT = re.compile(rb"[^\x00-\x1f\x7f]+")
_NO_LETTERS = b"\xaa\xb2\xb3\xb5\xb9\xba\xbc\xbd\xbe"  # that Python takes for letters or digits


class Wire(Protocol):
    """Where the bytes go."""

    @property
    def room(self) -> int:
        """How many it takes."""

    def put(self, data: bytes) -> None:
        """Take them; they fit."""

    def drop(self) -> None:
        """Forget those that have not arrived."""


def is_control(character: int) -> bool:
    """As Linux has it: none above 0x7f is one."""
    return character < 0x20 or character == 0x7F


def is_alphanumeric(character: int) -> bool:
    """As Linux has it, whose letters are those of Latin-1."""
    return chr(character).isalnum() and character not in _NO_LETTERS


def lower(character: int) -> int:
    """A letter of Latin-1 as a small one."""
    is_capital = 0x41 <= character <= 0x5A or (0xC0 <= character <= 0xDE and character != 0xD7)
    return character + 0x20 if is_capital else character


def _upper(character: int) -> int:
    is_small = 0x61 <= character <= 0x7A or (character >= 0xDF and character != 0xF7)
    return character - 0x20 if is_small else character


class Output:
    """The way out. `column` is where the cursor is taken to be, `line_column` where the typed line begins.

    `stopped` by the flow control: nothing goes out meanwhile.
    """

    def __init__(self, modes: Modes, wire: Wire) -> None:
        self.modes, self.wire = modes, wire
        self.column = self.line_column = 0
        self.stopped = False
        self._echo = bytearray()
        self._committed = 0  # bytes of the echo that were to go out and found no room

    def capture(self) -> list[Any]:
        """Where the cursor is, and what was not shown yet."""
        cursor = [self.column, self.line_column]
        return [*cursor, self.stopped, bytes(self._echo), self._committed]

    def restore(self, state: list[Any]) -> None:
        """Take over what `capture` gave."""
        self.column, self.line_column, self.stopped, echo, self._committed = state
        self._echo = bytearray(echo)

    @property
    def room(self) -> int:
        """Bytes that can go out now."""
        return 0 if self.stopped else self.wire.room

    def write(self, data: bytes) -> int:
        """Send what a program writes. How many bytes of it were taken."""
        self.send_echo()
        room = self.room
        if not self.modes.output & m.OPOST:
            taken = data[:room]
            if taken:
                self.wire.put(taken)
            return len(taken)
        return self._process(data, room)

    def _process(self, data: bytes, room: int) -> int:
        done, plain = 0, not self.modes.output & m.OLCUC
        while done < len(data) and room:
            text = _TEXT.match(data, done, done + room) if plain else None
            if text is not None:
                run = text.group()
                self.column += sum(not self.continues(c) for c in run) if self._is_utf8 else len(run)
                self.wire.put(run)
                done, room = done + len(run), room - len(run)
                continue
            took = self._character(data[done], room)
            if took < 0:
                break
            done, room = done + 1, room - took
        return done

    def _character(self, c: int, room: int) -> int:
        """Send one character: how many bytes it became, -1 if they do not fit."""
        flags = self.modes.output
        if not room:
            return -1
        if c == 0x0A:
            if flags & m.ONLRET:
                self.column = 0
            if flags & m.ONLCR:
                if room < 2:
                    return -1
                self.line_column = self.column = 0
                self.wire.put(b"\r\n")
                return 2
            self.line_column = self.column
        elif c == 0x0D:
            if flags & m.ONOCR and not self.column:
                return 0
            if flags & m.OCRNL:
                c = 0x0A
                if flags & m.ONLRET:
                    self.line_column = self.column = 0
            else:
                self.line_column = self.column = 0
        elif c == 0x09:
            spaces = 8 - (self.column & 7)
            if flags & m.TABDLY == m.TABDLY:
                if room < spaces:
                    return -1
                self.column += spaces
                self.wire.put(b" " * spaces)
                return spaces
            self.column += spaces
        elif c == 0x08:
            self.column -= self.column > 0
        elif not is_control(c):
            if flags & m.OLCUC:
                c = _upper(c)
            self.column += not self.continues(c)
        self.wire.put(bytes((c,)))
        return 1

    @property
    def _is_utf8(self) -> bool:
        return bool(self.modes.input & m.IUTF8)

    def continues(self, c: int) -> bool:
        """Whether it is a byte within a character of UTF-8."""
        return self._is_utf8 and c & 0xC0 == 0x80

    # ---- the echo

    def echo_raw(self, c: int) -> None:
        """Show a character as it is."""
        self._echo += b"\xff\xff" if c == _START else bytes((c,))

    def echo(self, c: int) -> None:
        """Show a character, one that controls as ^X."""
        if c == _START:
            self._echo += b"\xff\xff"
        elif self.modes.local & m.ECHOCTL and is_control(c) and c != 0x09:
            self._echo += bytes((_START, c))
        else:
            self._echo.append(c)

    def move_back(self) -> None:
        """The cursor counts as one column further left."""
        self._echo += bytes((_START, _BACK))

    def set_line_column(self) -> None:
        """The line that is typed begins here."""
        self._echo += bytes((_START, _SET_COLUMN))

    def erase_tab(self, columns: int, *, after_tab: bool) -> None:
        """Go back over a tab; `columns` are used since the tab before it, or since the line began."""
        self._echo += bytes((_START, _ERASE_TAB, columns & 7 | (0x80 if after_tab else 0)))

    def commit_echo(self) -> None:
        """Send what is to be shown, once it is a block (Linux: commit_echoes)."""
        count = len(self._echo)
        if count >= _BLOCK and count % _BLOCK <= self._committed % _BLOCK:
            self.send_echo()

    def drop_echo(self) -> None:
        """Forget what was not shown yet."""
        self._echo.clear()
        self._committed = 0

    def send_echo(self) -> None:
        """Send as much of it as there is room for."""
        echo, at, room = self._echo, 0, self.room
        while at < len(echo):
            if echo[at] == _START:
                took, length = self._operation(echo, at, room)
            else:
                took, length = self._shown(echo[at], room), 1
            if took < 0:
                break
            room, at = room - took, at + length
        while len(echo) - at >= _MOST_PENDING:
            at += (3 if echo[at + 1] == _ERASE_TAB else 2) if echo[at] == _START else 1
        del echo[:at]
        self._committed = len(echo)

    def _shown(self, c: int, room: int) -> int:
        if self.modes.output & m.OPOST:
            return self._character(c, room)
        if not room:
            return -1
        self.wire.put(bytes((c,)))
        return 1

    def _operation(self, echo: bytearray, at: int, room: int) -> tuple[int, int]:
        """(bytes sent, -1 if they do not fit; bytes of the echo that say so)."""
        code = echo[at + 1]
        if code == _ERASE_TAB:
            columns = echo[at + 2]
            if not columns & 0x80:
                columns += self.line_column
            count = 8 - (columns & 7)
            if count > room:
                return -1, 3
            self.wire.put(b"\b" * count)
            self.column = max(0, self.column - count)
            return count, 3
        if code == _SET_COLUMN:
            self.line_column = self.column
            return 0, 2
        if code == _BACK:
            self.column -= self.column > 0
            return 0, 2
        text = b"\xff" if code == _START else bytes((0x5E, code ^ 0x40))
        if len(text) > room:
            return -1, 2
        self.wire.put(text)
        self.column += len(text)
        return len(text), 2
