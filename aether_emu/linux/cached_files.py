"""What calls on files ask of pages that count as memory (`mm.page_cache`): written, synced, advised, dropped.

Only of files that some area shows, or showed: what read(2) and write(2) move of others takes no memory.
Nobody makes a `Cached` where files stand outside RAM.
"""

from __future__ import annotations

import errno
import re
import stat
from collections.abc import Mapping

from aether_emu.errors import Refused, shown
from aether_emu.linux.files.inodes import FileKey
from aether_emu.linux.files.synthetic import Text
from aether_emu.linux.kernel import Kernel
from aether_emu.mm.balance import MOST
from aether_emu.mm.objects.file import FileBacking
from aether_emu.mm.page_cache import PageCache
from aether_emu.mm.physical import FilesInMemory

_PAGES, _OBJECTS = 1, 2  # what drop_caches drops, a bit each
_MOST_DROPPED = 4
_PART = 1024  # pages that are read between two looks at whether the run is to end
_WRITABLE = stat.S_IFREG | 0o644


class Cached:
    """The files of one machine whose pages count."""

    def __init__(self, kernel: Kernel, cache: PageCache, files: FilesInMemory) -> None:
        self._kernel, self._cache, self._files = kernel, cache, files
        self._shift = kernel.physical.frames.page_shift

    def _backing(self, key: FileKey) -> FileBacking | None:
        backing = self._kernel.file_backings.find(key)
        return None if backing is None or backing.cache is None else backing

    def _pages(self, offset: int, length: int | None) -> tuple[int, int]:
        """The first page that has some of those bytes, and how many have: up to the end, if none is named."""
        first = offset >> self._shift
        if length is None:
            return first, 1 << 63 - self._shift
        return first, (offset + length + (1 << self._shift) - 1 >> self._shift) - first

    def sample(self, key: FileKey) -> int:
        """See `CachedFiles`."""
        backing = self._backing(key)
        return 0 if backing is None else backing.failed.sample()

    def wrote(self, key: FileKey, offset: int, length: int) -> None:
        """See `CachedFiles`."""
        backing = self._backing(key)
        if backing is not None:
            for _page, frame, count in backing.stretches(self._cache, *self._pages(offset, length)):
                for each in range(frame, frame + count):
                    if self._cache.has(each):
                        self._cache.soil(each)

    def names_gone(self) -> None:
        """See `CachedFiles`."""
        self._cache.end_nameless()

    def sync(self, key: FileKey, known: int) -> tuple[int, int]:
        """See `CachedFiles`."""
        backing = self._backing(key)
        if backing is None:
            return known, 0
        self._files.write_back(backing, *self._pages(0, None))
        return backing.failed.count, backing.failed.tell(known)

    def will_need(self, key: FileKey, offset: int, length: int | None) -> None:
        """POSIX_FADV_WILLNEED, readahead(2)."""
        backing = self._backing(key)
        if backing is None:
            return
        first, count = self._pages(offset, length)
        end = min(first + count, (backing.file.size >> self._shift) + 1)
        for part in range(first, end, _PART):
            self._kernel.checkpoint()
            self._files.read(backing, part, min(_PART, end - part))

    def forget(self, key: FileKey, offset: int, length: int | None) -> None:
        """POSIX_FADV_DONTNEED: whole pages that no entry shows go, after they are written."""
        backing = self._backing(key)
        if backing is None:
            return
        self._files.write_back(backing, *self._pages(offset, length))
        first, count = self._pages(offset, length)
        end = first + count
        if offset & (1 << self._shift) - 1:
            first += 1
        if length is not None and offset + length < backing.file.size:
            end = offset + length >> self._shift
        self._files.drop_unused_of(backing, first, max(0, end - first))

    def drop(self, what: int) -> None:
        """/proc/sys/vm/drop_caches: pages that are clean, and that no entry shows."""
        if what & _PAGES:
            self._files.drop_unused(self._cache.all_pages().tolist())
        if what & _OBJECTS:
            self._kernel.physical.shrinkers.shrink(self._kernel.physical.buddy.total)


def connect_cache(kernel: Kernel) -> Cached | None:
    """What namespaces of a machine are to tell; None where files stand outside RAM."""
    physical = kernel.physical
    if physical.cache is None or physical.files is None:
        return None
    return Cached(kernel, physical.cache, physical.files)


def cache_texts(kernel: Kernel) -> Mapping[str, Text]:
    """The files that set it up, by their paths below /proc."""

    def set_swappiness(data: bytes) -> int:
        kernel.physical.swappiness = _number(data, MOST)
        return len(data)

    def drop(data: bytes) -> int:
        what = _number(data, _MOST_DROPPED)
        if not what:
            raise Refused(errno.EINVAL, "it names nothing to drop")
        cached = connect_cache(kernel)
        if cached is not None:
            cached.drop(what)
        elif what & _OBJECTS:
            kernel.physical.shrinkers.shrink(kernel.physical.buddy.total)
        return len(data)

    return {
        "sys/vm/swappiness": Text(lambda: b"%d\n" % kernel.physical.swappiness, _WRITABLE, set_swappiness),
        "sys/vm/drop_caches": Text(lambda: b"", stat.S_IFREG | 0o200, drop),
    }


def _number(data: bytes, most: int) -> int:
    text = data.split(b"\0")[0].strip()
    if not re.fullmatch(rb"[0-9]{1,10}", text) or int(text) > most:
        raise Refused(errno.EINVAL, f"no number from 0 to {most}: {shown(text)}")
    return int(text)
