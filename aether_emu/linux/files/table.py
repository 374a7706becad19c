"""The descriptors of one process: small numbers for open files, lowest first."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterable, Mapping

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import OpenFile
from aether_emu.records import dataclass

DEFAULT_LIMIT = 1024
"""`RLIMIT_NOFILE`."""


@dataclass
class Descriptor:
    """One number's file, which the descriptor holds, and whether exec closes it."""

    file: OpenFile
    cloexec: bool


class DescriptorTable:
    """Descriptors by number. `limit` is one more than the highest number there may be.

    `users` counts the `Files` that have it.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self.limit = limit
        self.users = 1
        self._by_number: dict[int, Descriptor] = {}
        self.on_close: Callable[[OpenFile], None] | None = None
        """Whoever has to know that a descriptor of a file is closed, though others may be left."""

    def __len__(self) -> int:
        return len(self._by_number)

    @property
    def descriptors(self) -> Mapping[int, Descriptor]:
        """All descriptors by number, in ascending order."""
        return dict(sorted(self._by_number.items()))

    def descriptor(self, fd: int) -> Descriptor:
        """What `fd` is, or EBADF."""
        found = self._by_number.get(fd)
        if found is None:
            raise Refused(errno.EBADF, f"descriptor {fd} is not open")
        return found

    def held(self, fd: int) -> OpenFile:
        """The file of `fd`, one opened with O_PATH too."""
        return self.descriptor(fd).file

    def file(self, fd: int) -> OpenFile:
        """The file of `fd` for an operation on its contents: EBADF if it was opened with O_PATH."""
        file = self.held(fd)
        if file.flags & fl.O_PATH:
            raise Refused(errno.EBADF, f"descriptor {fd} only names a place")
        return file

    def install(self, file: OpenFile, *, cloexec: bool = False, lowest: int = 0) -> int:
        """Give `file` the lowest free number from `lowest` on: EMFILE if there is none."""
        fd = lowest
        while fd in self._by_number:
            fd += 1
        if fd >= self.limit:
            raise Refused(errno.EMFILE, f"all {self.limit} descriptors are in use")
        self.place(fd, file, cloexec=cloexec)
        return fd

    def require_room(self, count: int = 1) -> None:
        """EMFILE unless so many more descriptors can be installed: asked before anything is created."""
        free = self.limit - sum(fd < self.limit for fd in self._by_number)
        if free < count:
            raise Refused(errno.EMFILE, f"all {self.limit} descriptors are in use")

    def place(self, fd: int, file: OpenFile, *, cloexec: bool = False) -> None:
        """Give `file` the number `fd`, closing what had it."""
        file.hold()
        before = self._by_number.get(fd)
        self._by_number[fd] = Descriptor(file, cloexec)
        if before is not None:
            with contextlib.suppress(OSError):
                self._let_go(before.file)

    def close(self, fd: int) -> None:
        """Free the number. The host may then say (OSError) that earlier writes were lost.

        Only close(2) tells its caller so: whatever else closes files has nobody to tell.
        """
        file = self.held(fd)
        del self._by_number[fd]
        self._let_go(file)

    def _let_go(self, file: OpenFile) -> None:
        if self.on_close is not None:
            self.on_close(file)
        if file.hears_of_closing:
            file.descriptor_closed(self)
        file.let_go()

    def close_each(self, numbers: Iterable[int]) -> None:
        """Free some numbers, telling nobody what the host says."""
        for fd in numbers:
            with contextlib.suppress(OSError):
                self.close(fd)

    def fork(self) -> DescriptorTable:
        """A table of the same open files, for a child process."""
        child = DescriptorTable(self.limit)
        for fd, descriptor in self._by_number.items():
            child.place(fd, descriptor.file, cloexec=descriptor.cloexec)
        return child

    def leave(self) -> None:
        """One user fewer; with the last one all is closed."""
        self.users -= 1
        if not self.users:
            self.close_all()

    def close_on_exec(self) -> None:
        """Close what FD_CLOEXEC marks."""
        self.close_each([fd for fd, descriptor in self._by_number.items() if descriptor.cloexec])

    def close_all(self) -> None:
        """Close every descriptor."""
        self.close_each(list(self._by_number))
