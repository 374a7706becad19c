"""The calls on what is shared: System V segments, memory files, and the memory of another process."""

from __future__ import annotations

import errno
import struct

from tests.mm.whole.model import READ, WRITE
from tests.mm.whole.stage import SEGMENT_PAGES, Stage, Taking, is_segment

_PUNCH_KEEPING_SIZE = 3


class Things(Stage):
    """Steps on segments and files, and on the other process."""

    def shmat(self, who: int, at: int, which: int, replaces: int) -> Taking:
        worker, name, segment = self.worker(who), self.space(self.worker(who)), self.segments[which]
        if self.fits(at, segment.size) < segment.size or not self.free_to_change(name, at, segment.size):
            return
        taken = any(n in self.world.spaces[name] for n in range(at, at + segment.size))
        if self.world.has_sealed(name, at, at + segment.size):
            return
        expected = -errno.EINVAL
        if replaces or not taken:
            expected = self.world.mmap(name, at, segment.size, READ | WRITE, thing=segment, shared=True)
        address = self.address(at)
        yield from self.call(
            worker, expected or address, "shmat", segment.number, address, 0o40000 if replaces else 0
        )

    def shmdt(self, who: int, at: int) -> Taking:
        """At the place where the segment of a page was attached, or where the page is."""
        worker, name = self.worker(who), self.space(self.worker(who))
        page = self.world.spaces[name].get(at)
        base = at - page.index if page is not None and is_segment(page.thing) else at
        if base < 0:
            return
        pages = self.world.spaces[name]
        size = SEGMENT_PAGES
        if any(n in pages and pages[n].sealed for n in range(base, min(base + size, self.world.end))):
            return
        expected = self.world.detach(name, base)
        yield from self.call(worker, expected, "shmdt", self.address(base))

    def truncate(self, who: int, which: int, size: int) -> Taking:
        worker, file = self.worker(who), self.files[which]
        self.world.truncate(file, size)
        yield from self.call(worker, 0, "ftruncate", file.number, size * self.size)

    def punch(self, who: int, which: int, index: int, count: int) -> Taking:
        worker, file = self.worker(who), self.files[which]
        self.world.punch(file, index, count)
        yield from self.call(
            worker, 0, "fallocate", file.number, _PUNCH_KEEPING_SIZE, index * self.size, count * self.size
        )

    def pwrite(self, who: int, at: int, which: int, index: int) -> Taking:
        """The first word of a page goes into a file."""
        worker, name, file = self.worker(who), self.space(self.worker(who)), self.files[which]
        expected = 8
        if self.world.access(name, at, READ) is not None:
            expected = -errno.EFAULT
        else:
            page = self.world.spaces[name][at]
            heads = {each[:8] for each in self.world.contents(page)}
            if len(heads) > 1 or page.blurred:
                return
            self.world.write_file(file, index, 16, int.from_bytes(heads.pop(), "little"))
        arguments = file.number, self.address(at), 8, index * self.size + 16
        yield from self.call(worker, expected, "pwrite64", *arguments)

    def pread(self, who: int, at: int, which: int, index: int) -> Taking:
        """A word of a file comes into a page."""
        worker, name, file = self.worker(who), self.space(self.worker(who)), self.files[which]
        expected = 8
        if index >= file.size:
            expected = 0
        elif self.world.access(name, at, WRITE) is not None:
            expected = -errno.EFAULT
        else:
            content = file.pages.get(index, self.world.zero)
            self.world.store(name, at, 24, int.from_bytes(content[16:24], "little"))
        arguments = file.number, self.address(at) + 24, 8, index * self.size + 16
        yield from self.call(worker, expected, "pread64", *arguments)

    def remote(self, who: int, at: int, which: int) -> Taking:
        """A word is stored into the other process (process_vm_writev)."""
        if "b" not in self.world.spaces:
            return
        worker = self.worker(who)
        other = self.crew.workers["b1" if worker.name[0] == "a" else "a1"]
        name, word = self.space(other), self.words[which]
        assert worker.process is not None
        assert other.process is not None
        expected = 8
        if self.world.access(name, at, WRITE) is not None:
            expected = -errno.EFAULT
        else:
            self.world.store(name, at, 32, word)
        vectors = struct.pack("<5Q", word, worker.scratch, 8, self.address(at) + 32, 8)
        worker.process.write(worker.scratch, vectors)
        mine, theirs = worker.scratch + 8, worker.scratch + 24
        yield from self.call(worker, expected, "process_vm_writev", other.process.pid, mine, 1, theirs, 1, 0)
