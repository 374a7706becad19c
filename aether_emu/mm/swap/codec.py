"""How pages are compressed: by zstd where Python or the package `zstandard` has it, else by zlib.

Which one it is changes no byte of a program, but the sizes of what is kept, and so how much of it a pool
holds. `name` says it, and the statistics show it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from importlib import import_module

from aether_emu.records import dataclass

_LEVEL = 1  # speed before size: a page is compressed to be needed again


@dataclass(frozen=True, slots=True)
class Codec:
    """A pair of functions on the bytes of one page."""

    name: str
    compress: Callable[[bytes | memoryview], bytes]
    expand: Callable[[bytes], bytes]


def zlib_codec() -> Codec:
    """What every Python has."""
    return Codec("zlib", lambda data: zlib.compress(data, _LEVEL), zlib.decompress)


def best_codec() -> Codec:
    """zstd if there is one, else zlib."""
    try:
        zstd = import_module("compression.zstd")  # Python 3.14
        return Codec("zstd", lambda data: zstd.compress(data, _LEVEL), zstd.decompress)
    except ImportError:
        pass
    try:
        zstandard = import_module("zstandard")
    except ImportError:
        return zlib_codec()
    packer, opener = zstandard.ZstdCompressor(level=_LEVEL), zstandard.ZstdDecompressor()
    return Codec("zstd", packer.compress, opener.decompress)
