"""Finding a CPU's live state in this process, and fields in a dump of it."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from aether_emu.errors import EngineError
from aether_emu.machine.unicorn import engine

if TYPE_CHECKING:
    from numpy.typing import NDArray

SENTINELS = tuple(0x5EED_C0DE_0000_1111 * (i + 3) & (1 << 64) - 1 for i in range(16))


def places(dump: bytes, kind: str, test: Callable[[NDArray[Any]], NDArray[np.bool_]]) -> set[int]:
    """Offsets of the aligned values of a kind (as in `struct`) that pass a test, which gets all of them."""
    size = struct.calcsize(kind)
    values = np.frombuffer(dump, f"<{kind}", len(dump) // size)
    return set((np.flatnonzero(test(values)) * size).tolist())


def still(before: set[int] | None, dump: bytes, kind: str, value: int) -> set[int]:
    """Those of the offsets `before` where the dump has this value, or all such offsets."""
    if before is None:
        return places(dump, kind, partial(np.equal, value))
    size = struct.calcsize(kind)
    wanted = struct.pack(f"<{kind}", value)
    return {place for place in before if dump[place : place + size] == wanted}


def only(name: str, places: set[int]) -> int:
    if len(places) != 1:
        raise EngineError(f"calibration: {len(places)} places behave like {name}")
    return places.pop()


def locate(uc: Any, numbers: tuple[int, ...]) -> int | None:
    """Host address of the general registers inside the live CPU state of `uc`, or None.

    The engine's structure points at its CPU; the registers are found there by sentinels, read
    through /proc/self/mem so that a wrong pointer is an error and not a crash, and the place
    must follow a register write.
    """
    try:
        memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    saved = uc.context_save()
    try:
        for register, value in zip(numbers, SENTINELS, strict=True):
            uc.reg_write(register, value)
        return _search(uc, numbers, memory)
    finally:
        os.close(memory)
        uc.context_restore(saved)


def _search(uc: Any, numbers: tuple[int, ...], memory: int) -> int | None:
    def read(address: int, length: int) -> bytes:
        try:
            return os.pread(memory, length, address)
        except (OSError, OverflowError):
            return b""

    pattern = struct.pack("<16Q", *SENTINELS)
    head = read(engine.handle_of(uc), 0x1000)
    for (pointer,) in struct.iter_unpack("<Q", head[: len(head) & ~7]):
        if not 0x1000 < pointer < 1 << 47:
            continue
        block = read(pointer, 0x10000)
        place = block.find(pattern)
        while place >= 0:
            changed = SENTINELS[0] ^ 0xFFFF
            uc.reg_write(numbers[0], changed)
            live: bool = read(pointer + place, 8) == struct.pack("<Q", changed)
            uc.reg_write(numbers[0], SENTINELS[0])
            if live:
                return int(pointer + place)
            place = block.find(pattern, place + 1)
    return None
