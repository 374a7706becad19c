"""The modes of a terminal: `struct termios` (asm-generic/termbits.h), `termios2`, and the old `termio`."""

from __future__ import annotations

import struct
from dataclasses import field

from aether_emu.records import dataclass

ISTRIP, INLCR, IGNCR, ICRNL, IUCLC, IXON, IXANY = 0x20, 0x40, 0x80, 0x100, 0x200, 0x400, 0x800
PARMRK, IUTF8 = 8, 0x4000
OPOST, OLCUC, ONLCR, OCRNL, ONOCR, ONLRET, TABDLY = 1, 2, 4, 8, 0x10, 0x20, 0x1800
CSIZE, CS8, CREAD, PARENB, HUPCL, CLOCAL = 0x30, 0x30, 0x80, 0x100, 0x400, 0x800
ISIG, ICANON, ECHO, ECHOE, ECHOK, ECHONL, NOFLSH, TOSTOP = 1, 2, 8, 0x10, 0x20, 0x40, 0x80, 0x100
ECHOCTL, ECHOPRT, ECHOKE, IEXTEN, EXTPROC = 0x200, 0x400, 0x800, 0x8000, 0x1_0000
VINTR, VQUIT, VERASE, VKILL, VEOF, VTIME, VMIN, _VSWTC, VSTART, VSTOP, VSUSP, VEOL = range(12)
VREPRINT, _VDISCARD, VWERASE, VLNEXT, VEOL2 = range(12, 17)

_ADDRB = 0x2000_0000  # which only its own request sets
_CBAUD, _BOTHER, _INPUT_SHIFT = 0x100F, 0x1000, 16
_SPEEDS = (
    0, 50, 75, 110, 134, 150, 200, 300, 600, 1200, 1800, 2400, 4800, 9600, 19200, 38400,
    57600, 115200, 230400, 460800, 500000, 576000, 921600, 1000000, 1152000, 1500000, 2000000,
    2500000, 3000000, 3500000, 4000000,
)  # fmt: skip
"""Bits a second by their code: those with CBAUDEX, numbered from 1, come behind the others."""
_TERMIOS, _TERMIOS2, _TERMIO = struct.Struct("<4IB19s"), struct.Struct("<4IB19s2I"), struct.Struct("<4HB8sx")
SIZES = {"termios": _TERMIOS.size, "termios2": _TERMIOS2.size, "termio": _TERMIO.size}
"""Bytes of each structure."""
_CHARACTERS = bytes([3, 28, 127, 21, 4, 0, 1, 0, 17, 19, 26, 0, 18, 15, 23, 22, 0, 0, 0])


@dataclass
class Modes:
    """They begin as those of a fresh terminal (tty_std_termios). Speeds are in bits a second."""

    input: int = ICRNL | IXON
    output: int = OPOST | ONLCR
    control: int = 0o17 | CS8 | CREAD
    local: int = ISIG | ICANON | ECHO | ECHOE | ECHOK | ECHOCTL | ECHOKE | IEXTEN
    line: int = 0
    characters: bytes = field(default=_CHARACTERS)
    speeds: tuple[int, int] = (38400, 38400)

    def pack(self, kind: str) -> bytes:
        """As "termios", "termios2" or "termio"."""
        flags = (self.input, self.output, self.control, self.local, self.line)
        if kind == "termio":
            return _TERMIO.pack(*(value & 0xFFFF for value in flags[:4]), self.line, self.characters[:8])
        if kind == "termios2":
            return _TERMIOS2.pack(*flags, self.characters, *self.speeds)
        return _TERMIOS.pack(*flags, self.characters)

    def changed(self, kind: str, data: bytes) -> Modes:
        """These, with what a structure sets. What it has no room for stays."""
        speeds = self.speeds
        if kind == "termio":
            *low, line, some = _TERMIO.unpack(data)
            present = (self.input, self.output, self.control, self.local)
            flags = [old & ~0xFFFF | new for old, new in zip(present, low, strict=True)]
            characters = some + self.characters[8:]
        elif kind == "termios2":
            *flags, line, characters, of_input, of_output = _TERMIOS2.unpack(data)
            speeds = (of_input, of_output)
        else:
            *flags, line, characters = _TERMIOS.unpack(data)
        of_output = _speed(flags[2], speeds[1])
        wanted = flags[2] >> _INPUT_SHIFT & _CBAUD
        of_input = _speed(wanted, speeds[0]) if wanted else of_output
        input_, output, control, local = flags
        control &= ~_ADDRB
        return Modes(input_, output, control, local, line, characters, (of_input, of_output))

    def has(self, number: int, character: int) -> bool:
        """Whether a character is the special one of that number; 0 is none."""
        return character != 0 and self.characters[number] == character


def _speed(code: int, own: int) -> int:
    """Bits a second of a speed's code; `own` where it says that the number itself does."""
    code &= _CBAUD
    if code == _BOTHER:
        return own
    index = (code & ~_BOTHER) + 15 if code & _BOTHER else code
    return _SPEEDS[index] if index < len(_SPEEDS) else 0
