"""The directory that the programs work in: a few files, given here byte by byte."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from pathlib import Path

_TREE = {"a/one": b"1\n", "a/b/two": b"22\n"}


_TEXT = "".join(
    f"{i * 7919 % 1000:04d}\tword{i % 17}\tLine {i} of the text, with MiXed case\n" for i in range(400)
)


def furnish(directory: Path) -> None:
    """Write the files that are the same on every host."""
    _write(directory, _files())
    (directory / "tree" / "link").symlink_to("a/one")


def add_archives(directory: Path) -> None:
    """Write compressed files and archives. Their bytes depend on the host's libraries."""
    plain = _TEXT.encode()
    archives = {
        "text.gz": gzip.compress(plain, mtime=0),
        "text.bz2": bz2.compress(plain),
        "text.xz": lzma.compress(plain, check=lzma.CHECK_CRC32),
        "tree.tar": _tar(),
        "archive.cpio": _cpio("xyz", b"abc") + _cpio("TRAILER!!!", b""),
    }
    _write(directory, archives)


def _write(directory: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _files() -> dict[str, bytes]:
    return {
        "text": _TEXT.encode(),
        "other": _TEXT.replace("Line 7 ", "line seven ").encode(),
        "empty": b"",
        "bytes": bytes(i * i >> 3 & 255 for i in range(5000)),
        "pairs": b"a b\nb c\na d\nd c\n",
        "calc": b"scale=20\n4*a(1)\n2^200\nsqrt(2)\n(5+3)*7/9\n",
        "script.sh": b'echo "sourced $1 $2"; return 9\n',
        "bad.py": b"import os, sys\nx = 1 ;y=2\ndef f( a,b ):\n    return lambda: a\n",
        **{f"tree/{name}": content for name, content in _TREE.items()},
    }


def _tar() -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in _TREE.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), 86400
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def _cpio(name: str, content: bytes) -> bytes:
    """One member of a "newc" archive (cpio(5)): thirteen numbers in hex, parts padded to four bytes."""
    numbers = (1, 0o100644, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)
