"""What ioctl(2) passes about terminals (Linux include/uapi/asm-generic/termbits.h)."""

from __future__ import annotations

from aether_emu.observe.strace import names
from aether_emu.observe.strace.kinds import Made, unpack
from aether_emu.observe.strace.words import Names


def window_size(call: Made, value: int) -> str:
    """struct winsize."""
    rows, columns, width, height = unpack(call, value, "4H")
    return f"{{ws_row={rows}, ws_col={columns}, ws_xpixel={width}, ws_ypixel={height}}}"


def terminal(call: Made, value: int) -> str:
    """struct termios, without its characters."""
    iflag, oflag, cflag, lflag = unpack(call, value, "4I")
    delays = [f"{name}{(oflag & bits) >> shift}" for name, bits, shift in _DELAYS]
    output = "|".join(filter(None, (*delays, _bits(names.TERMINAL_OUTPUT, oflag & 0xFF))))
    control = (
        names.TERMINAL_SPEED.one(cflag & 0x100F),
        f"CS{5 + (cflag >> 4 & 3)}",
        _bits(names.TERMINAL_CONTROL, cflag & ~0x103F),
    )
    return (
        f"{{c_iflag={_bits(names.TERMINAL_INPUT, iflag)}, c_oflag={output}, "
        f"c_cflag={'|'.join(filter(None, control))}, c_lflag={_bits(names.TERMINAL_LOCAL, lflag)}, ...}}"
    )


_DELAYS = (
    ("NL", 0x100, 8), ("CR", 0x600, 9), ("TAB", 0x1800, 11), ("BS", 0x2000, 13), ("VT", 0x4000, 14),
    ("FF", 0x8000, 15),
)  # fmt: skip


def _bits(table: Names, value: int) -> str:
    return table.bits(value) if value else ""
