"""Surviving the engine's `abort()`: code that its translator cannot digest ends a run, not the process.

LOCK before BT, BTS, BTR or BTC of a register (#UD on a CPU) makes the translator meet a value that was never
computed, and it calls `abort`; unallocated encodings of ARM64's half-precision group do the same. No hook
comes before the translation. So a run is entered through machine code that keeps the stack pointer, and the
SIGABRT handler of the process returns there. The engine is then in the middle of its work: it may be closed,
but not run again.

Where machine code cannot run (`native.available`), such code ends the process.
"""

from __future__ import annotations

import ctypes
import functools
import signal
import weakref
from collections.abc import Callable

from aether_emu.machine import native
from aether_emu.machine.memory import host
from aether_emu.machine.unicorn import engine

ABORTED = 1000
"""What a run returns that the engine aborted; its own error numbers are small."""

SOURCE = """
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov rbx, rdi                    # the Frame, in front of the function's own arguments
    mov rdi, rsi
    mov rsi, rdx
    mov rdx, rcx
    mov rcx, r8
    mov r8, r9
    push qword ptr [rbx]            # of the run around this one; seven pushes align the stack
    mov [rbx], rsp
    call [rbx + 8]                  # uc_emu_start
leave:
    pop qword ptr [rbx]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
"""
CODE = bytes.fromhex(
    "535541544155415641574889fb4889f74889d64889ca4c89c14d89c8ff33488923ff53088f03415f415e415d415c5d5bc3"
)
_LEAVE = 36  # offset of `leave`

_SA_SIGINFO = 4
_REGISTERS = 40  # offset of the registers in a ucontext, in the order of the C library's REG_* below
_RBX, _RAX, _RSP, _RIP, _NUMBER_OF_REGISTERS = 11, 13, 15, 16, 23
_DEEPEST = 8 << 20  # bytes of stack that a run may use
_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class Frame(ctypes.Structure):
    """`stack`: where the innermost run of one CPU was entered, or 0; `function`: uc_emu_start."""

    _fields_ = (("stack", ctypes.c_uint64), ("function", ctypes.c_uint64))
    stack: int


class _Action(ctypes.Structure):
    """`struct sigaction` of the C library, the same in glibc and musl."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint64 * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_uint64),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.sigaction.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_frames: weakref.WeakSet[AbortGuard] = weakref.WeakSet()


@functools.cache
def _entry() -> int:
    """Address of the machine code. The first call installs the handler, which stays."""
    action, previous = _Action(), _Action()

    def aborted(number: int, _info: int, context: int) -> None:
        registers = (ctypes.c_uint64 * _NUMBER_OF_REGISTERS).from_address(context + _REGISTERS)
        here = registers[_RSP]
        around = [guard for guard in _frames if 0 < guard.frame.stack - here < _DEEPEST]
        if not around:  # nobody's run: whoever handled it before shall have it
            _libc.sigaction(number, ctypes.byref(previous), None)
            signal.raise_signal(number)
            return
        innermost = min(around, key=lambda guard: guard.frame.stack)
        registers[_RSP] = innermost.frame.stack
        registers[_RBX] = ctypes.addressof(innermost.frame)
        registers[_RIP] = entry + _LEAVE
        registers[_RAX] = ABORTED

    _entry_keeps.append(handler := _Handler(aborted))
    entry = host.map_code(CODE)
    action.handler, action.flags = ctypes.cast(handler, ctypes.c_void_p), _SA_SIGINFO
    if _libc.sigaction(signal.SIGABRT, ctypes.byref(action), ctypes.byref(previous)):
        raise OSError(ctypes.get_errno(), "host sigaction for SIGABRT failed")
    return entry


_entry_keeps: list[object] = []


class AbortGuard:
    """Entries into one engine. `start` and `start_nested` are `uc_emu_start`, or return ABORTED."""

    def __init__(self) -> None:
        self.frame = Frame(0, engine.EMU_START_ADDRESS)
        self.start: Callable[..., int] = engine.emu_start
        self.start_nested: Callable[..., int] = engine.emu_start_nested
        if native.available():
            address = ctypes.addressof(self.frame)
            self.start = functools.partial(engine.guarded(_entry(), nested=False), address)
            self.start_nested = functools.partial(engine.guarded(_entry(), nested=True), address)
            _frames.add(self)
