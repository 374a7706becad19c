"""A host file that a caller hands over, by a path or open: its descriptor, and what it is open for."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from aether_emu.errors import Refused


@contextmanager
def opened(file: IO[bytes] | str | os.PathLike[str], *, writable: bool) -> Iterator[tuple[int, int, str]]:
    """The descriptor, what of O_ACCMODE it is open for, and a name. A path is open only meanwhile.

    Raises Refused: EBADF for what is no file of the host, EACCES unless it is open to be read, and to be
    written if it is to be `writable`, and the host's errno for a path that cannot be opened.
    """
    if isinstance(file, str | os.PathLike):
        try:
            stream = open(file, "r+b" if writable else "rb")  # noqa: SIM115  # closed below
        except (OSError, ValueError) as error:  # a NUL in the path
            why = f"{os.fspath(file)!r}: {getattr(error, 'strerror', None) or error}"
            raise Refused(getattr(error, "errno", None) or errno.EINVAL, why) from None
        with stream, opened(stream, writable=writable) as found:
            yield found
        return
    try:
        fd = file.fileno()
    except (AttributeError, OSError, ValueError):  # no file, not one of the host, closed
        raise Refused(errno.EBADF, f"{file!r} is neither a path nor an open file of the host") from None
    access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    if access == os.O_WRONLY or (writable and access != os.O_RDWR):
        raise Refused(errno.EACCES, "the file is not open for that")
    yield fd, access, str(getattr(file, "name", "file"))
