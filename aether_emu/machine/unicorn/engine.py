"""The Unicorn library behind typed bare calls.

The Python wrapper costs more than the engine does (measured: a wrapped hook with register reads is
seven times a bare one), so CPUs register ctypes callbacks themselves and call the C functions
here. Calls that return at once hold the interpreter lock (`PyDLL`); `emu_start` releases it.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any, Literal

import unicorn
from unicorn import UC_CTL_IO_WRITE, UC_CTL_TLB_FLUSH
from unicorn.unicorn_py3.unicorn import uclib

from aether_emu.errors import EngineError
from aether_emu.machine import native
from aether_emu.machine.memory import host

LIBRARY: str = uclib._name
_quick = ctypes.PyDLL(LIBRARY)
_long = ctypes.CDLL(LIBRARY)


def _bind(library: Any, name: str, *arguments: Any) -> Any:
    function = library[name]
    function.restype = c_int
    function.argtypes = arguments
    return function


emu_start = _bind(_long, "uc_emu_start", c_void_p, c_uint64, c_uint64, c_uint64, c_size_t)
emu_start_nested = _bind(_quick, "uc_emu_start", c_void_p, c_uint64, c_uint64, c_uint64, c_size_t)
emu_stop = _bind(_quick, "uc_emu_stop", c_void_p)
hook_del = _bind(_quick, "uc_hook_del", c_void_p, c_size_t)
reg_read = _bind(_quick, "uc_reg_read", c_void_p, c_int, c_void_p)
reg_write = _bind(_quick, "uc_reg_write", c_void_p, c_int, c_void_p)
reg_read_batch = _bind(_quick, "uc_reg_read_batch", c_void_p, c_void_p, c_void_p, c_int)
reg_write_batch = _bind(_quick, "uc_reg_write_batch", c_void_p, c_void_p, c_void_p, c_int)
context_save = _bind(_quick, "uc_context_save", c_void_p, c_void_p)
context_restore = _bind(_quick, "uc_context_restore", c_void_p, c_void_p)
vmem_read = _bind(_quick, "uc_vmem_read", c_void_p, c_uint64, c_uint32, c_void_p, c_size_t)
vmem_write = _bind(_quick, "uc_vmem_write", c_void_p, c_uint64, c_uint32, c_void_p, c_size_t)
vmem_translate = _bind(_quick, "uc_vmem_translate", c_void_p, c_uint64, c_uint32, c_void_p)


EMU_START_ADDRESS = native.address_of(_long["uc_emu_start"])
EMU_STOP_ADDRESS = native.address_of(_long["uc_emu_stop"])
VMEM_READ_ADDRESS = native.address_of(_long["uc_vmem_read"])
CTL_ADDRESS = native.address_of(_long["uc_ctl"])
TLB_FLUSH = UC_CTL_IO_WRITE << 30 | UC_CTL_TLB_FLUSH  # as `uc_ctl` wants it, without arguments (unicorn.h)

INTERRUPT = ctypes.CFUNCTYPE(None, c_void_p, c_uint32, c_void_p)
INSTRUCTION = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)
SKIPPABLE = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p)
INVALID = ctypes.CFUNCTYPE(ctypes.c_bool, c_void_p, c_void_p)
CODE = ctypes.CFUNCTYPE(None, c_void_p, c_uint64, c_uint32, c_void_p)
UNMAPPED = ctypes.CFUNCTYPE(ctypes.c_bool, c_void_p, c_int, c_uint64, c_int, ctypes.c_int64, c_void_p)

_hook_add = _long["uc_hook_add"]


def guarded(address: int, *, nested: bool) -> Any:
    """`emu_start` through machine code at `address`, with that code's own argument in front.

    `nested`: with the interpreter lock held, as `emu_start_nested`.
    """
    make = ctypes.PYFUNCTYPE if nested else ctypes.CFUNCTYPE
    return make(c_int, c_void_p, c_void_p, c_uint64, c_uint64, c_uint64, c_size_t)(address)


def hook_add(
    handle: int,
    kind: int,
    callback: Any,
    *extra: int,
    user_data: int = 0,
    only_at: int | None = None,
    length: int = 1,
) -> int:
    """Register a ctypes callback (or a code address as int) for `length` addresses or all. Returns the hook.

    The caller keeps the callback alive. Raises EngineError when the engine refuses.
    """
    slot = c_size_t()
    target = c_void_p(callback) if isinstance(callback, int) else callback
    code = _hook_add(
        c_void_p(handle),
        ctypes.byref(slot),
        c_int(kind),
        target,
        c_void_p(user_data),
        c_uint64(1 if only_at is None else only_at),  # begin after end: the engine's way to say every address
        c_uint64(0 if only_at is None else only_at + length - 1),
        *map(c_int, extra),
    )
    if code:
        raise EngineError(f"the engine refuses hook {kind}: error {code}")
    return slot.value


_TRANSLATIONS = 1 << 30
"""Bytes of address space that an engine reserves for translated code."""
_BESIDE_THEM = 1 << 27
"""The same for everything else of it."""


def open_engine(arch: int, mode: int, model: int) -> Any:
    """A CPU of `model` (the wrapper is untyped), or an EngineError that says why there is none."""
    wrapper: Any = unicorn
    if not host.has_room(_TRANSLATIONS + _BESIDE_THEM):  # the engine would end the process
        raise EngineError(
            f"the engine needs {_TRANSLATIONS + _BESIDE_THEM >> 20} MiB of address space, and the host gives "
            f"no more: raise ulimit -v, or lower ram or aperture"
        )
    try:
        return wrapper.Uc(arch, mode, model)
    except wrapper.UcError as error:
        raise EngineError(f"the engine cannot make CPU model {model}: {error}") from None


def handle_of(uc: Any) -> int:
    """The engine's C handle."""
    value = uc._uch
    return int(getattr(value, "value", value))


def flush_tlb(uc: Any) -> None:
    """Drop every TLB entry (the wrapper has no method for it)."""
    uc.ctl(UC_CTL_TLB_FLUSH, UC_CTL_IO_WRITE)


def view(address: int, code: Literal["Q", "I", "i"], count: int) -> memoryview:
    """`count` numbers of struct code Q, I or i at host `address`, read and written in place."""
    kinds: dict[str, Any] = {"Q": c_uint64, "I": c_uint32, "i": c_int}
    array = (kinds[code] * count).from_address(address)
    return memoryview(array).cast("B").cast(code)


def error_text(code: int) -> str:
    """The engine's words for an error number."""
    wrapper: Any = unicorn
    return str(wrapper.UcError(code))
