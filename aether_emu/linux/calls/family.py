"""What the families of file calls share: the process, its files, and how arguments name them."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from aether_emu.errors import Refused
from aether_emu.linux.calls.user import read_string, s32
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import OpenFile, WouldBlock

if TYPE_CHECKING:
    from aether_emu.linux.task.process import Process


class FileFamily:
    """System calls on the files of one process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._cpu = process.cpu
        self._files = process.files
        self._user_end = process.abi.user_end
        self._is_arm64 = process.abi.isa == "arm64"

    def _path(self, address: int) -> bytes:
        """A path argument. EFAULT, ENAMETOOLONG; an empty one is the callee's to refuse."""
        return read_string(self._cpu, address)

    def _optional_path(self, address: int, flags: int) -> bytes:
        """A path argument that may be NULL where AT_EMPTY_PATH allows an empty one (Linux 6.11)."""
        return b"" if not address and flags & fl.AT_EMPTY_PATH else self._path(address)

    def _reader(self, fd: int) -> OpenFile:
        """The open file that a call reads from: EBADF if there is none or not for reading."""
        file = self._files.table.file(s32(fd))
        if not file.readable:
            raise Refused(errno.EBADF, f"descriptor {s32(fd)} is not open for reading")
        return file

    def _writer(self, fd: int) -> OpenFile:
        """The open file that a call writes to: EBADF if there is none or not for writing."""
        file = self._files.table.file(s32(fd))
        if not file.writable:
            raise Refused(errno.EBADF, f"descriptor {s32(fd)} is not open for writing")
        return file

    def _open_flags(self, flags: int) -> int:
        """O_* flags of the guest's ISA in the numbering of `linux.files`."""
        return fl.from_arm64(flags) if self._is_arm64 else flags

    def _wait(self, reason: WouldBlock) -> None:
        """The call will be issued again: its registers stay as they are."""
        self._process.block(reason)
