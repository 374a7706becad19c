"""The x86 CPU state that hooks read and write, through one interface with two implementations.

`LiveState` reads the engine's own memory through memoryviews (0.05 us a field). `ContextState`
uses nothing but the API: registers by number, hidden fields through a saved context (about 1 us
each), for a library whose live state `locate` cannot find. Both offer the same
indexable fields, so one set of hooks serves both and the whole guest suite runs on either.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any, Protocol

from unicorn import x86_const

from aether_emu.machine import native
from aether_emu.machine.unicorn import engine
from aether_emu.machine.unicorn.x86_calibrate import GENERAL, Layout


class Field(Protocol):
    """A number, or a row of numbers, read and written by index."""

    def __getitem__(self, index: int, /) -> int: ...
    def __setitem__(self, index: int, value: int, /) -> None: ...


class State(Protocol):
    """What hooks need. Each field but `general` has one element."""

    general: Field
    rip: Field
    cr2: Field
    error_code: Field
    is_int: Field
    old_exception: Field
    hflags: Field
    pkru: Field


class LiveState:
    """Views straight into the engine's CPU state at host address `base`."""

    def __init__(self, base: int, layout: Layout) -> None:
        self.general: Field = engine.view(base, "Q", 16)
        self.rip: Field = engine.view(base + layout.rip, "Q", 1)
        self.cr2: Field = engine.view(base + layout.cr2, "Q", 1)
        self.error_code: Field = engine.view(base + layout.error_code, "i", 1)
        self.is_int: Field = engine.view(base + layout.is_int, "i", 1)
        self.old_exception: Field = engine.view(base + layout.old_exception, "i", 1)
        self.hflags: Field = engine.view(base + layout.hflags, "I", 1)
        self.pkru: Field = engine.view(base + layout.pkru, "I", 1)


class RegisterField:
    """Registers by API number."""

    def __init__(self, handle: int, numbers: tuple[int, ...]) -> None:
        self._handle, self._numbers = handle, numbers
        self._value = ctypes.c_uint64()
        self._pointer = ctypes.addressof(self._value)

    def __getitem__(self, index: int) -> int:
        engine.reg_read(self._handle, self._numbers[index], self._pointer)
        return self._value.value

    def __setitem__(self, index: int, value: int) -> None:
        self._value.value = value
        engine.reg_write(self._handle, self._numbers[index], self._pointer)


class HiddenField:
    """One field of a saved context."""

    def __init__(self, handle: int, context: int, address: int, kind: str) -> None:
        self._handle, self._context, self._address = handle, context, address
        self._struct = struct.Struct("<" + kind)

    def __getitem__(self, _index: int) -> int:
        engine.context_save(self._handle, self._context)
        value: int = self._struct.unpack(ctypes.string_at(self._address, self._struct.size))[0]
        return value

    def __setitem__(self, _index: int, value: int) -> None:
        engine.context_save(self._handle, self._context)
        ctypes.memmove(self._address, self._struct.pack(value), self._struct.size)
        engine.context_restore(self._handle, self._context)


class ContextState:
    """The same fields by API calls and a context that is saved, patched and restored."""

    def __init__(self, uc: Any, layout: Layout) -> None:
        handle = engine.handle_of(uc)
        self._keep = uc.context_save()
        context = native.address_of(self._keep.context)
        base = context + layout.context

        def hidden(offset: int, kind: str) -> Field:
            return HiddenField(handle, context, base + offset, kind)

        self.general: Field = RegisterField(handle, GENERAL)
        self.rip: Field = hidden(layout.rip, "Q")
        self.cr2: Field = RegisterField(handle, (x86_const.UC_X86_REG_CR2,))
        self.error_code: Field = hidden(layout.error_code, "i")
        self.is_int: Field = hidden(layout.is_int, "i")
        self.old_exception: Field = hidden(layout.old_exception, "i")
        self.hflags: Field = hidden(layout.hflags, "I")
        self.pkru: Field = hidden(layout.pkru, "I")
