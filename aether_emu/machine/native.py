"""Where machine-code routines come from: the bytes on x86_64 hosts, a Python callback elsewhere.

They run where Python is too slow or too dangerous: in front of every block that the guest executes
(`unicorn.block_counter`), before every system register it reads (`unicorn.arm64_random`) and every new block
(`unicorn.arm64_scan`, `unicorn.x86_scan`), and inside a SIGBUS handler (`memory.bus_handler`). Each of those
modules holds its routine as bytes beside the assembly, which a test assembles again, and the same in Python.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from typing import Any

from aether_emu.machine.memory import host

StopFunction = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
"""`uc_emu_stop`: it gets the engine."""


@functools.cache
def available() -> bool:
    """Whether this host can run the machine code: x86_64, 64-bit, Linux."""
    return sys.platform == "linux" and platform.machine() == "x86_64" and sys.maxsize > 2**32


def address_of(pointer: Any) -> int:
    """Where a ctypes pointer or function leads, which is never nowhere."""
    address = ctypes.cast(pointer, ctypes.c_void_p).value
    assert address is not None, f"{pointer} leads nowhere"
    return address


def routine(code: bytes, callback: Any) -> int:
    """Address of a routine for C to call: of `code`, or of the ctypes `callback` that does the same.

    The code stays mapped, once for the process. The caller keeps the callback.
    """
    return _mapped(code) if available() else address_of(callback)


@functools.cache
def _mapped(code: bytes) -> int:
    return host.map_code(code)
