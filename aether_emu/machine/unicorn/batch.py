"""Many registers of an engine, read or written by one call: one by one the calls take most of the time."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence

from aether_emu.machine.unicorn import engine

_MASK = (1 << 64) - 1
_SIZE = 16  # bytes of a value: what the widest register takes


class Batch:
    """The registers with these numbers of the engine behind `handle`, each of up to 128 bits."""

    def __init__(self, handle: int, numbers: Sequence[int]) -> None:
        self._handle, self._count = handle, len(numbers)
        self._numbers = (ctypes.c_int * len(numbers))(*numbers)
        self._values = (ctypes.c_uint64 * (2 * len(numbers)))()
        start = ctypes.addressof(self._values)
        self._pointers = (ctypes.c_void_p * len(numbers))(*(start + _SIZE * i for i in range(len(numbers))))
        self._arguments = ctypes.addressof(self._numbers), ctypes.addressof(self._pointers), len(numbers)
        self._words = memoryview(self._values).cast("B").cast("Q")
        self._zeros = memoryview(bytes(_SIZE * len(numbers))).cast("Q")

    def read(self) -> list[int]:
        """Their values, in order."""
        self._words[:] = self._zeros  # the engine writes as many bytes as a register has
        engine.reg_read_batch(self._handle, *self._arguments)
        words = self._words.tolist()
        return [low | high << 64 for low, high in zip(words[::2], words[1::2], strict=True)]

    def write(self, values: Iterable[int]) -> None:
        """Set them all."""
        words = self._words
        for number, value in enumerate(values):
            words[2 * number], words[2 * number + 1] = value & _MASK, value >> 64 & _MASK
        engine.reg_write_batch(self._handle, *self._arguments)
