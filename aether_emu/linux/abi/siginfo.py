"""siginfo_t: the same 128 bytes on every 64-bit ISA (Linux include/uapi/asm-generic/siginfo.h)."""

from __future__ import annotations

import struct

from aether_emu.linux.abi.signal import SIGCHLD, SignalInfo

SIZE = 128


def encode_siginfo(info: SignalInfo) -> bytes:
    """The bytes that a handler finds behind its second argument."""
    if info.raw:
        return info.raw.ljust(SIZE, b"\0")
    head = struct.pack("<iiii", info.number, 0, info.code, 0)
    if info.is_fault:
        body = struct.pack("<QH6xI", info.address, info.least_bit, info.key)
    elif info.file is not None:
        body = struct.pack("<Qi", info.value, info.file)
    elif info.number == SIGCHLD and info.code > 0:
        body = struct.pack("<iIixxxxQQ", info.pid, info.uid, info.value, *info.used)
    else:
        body = struct.pack("<iIQ", info.pid, info.uid, info.value)
    return (head + body).ljust(SIZE, b"\0")
