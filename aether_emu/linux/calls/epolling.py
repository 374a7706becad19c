"""epoll_create(2), epoll_ctl(2), epoll_wait(2). The set itself is `files.epoll`; for time see `polling`."""

from __future__ import annotations

import errno
import struct
import weakref
from typing import TYPE_CHECKING

from aether_emu.errors import Refused
from aether_emu.linux.calls.polling import PollCalls
from aether_emu.linux.calls.transfer import TransferCalls
from aether_emu.linux.calls.user import require_user, s32, writable
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.epoll import EPOLL_CTL_DEL, EpollFile
from aether_emu.linux.files.open_file import POLLIN, POLLOUT, OpenFile
from aether_emu.linux.files.pipe import Pipe, PipeEnd
from aether_emu.linux.files.streams import StreamFile
from aether_emu.machine.cpu import UserFault

if TYPE_CHECKING:
    from aether_emu.linux.task.process import Process

_MOST_EVENTS = ((1 << 31) - 1) // 12


class EpollCalls(PollCalls, TransferCalls):
    """The calls on epoll sets, and the edges that transfers make."""

    def __init__(self, process: Process) -> None:
        super().__init__(process)
        self._event = struct.Struct("<I4xQ" if self._is_arm64 else "<IQ")  # packed on x86_64 alone
        self._sets: weakref.WeakSet[EpollFile] | None = None

    def sys_epoll_create(self, size: int, *_: int) -> int:
        if s32(size) <= 0:
            raise Refused(errno.EINVAL, f"size {s32(size)}")
        return self.sys_epoll_create1(0)

    def sys_epoll_create1(self, flags: int, *_: int) -> int:
        if s32(flags) & ~fl.O_CLOEXEC:
            raise Refused(errno.EINVAL, f"flags {flags:#x}")
        table = self._files.table
        table.require_room()
        made = EpollFile(self._files.namespace.nameless_stat(0o600))
        fd = table.install(made, cloexec=bool(flags & fl.O_CLOEXEC))
        self._all_sets().add(made)
        return fd

    def sys_epoll_ctl(self, epfd: int, operation: int, fd: int, event: int, *_: int) -> int:
        events = data = 0
        if s32(operation) != EPOLL_CTL_DEL:
            events, data = self._event.unpack(self._cpu.copy_from_user(event, self._event.size))
        table = self._files.table
        outer, file = table.file(s32(epfd)), table.file(s32(fd))
        self._all_sets()
        if not isinstance(outer, EpollFile):
            raise Refused(errno.EINVAL, f"descriptor {s32(epfd)} is no epoll set")
        outer.control(s32(operation), s32(fd), file, events, data)
        return 0

    def sys_epoll_wait(self, epfd: int, events: int, most: int, timeout: int, *_: int) -> int | None:
        return self.sys_epoll_pwait(epfd, events, most, timeout, 0, 0)

    def sys_epoll_pwait(
        self, epfd: int, events: int, most: int, timeout: int, mask: int, mask_size: int
    ) -> int | None:
        milliseconds = s32(timeout)
        limit = milliseconds * 10**6 if milliseconds >= 0 else None
        return self._epoll_wait(epfd, events, s32(most), limit, self._mask(mask, mask_size))

    def sys_epoll_pwait2(
        self, epfd: int, events: int, most: int, timeout: int, mask: int, mask_size: int
    ) -> int | None:
        limit = self._timespec(timeout)
        return self._epoll_wait(epfd, events, s32(most), limit, self._mask(mask, mask_size))

    def _epoll_wait(
        self, epfd: int, address: int, most: int, timeout: int | None, mask: int | None
    ) -> int | None:
        if not 0 < most <= _MOST_EVENTS:
            raise Refused(errno.EINVAL, f"room for {most} events")
        require_user(address, most * self._event.size, self._user_end)
        watched = self._files.table.file(s32(epfd))
        self._all_sets()
        if not isinstance(watched, EpollFile):
            raise Refused(errno.EINVAL, f"descriptor {s32(epfd)} is no epoll set")
        if watched.poll():
            return self._report(watched, address, most)
        if timeout != 0:
            self._let_in(mask)
        if timeout is None:
            self._wait_for(watched.waited())
            return None
        self._pass(timeout, 0)
        return 0

    def _report(self, watched: EpollFile, address: int, most: int) -> int:
        """Write what is ready; only as much is taken off the set as can be written."""
        size = self._event.size
        room = writable(self._cpu, [(address, size * min(most, len(watched)))], most * size) // size
        if not room:
            raise UserFault("not even one event can be written")
        found = watched.ready(room)
        self._cpu.copy_to_user(address, b"".join(self._event.pack(*event) for event in found))
        return len(found)

    # ---- edges

    def _all_sets(self) -> weakref.WeakSet[EpollFile]:
        """The process's sets. Those it inherited or got back with its state are found at first need."""
        if self._sets is None:
            table = self._files.table
            self._sets = weakref.WeakSet()
            for descriptor in table.descriptors.values():
                if isinstance(descriptor.file, EpollFile):
                    descriptor.file.bind(table)
                    self._sets.add(descriptor.file)
        return self._sets

    def _took(self, file: OpenFile) -> None:
        """Room for more is an edge; what the host puts into a stream next is one too, and not seen coming."""
        self._stir(file, POLLIN if isinstance(file, StreamFile) else POLLOUT)

    def _gave(self, file: OpenFile) -> None:
        if not file.seekable:
            self._stir(file, POLLIN)

    def _stir(self, file: OpenFile, events: int) -> None:
        """An edge in a file, and so in the sets that have it, and in the sets that have those."""
        stirred = {watched for watched in self._all_sets() if watched.stirred(_source(file), events)}
        while stirred:
            stirred = {
                outer for outer in self._all_sets() for inner in stirred if outer.stirred(inner, POLLIN)
            }


def _source(file: OpenFile) -> OpenFile | Pipe:
    """What the two ends of a pipe have in common; any other file itself."""
    return file.pipe if isinstance(file, PipeEnd) else file
