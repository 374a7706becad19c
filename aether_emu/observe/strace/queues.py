"""POSIX message queues: their attributes, and how a process asks to be told (mq_open, mq_notify)."""

from __future__ import annotations

from aether_emu.observe.strace import names
from aether_emu.observe.strace.kinds import Kind, Made, early, late, pointed, signal_name, unpack
from aether_emu.observe.strace.words import address, signed

_CREATE = 0o100
_SIGNALS = range(1, 65)
_THREAD = 2


def _attributes(call: Made, at: int) -> str:
    flags, most, size, there = unpack(call, at, "4q")
    shown = names.QUEUE_FLAG.bits(flags)
    return f"{{mq_flags={shown}, mq_maxmsg={most}, mq_msgsize={size}, mq_curmsgs={there}}}"


GIVEN, FOUND = early(_attributes), late(_attributes)
IF_CREATING = Kind(
    lambda call, value: pointed(_attributes)(call, value) if call.arguments[1] & _CREATE else None
)


def _event(call: Made, at: int) -> str:
    value, signal, notify, function, attributes = unpack(call, at, "QiiQQ")
    named = signal_name(signal) if signal in _SIGNALS else str(signal)
    whole = f"sival_int={signed(value, 32)}, sival_ptr={address(value)}"
    how = names.NOTIFICATION.one(notify)
    rest = ""
    if notify == _THREAD:
        rest = f", sigev_notify_function={address(function)}, sigev_notify_attributes={address(attributes)}"
    return f"{{sigev_value={{{whole}}}, sigev_signo={named}, sigev_notify={how}{rest}}}"


EVENT = early(_event)
