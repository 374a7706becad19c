"""The process-wide SIGBUS guard: a lost page of a guarded range stops the engine, not the process.

The host raises SIGBUS when a mapped file page is gone: another process truncated the file, the disk is full,
the memory is bad. The handler puts an anonymous zero page over the address, so that the access can complete,
writes the address down, and calls the engine's stop function. The owner drains the addresses after the run,
shows the file again (`Aperture.lost`), and gives the guest its SIGBUS.

The engine stops at the very instruction: Unicorn 2.1.4 checks for a stop after each load and store that it
translates (`check_exit_request` in its `tcg_gen_qemu_ld` and `_st`), restoring the state before the
instruction. What it executes in a C function instead (x87 80-bit loads and stores, FXSAVE, CMPXCHG16B)
completes on the zero page first, and the stop comes at the next load, store or block.

A SIGBUS from anywhere else goes to the handler that was there before, or kills the process as ever. A handler
installed later must pass on what it does not know.
"""

from __future__ import annotations

import ctypes
import os
import signal

from aether_emu.errors import AetherError
from aether_emu.machine import native
from aether_emu.machine.memory import bus_handler, host

_SA_SIGINFO = 4
_SI_CODE, _SI_ADDR = 8, 16
"""Offsets in `siginfo_t` on 64-bit Linux."""


class SignalHandlerError(AetherError):
    """The host refused to install the SIGBUS handler."""

    def __init__(self, code: int) -> None:
        self.errno = code
        super().__init__(f"host sigaction for SIGBUS failed: {os.strerror(code)}")


class _SigAction(ctypes.Structure):
    """`struct sigaction` of the C library, the same in glibc and musl."""

    _fields_ = (
        ("handler", ctypes.c_uint64),
        ("mask", ctypes.c_uint64 * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_uint64),
    )
    handler: int
    flags: int


_libc = ctypes.CDLL(None, use_errno=True)
_libc.sigaction.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


def _set_action(handler: int) -> int:
    """Install a handler for SIGBUS and return the previous one's address (or SIG_DFL or SIG_IGN)."""
    action, previous = _SigAction(handler=handler, flags=_SA_SIGINFO), _SigAction()
    if _libc.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(previous)) != 0:
        raise SignalHandlerError(ctypes.get_errno())
    return previous.handler


class BusGuard:
    """The one SIGBUS handler of this process and the ranges it guards. Use `BusGuard.instance()`."""

    _instance: BusGuard | None = None

    @classmethod
    def instance(cls) -> BusGuard:
        """The guard, installed on first use and never removed. SignalHandlerError if the host refuses."""
        if cls._instance is None:
            cls._instance = cls()
        return cls._instance

    def __init__(self) -> None:
        self._table = bus_handler.GuardTable()
        # The handler reads these, so they must live as long as they are linked.
        self._ranges: dict[int, bus_handler.GuardedRange] = {}
        self._drained: dict[int, int] = {}
        self._next_token = 1
        if native.available():
            handler = bus_handler.bus_handler(self._table)
        else:
            self._callback = _Handler(self._handle)
            handler = native.address_of(self._callback)
        self._table.previous = _set_action(handler)

    def register(self, start: int, length: int, stop_function: int = 0, stop_argument: int = 0) -> int:
        """Guard host addresses [start, start + length); return a token for the other methods.

        `stop_function` is the address of a C function of one pointer, called with `stop_argument` in the
        signal handler: `uc_emu_stop` and the engine that may touch the range. 0: none.
        Ranges must not overlap.
        """
        for other in self._ranges.values():
            assert start + length <= other.start or other.end <= start, f"{start:#x} is guarded already"
        guarded = bus_handler.GuardedRange(
            self._table.first, start, start + length, stop_function, stop_argument, 0
        )
        token = self._next_token
        self._next_token += 1
        self._ranges[token], self._drained[token] = guarded, 0
        # One store makes the node visible, complete: a signal may come at any time.
        self._table.first = ctypes.addressof(guarded)
        return token

    def aim(self, token: int, stop_function: int, stop_argument: int) -> None:
        """Name another engine to stop: for engines that share a range and run in turn."""
        guarded = self._ranges[token]
        guarded.stop_function = 0
        guarded.stop_argument = stop_argument
        guarded.stop_function = stop_function

    def drain(self, token: int) -> list[int]:
        """Host addresses of the accesses that found no page since the last call, oldest first."""
        guarded = self._ranges[token]
        faults, drained = guarded.faults, self._drained[token]
        if faults == drained:
            return []
        assert faults - drained <= bus_handler.RING_ENTRIES, f"{faults - drained} lost pages were not drained"
        self._drained[token] = faults
        return [guarded.ring[index % bus_handler.RING_ENTRIES] for index in range(drained, faults)]

    def unregister(self, token: int) -> None:
        """Stop guarding. A SIGBUS in the range is foreign from now on."""
        guarded = self._ranges[token]
        address = ctypes.addressof(guarded)
        if self._table.first == address:
            self._table.first = guarded.next
        else:
            before = next(other for other in self._ranges.values() if other.next == address)
            before.next = guarded.next
        del self._ranges[token], self._drained[token]

    def _handle(self, number: int, info: int, context: int) -> None:
        """The machine code's behaviour, for hosts without it. Runs in the signal handler."""
        code = ctypes.c_int.from_address(info + _SI_CODE).value
        address = ctypes.c_uint64.from_address(info + _SI_ADDR).value
        if code > 0:
            for guarded in self._ranges.values():
                if guarded.start <= address < guarded.end:
                    host.place_zeroes(address // host.PAGE_SIZE * host.PAGE_SIZE, host.PAGE_SIZE)
                    guarded.ring[guarded.faults % bus_handler.RING_ENTRIES] = address
                    guarded.faults += 1
                    if guarded.stop_function:
                        native.StopFunction(guarded.stop_function)(guarded.stop_argument)
                    return
        previous = self._table.previous
        if previous not in (signal.SIG_DFL, signal.SIG_IGN):
            _Handler(previous)(number, info, context)
        elif code > 0 or previous == signal.SIG_DFL:
            _set_action(signal.SIG_DFL)
            signal.raise_signal(number)
