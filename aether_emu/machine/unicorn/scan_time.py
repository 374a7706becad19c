"""How long the look at new blocks takes, told by a clock around it: a benchmark's question.

The difference of two runs, with and without, would be smaller than what the same run varies by. The clock is
read by machine code where the scan is machine code. Two readings cost 0.05 us, and count.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from aether_emu.machine import native

_P = ParamSpec("_P")
_R = TypeVar("_R")

SOURCE = """
    push rbx
    push r12
    push r13
    push r14
    push r15
    mov rbx, rcx                    # user_data: a Timing
    mov r12, rdi
    mov r13, rsi
    mov r14, rdx
    mov edi, 1                      # CLOCK_MONOTONIC
    lea rsi, [rbx + 40]
    call [rbx + 16]                 # clock_gettime(clock, time)
    imul r15, [rbx + 40], 1000000000
    add r15, [rbx + 48]
    mov rdi, r12
    mov rsi, r13
    mov rdx, r14
    mov rcx, [rbx + 8]
    call [rbx]                      # callback(engine, block, previous, user_data)
    mov edi, 1
    lea rsi, [rbx + 40]
    call [rbx + 16]
    imul rax, [rbx + 40], 1000000000
    add rax, [rbx + 48]
    sub rax, r15
    add [rbx + 24], rax
    inc qword ptr [rbx + 32]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    ret
"""
CODE = bytes.fromhex(
    "5341544155415641574889cb4989fc4989f54989d6bf01000000488d7328ff53104c697b2800ca9a3b4c037b304c89e7"
    "4c89ee4c89f2488b4b08ff13bf01000000488d7328ff53104869432800ca9a3b480343304c29f84801431848ff432041"
    "5f415e415d415c5bc3"
)


class Timing(ctypes.Structure):
    """The user data: the scan's callback and user data, `clock_gettime`, and what was spent."""

    _fields_ = (
        ("callback", ctypes.c_uint64),
        ("user_data", ctypes.c_uint64),
        ("clock", ctypes.c_uint64),
        ("ns", ctypes.c_uint64),
        ("blocks", ctypes.c_uint64),
        ("time", ctypes.c_uint64 * 2),
    )
    callback: int
    user_data: int
    clock: int
    ns: int
    blocks: int


_EdgeCallback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)


def _timed_scan(engine: int, block: int, previous: int, user_data: int) -> None:
    timing = Timing.from_address(user_data)
    start = time.monotonic_ns()
    _EdgeCallback(timing.callback)(engine, block, previous, timing.user_data)
    timing.ns += time.monotonic_ns() - start
    timing.blocks += 1


_python_scan = _EdgeCallback(_timed_scan)


class ScanTime:
    """Stands in for a scan's `callback` and `user_data`: install its own instead, and keep it as long."""

    def __init__(self, callback: int, user_data: int) -> None:
        clock = native.address_of(ctypes.CDLL(None).clock_gettime)
        self._timing = Timing(callback, user_data, clock)
        self.callback = native.routine(CODE, _python_scan)
        self.user_data = ctypes.addressof(self._timing)

    @property
    def seconds(self) -> float:
        """Spent so far, of wall time."""
        return self._timing.ns / 1e9

    @property
    def blocks(self) -> int:
        """Blocks looked at so far."""
        return self._timing.blocks

    def around(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """A function whose time belongs to the scan's."""

        def timed(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            start = time.monotonic_ns()
            try:
                return function(*args, **kwargs)
            finally:
                self._timing.ns += time.monotonic_ns() - start

        return timed
