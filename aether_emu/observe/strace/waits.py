"""Who waits for what: the arguments of poll, select and epoll, and the answers that come after a result."""

from __future__ import annotations

import contextlib

from aether_emu.observe.peek import Unreadable
from aether_emu.observe.strace import names
from aether_emu.observe.strace.kinds import (
    Kind,
    Made,
    early,
    items,
    late,
    pointed,
    signals,
    timespec,
    timeval,
    unpack,
)
from aether_emu.observe.strace.words import address, listed, signed


def poll_fds(call: Made, value: int) -> str:
    """struct pollfd: what is asked."""

    def one(_call: Made, at: int) -> str:
        fd, events, _found = unpack(call, at, "ihh")
        asked = f"fd={fd}"
        return f"{{{asked}, events={names.POLL_EVENTS.bits(events & 0xFFFF)}}}" if fd >= 0 else f"{{{asked}}}"

    return items(call, value, call.arguments[1] & 0xFFFF_FFFF, 8, one)


POLL_FDS = early(poll_fds)


def poll_result(call: Made, result: int) -> str:
    """What is ready, and for what."""
    if not result:
        return f"{result} (Timeout)"
    texts = []
    start, count = call.arguments[0], call.arguments[1] & 0xFFFF_FFFF
    try:
        for at in range(start, start + min(count, 4096) * 8, 8):
            fd, _events, found = unpack(call, at, "ihH")
            if found:
                texts.append(f"{{fd={fd}, revents={names.POLL_EVENTS.bits(found)}}}")
    except Unreadable:
        return str(result)
    return f"{result} ({listed(texts)}{_left(call, 2) if call.name == 'ppoll' else ''})"


def _left(call: Made, argument: int) -> str:
    """What is left of a timeout."""
    where = call.arguments[argument]
    if not where:
        return ""
    try:
        return f", left {timespec(call, where)}"
    except Unreadable:
        return ""


def _set(call: Made, value: int) -> str:
    return listed_fds(_members(call, value))


def listed_fds(fds: list[int]) -> str:
    """A set of descriptors."""
    return f"[{' '.join(map(str, fds))}]"


def _members(call: Made, value: int) -> list[int]:
    count = max(0, min(signed(call.arguments[0], 32), 1024))
    bits = int.from_bytes(call.memory.read(value, -(-count // 64) * 8), "little")
    return [fd for fd in range(count) if bits >> fd & 1]


FD_SET = early(_set)


def select_result(call: Made, result: int) -> str:
    """Which descriptors of which set are ready, and what is left of the timeout."""
    if not result:
        return f"{result} (Timeout)"
    texts = []
    for name, where in zip(("in", "out", "except"), call.arguments[1:4], strict=True):
        if where:
            try:
                found = _members(call, where)
            except Unreadable:
                continue
            if found:
                texts.append(f"{name} {listed_fds(found)}")
    if call.arguments[4]:
        show = timespec if call.name == "pselect6" else timeval
        with contextlib.suppress(Unreadable):
            texts.append(f"left {show(call, call.arguments[4])}")
    return f"{result} ({', '.join(texts)})"


def _mask_and_size(call: Made, value: int) -> str:
    mask, size = unpack(call, value, "QQ")
    return f"{{sigmask={pointed(signals)(call, mask)}, sigsetsize={size}}}"


MASK_AND_SIZE = early(_mask_and_size)


def _event(call: Made, at: int) -> str:
    """struct epoll_event, which x86_64 packs."""
    events = unpack(call, at, "I")[0]
    data = unpack(call, at + (8 if call.isa == "arm64" else 4), "Q")[0]
    return f"{{events={names.EPOLL_EVENTS.bits(events)}, data={{u32={data & 0xFFFFFFFF}, u64={data}}}}}"


EPOLL_EVENT = Kind(
    lambda call, value: (
        address(value) if call.arguments[1] & 0xFFFF_FFFF == 2 else pointed(_event)(call, value)
    )
)


def _ready(call: Made, value: int) -> str:
    return items(call, value, call.result or 0, 16 if call.isa == "arm64" else 12, _event)


EPOLL_READY = late(_ready)
