"""poll(2), select(2) and their relatives.

Timeouts are in virtual time, where nothing can happen while the only process waits: when nothing is ready
now and the timeout is finite, the clock goes on by the timeout and the answer is that it has passed. What
the host brings to a standard stream in the meantime is seen by the next call. Without a timeout the
process waits for a stream. A signal that only the mask given for the call lets in ends the call (EINTR).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Sequence

from aether_emu.errors import Refused
from aether_emu.linux.calls.family import FileFamily
from aether_emu.linux.calls.user import read_struct, s32, u32, write_struct
from aether_emu.linux.files.epoll import EpollFile, Waited, polled
from aether_emu.linux.files.open_file import POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT, WouldBlock
from aether_emu.linux.files.streams import StreamFile
from aether_emu.machine.cpu import UserFault

_ALWAYS = POLLERR | POLLHUP
_SET_SIZE = 8
_SECOND = 10**9
_FOREVER = 1 << 63  # nanoseconds; Linux's KTIME_MAX
_POLLFD = struct.Struct("<iHH")
_WORD_BITS = 64
# Events that select counts as readable, writable and exceptional (Linux fs/select.c).
_SELECTED = (POLLIN | POLLHUP | POLLERR, POLLOUT | POLLERR, 0)
_SELECT_WAITS = (POLLIN | _ALWAYS, POLLOUT | _ALWAYS, _ALWAYS)


class PollCalls(FileFamily):
    """The calls that wait for descriptors."""

    # ---- poll

    def sys_poll(self, fds: int, count: int, timeout: int, *_: int) -> int | None:
        milliseconds = s32(timeout)
        return self._poll(fds, u32(count), milliseconds * 10**6 if milliseconds >= 0 else None, None, 0)

    def sys_ppoll(self, fds: int, count: int, timeout: int, mask: int, mask_size: int, *_: int) -> int | None:
        limit = self._timespec(timeout)
        return self._poll(fds, u32(count), limit, self._mask(mask, mask_size), timeout)

    def _poll(self, fds: int, count: int, timeout: int | None, mask: int | None, left: int) -> int | None:
        """`timeout` in ns, None for ever; what is left of it is written to the timespec at `left`."""
        if count > self._files.table.limit:
            raise Refused(errno.EINVAL, f"{count} descriptors")
        wanted = [
            (fd, events) for fd, events, _ in _POLLFD.iter_unpack(self._cpu.copy_from_user(fds, 8 * count))
        ]
        found = [self._events(fd, events) for fd, events in wanted]
        ready = sum(map(bool, found))
        if not ready:
            self._let_in(mask)
        if not ready and timeout is None:
            self._wait_for_any([(fd, events | _ALWAYS) for fd, events in wanted if fd >= 0])
            return None
        answer = b"".join(_POLLFD.pack(*entry, events) for entry, events in zip(wanted, found, strict=True))
        self._cpu.copy_to_user(fds, answer)
        self._pass(timeout, ready)
        if left:
            self._tell_left(left, "qq", divmod(0 if not ready else timeout or 0, _SECOND))
        return ready

    def _events(self, fd: int, wanted: int) -> int:
        """What poll answers for one entry."""
        return 0 if fd < 0 else self._polled(fd) & (wanted | _ALWAYS | POLLNVAL)

    def _polled(self, fd: int) -> int:
        """The events that hold on a descriptor now; POLLNVAL if it is not open."""
        try:
            return polled(self._files.table.file(fd))
        except Refused:
            return POLLNVAL

    # ---- select

    def sys_select(
        self, count: int, reading: int, writing: int, special: int, timeout: int, *_: int
    ) -> int | None:
        limit = None
        if timeout:
            seconds, microseconds = read_struct(self._cpu, timeout, "qq")
            more, microseconds = divmod(microseconds, 10**6) if microseconds >= 0 else (0, -1)
            limit = self._limit(seconds + more, microseconds * 1000)
        answer = self._select(count, (reading, writing, special), limit, None)
        if answer is not None and timeout:
            seconds, nanoseconds = divmod(limit or 0, _SECOND) if answer else (0, 0)
            self._tell_left(timeout, "qq", (seconds, nanoseconds // 1000))
        return answer

    def sys_pselect6(
        self, count: int, reading: int, writing: int, special: int, timeout: int, mask: int
    ) -> int | None:
        limit = self._timespec(timeout)
        blocked = self._mask(*read_struct(self._cpu, mask, "QQ")) if mask else None
        answer = self._select(count, (reading, writing, special), limit, blocked)
        if answer is not None and timeout:
            self._tell_left(timeout, "qq", divmod(limit or 0, _SECOND) if answer else (0, 0))
        return answer

    def _select(
        self, count: int, addresses: tuple[int, int, int], timeout: int | None, mask: int | None
    ) -> int | None:
        count = s32(count)
        if count < 0:
            raise Refused(errno.EINVAL, f"{count} descriptors")
        count = min(count, self._files.table.limit)
        size = -(-count // _WORD_BITS) * (_WORD_BITS // 8)
        asked = [self._set(address, size, count) for address in addresses]
        events = {fd: self._polled(fd) for fd in sorted(set().union(*asked))}
        if any(bits & POLLNVAL for bits in events.values()):
            raise Refused(errno.EBADF, "a descriptor of the sets is not open")
        found = [[fd for fd in fds if events[fd] & bits] for fds, bits in zip(asked, _SELECTED, strict=True)]
        ready = sum(map(len, found))
        if not ready:
            self._let_in(mask)
        if not ready and timeout is None:
            waits = zip(asked, _SELECT_WAITS, strict=True)
            self._wait_for_any([(fd, bits) for fds, bits in waits for fd in fds])
            return None
        self._pass(timeout, ready)
        for address, fds in zip(addresses, found, strict=True):
            if address:
                self._cpu.copy_to_user(address, _fd_set(fds, size))
        return ready

    def _set(self, address: int, size: int, count: int) -> list[int]:
        """The descriptors below `count` in an fd_set."""
        if not address:
            return []
        chunks = enumerate(self._cpu.copy_from_user(address, size))
        chosen = [8 * at + bit for at, byte in chunks if byte for bit in range(8) if byte >> bit & 1]
        return [fd for fd in chosen if fd < count]

    # ---- time and waiting

    def _timespec(self, address: int) -> int | None:
        """A timeout in ns, or None for ever."""
        return self._limit(*read_struct(self._cpu, address, "qq")) if address else None

    @staticmethod
    def _limit(seconds: int, nanoseconds: int) -> int | None:
        if seconds < 0 or not 0 <= nanoseconds < _SECOND:
            raise Refused(errno.EINVAL, f"a timeout of {seconds} s and {nanoseconds} ns")
        timeout = seconds * _SECOND + nanoseconds
        return timeout if timeout < _FOREVER else None

    def _mask(self, address: int, size: int) -> int | None:
        """The signals that a call blocks instead of the usual ones: EINVAL for another size, EFAULT."""
        if not address:
            return None
        if size != _SET_SIZE:
            raise Refused(errno.EINVAL, f"a signal set of {size} bytes")
        return int(read_struct(self._cpu, address, "Q")[0])

    def _let_in(self, mask: int | None) -> None:
        """EINTR if a signal is pending that the call's own mask does not block; its handler runs first."""
        if mask is not None and self._process.signals.suspend(mask):
            raise Refused(errno.EINTR, "a handler runs")

    def _pass(self, timeout: int | None, ready: int) -> None:
        """Let the timeout pass if nothing is ready."""
        if timeout and not ready:
            self._process.kernel.clock.advance(timeout)

    def _tell_left(self, address: int, layout: str, values: Sequence[int]) -> None:
        """Write what is left of a timeout. Linux ignores that it can't be written."""
        try:
            write_struct(self._cpu, address, layout, *values)
        except UserFault:
            return

    def _wait_for_any(self, wanted: Iterable[tuple[int, int]]) -> None:
        """Wait without a timeout for one of several (descriptor, events)."""
        self._wait_for([Waited(self._files.table.file(fd), events) for fd, events in wanted])

    def _wait_for(self, waited: list[Waited]) -> None:
        """Wait for a stream of the host if there is one, else for the first file, which nobody changes."""
        sources = _sources(waited)
        for file, events in sources:
            if isinstance(file, StreamFile) and file.readable and events & POLLIN:
                self._wait(WouldBlock(file, POLLIN))
                return None
        if sources:
            self._wait(WouldBlock(*sources[0]))
            return None
        self._process.kernel.deadlock("an event")


def _fd_set(fds: list[int], size: int) -> bytes:
    """An fd_set of `size` bytes."""
    raw = bytearray(size)
    for fd in fds:
        raw[fd >> 3] |= 1 << (fd & 7)
    return bytes(raw)


def _sources(waited: list[Waited]) -> list[Waited]:
    """What a wait comes down to: an epoll set's members beside the set, those of each set once."""
    found, seen = list(waited), set()
    for wait in found:  # which grows on the way
        if isinstance(wait.file, EpollFile) and wait.file not in seen:
            seen.add(wait.file)
            found += wait.file.waited()
    return [wait for wait in found if not isinstance(wait.file, EpollFile)] or found
