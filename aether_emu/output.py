"""Files that a command leaves: refused before the work, not after it; there as a whole or not at all.

A regular file is written without a name and takes its name when it is complete; until then an older file of
that name stays as it was. Whatever ends the process, nothing else is left. (A file system that has no files
without a name gets a hidden one beside the place: SIGKILL leaves that.) What is no regular file (a pipe, a
device) is written to directly, and so is a file that is a standard stream already. "-" is standard output.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from aether_emu.errors import AetherError, ConfigError

_unfinished: set[str] = set()
_numbers = itertools.count()


class OutputError(AetherError):
    """The host does not take an output; nothing of it is left."""

    def __init__(self, option: str, path: str, why: str) -> None:
        self.option, self.path = option, path
        super().__init__(f"{option} {path} cannot be written: {why}")


def remove_unfinished() -> None:
    """Take away what is half written: the process ends where it stands."""
    for part in list(_unfinished):
        with contextlib.suppress(OSError):
            os.unlink(part)


class Output:
    """Where the file of an option goes. `regular`: nothing else will do, and nobody else may read it.

    ConfigError for a place where nothing can be written: to be made before the work begins.
    """

    def __init__(self, option: str, path: str | os.PathLike[str], *, regular: bool = False) -> None:
        self.option, self.path = option, Path(path)
        self._mode = 0o600 if regular else 0o666
        self._kept: int | None = None  # the mode of the file that it replaces
        self._stream: int | None = None  # the descriptor that it goes to, if that is a standard stream
        try:
            self._target = self._find(regular)
            if self._target is not None:
                with self._part(self._target):
                    pass
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            why = getattr(error, "strerror", None) or str(error)
            raise ConfigError(option, str(path), why, refusal="cannot be written") from None

    def _find(self, regular: bool) -> Path | None:
        """The file to replace, or None for what is written to directly."""
        if str(self.path) == "-":
            if regular:
                raise ConfigError(self.option, "-", "a file, which may have holes, not standard output")
            self._stream = 1
            return None
        target = Path(os.path.realpath(self.path))
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return target
        if regular and not stat.S_ISREG(status.st_mode):
            raise ConfigError(self.option, str(self.path), "a regular file, or a name that is free")
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(0, "it is a directory")
        if not os.access(self.path, os.W_OK):
            raise PermissionError(0, "permission denied")
        self._stream = _standard_stream(status)
        if not stat.S_ISREG(status.st_mode) or self._stream is not None:
            return None
        self._kept = stat.S_IMODE(status.st_mode)
        return target

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The file to write. It is there when the block ends well. Raises OutputError."""
        try:
            if self._target is None:
                with self._directly() as file:
                    yield file
                return
            with self._part(self._target) as (name, file):
                yield file
                file.flush()
                if _has_name(file) or not _named(file, self._target):
                    if not _has_name(file):
                        _named(file, name)
                    file.close()
                    os.replace(name, self._target)
        except OSError as error:
            raise OutputError(self.option, str(self.path), error.strerror or str(error)) from None

    def write(self, content: bytes) -> None:
        """Write all of it. Raises OutputError."""
        with self.open() as file:
            file.write(content)

    @contextlib.contextmanager
    def _part(self, target: Path) -> Iterator[tuple[str, BinaryIO]]:
        """A new file beside the target, and a name for it. When the block ends it has that no more."""
        name = str(target.with_name(f".{target.name[:200]}.{os.getpid()}.{next(_numbers)}"))
        _unfinished.add(name)
        try:
            fd = _without_name(target.parent, self._mode)
            if fd is None:
                fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, self._mode)
            with os.fdopen(fd, "w+b") as file:
                if self._kept is not None:
                    os.fchmod(fd, self._kept)
                yield name, file
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            _unfinished.discard(name)

    def _directly(self) -> BinaryIO:
        if self._stream is not None:
            if sys.stdout is not None:  # as when it was closed
                sys.stdout.flush()
            return os.fdopen(os.dup(self._stream), "wb")
        return os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY), "wb")


def _without_name(folder: Path, mode: int) -> int | None:
    """A descriptor of a new file of a folder's file system, or None where it has to have a name."""
    try:
        fd = os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):  # of file systems, and of kernels
            return None
        raise
    if os.path.exists(_by_descriptor(fd)):
        return fd
    os.close(fd)  # without /proc it would never have a name
    return None


def _by_descriptor(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _has_name(file: BinaryIO) -> bool:
    return os.fstat(file.fileno()).st_nlink > 0


def _named(file: BinaryIO, name: str | Path) -> bool:
    """Give a file without a name this one, unless it is taken."""
    folder = os.open(os.path.dirname(name), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:  # with a descriptor of a folder Python follows the link, as linkat(2) is told to
        os.link(_by_descriptor(file.fileno()), os.path.basename(name), src_dir_fd=folder, dst_dir_fd=folder)
    except FileExistsError:
        return False
    finally:
        os.close(folder)
    return True


def _standard_stream(status: os.stat_result) -> int | None:
    """The standard stream that is this file."""
    for fd in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(status, os.fstat(fd)):
                return fd
    return None
