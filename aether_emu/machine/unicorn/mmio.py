"""Registers of devices behind page-table entries: loads and stores of physical ranges that are no memory.

The engine calls with the offset and the width of each access. It makes two of 4 bytes, the lower first, of
one of 8. A store has been made when the call returns, and the engine would make it anew if it were stopped in
it: so nothing here stops the engine, but a failure of ours, which ends the run.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import TYPE_CHECKING, Any

from aether_emu.errors import EngineError
from aether_emu.machine.unicorn import engine

if TYPE_CHECKING:
    from aether_emu.machine.cpu import Registers

_LOAD = ctypes.CFUNCTYPE(c_uint64, c_void_p, c_uint64, c_uint, c_void_p)
_STORE = ctypes.CFUNCTYPE(None, c_void_p, c_uint64, c_uint, c_uint64, c_void_p)


def show(
    handle: int, start: int, size: int, registers: Registers, fail: Callable[[BaseException], None]
) -> tuple[Any, Any]:
    """Let accesses to physical `[start, start + size)`, whole pages, go to `registers`.

    Returns what the caller keeps alive. `fail` gets what they raise. Raises EngineError.
    """

    def load(_uc: int, offset: int, width: int, _data: int) -> int:
        try:
            return registers.load(offset, width)
        except BaseException as failure:
            fail(failure)
            return 0

    def store(_uc: int, offset: int, width: int, value: int, _data: int) -> None:
        try:
            registers.store(offset, width, value)
        except BaseException as failure:
            fail(failure)

    kept = _LOAD(load), _STORE(store)
    mmio_map = ctypes.PyDLL(engine.LIBRARY)["uc_mmio_map"]
    mmio_map.restype = c_int
    mmio_map.argtypes = (c_void_p, c_uint64, c_size_t, _LOAD, c_void_p, _STORE, c_void_p)
    code = mmio_map(handle, start, size, kept[0], None, kept[1], None)
    if code:
        raise EngineError(f"no registers can stand at physical {start:#x}: {engine.error_text(code)}")
    return kept
