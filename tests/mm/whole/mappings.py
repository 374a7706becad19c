"""The calls that change what is mapped, and how."""

from __future__ import annotations

from tests.mm.whole.model import ANY, Thing
from tests.mm.whole.stage import FILES, SEALABLE, Stage, Taking, is_segment

_SHARED, _PRIVATE, _FIXED, _ANONYMOUS = 1, 2, 0x10, 0x20
_LOCKED, _NORESERVE, _POPULATE, _NOREPLACE = 0x2000, 0x4000, 0x8000, 0x100000
_MAYMOVE, _MOVED, _KEPT = 1, 2, 4


class Mappings(Stage):
    """Steps that map, unmap, protect, move, advise and lock."""

    def mmap(self, who: int, at: int, count: int, protection: int, source: int, more: int) -> Taking:
        """`source`: 0 and 1 private, 2 shared, else a file, shared or private. `more`: bits of options."""
        worker, name = self.worker(who), self.space(self.worker(who))
        count = self.fits(at, count)
        locked, populates, replaces = bool(more & 8), bool(more & 16), more & 7 != 0
        if locked or populates:
            count = min(count, 16)
        if not count or not self.free_to_change(name, at, count):
            return
        flags, thing, index, fd = _PRIVATE, None, 0, -1
        if source == 2:
            flags, thing = _SHARED, Thing("anonymous", count)
        elif source > 2:
            thing, index = self.files[source % FILES], more >> 5 & 3
            flags, fd = (_SHARED, _PRIVATE)[source // FILES % 2], thing.number
            count = min(count, 8)
        expected = self.world.mmap(
            name, at, count, protection, thing=thing, index=index, shared=flags == _SHARED,
            locked=locked, populates=populates, replaces=replaces,
        )  # fmt: skip
        flags |= _FIXED if replaces else _NOREPLACE
        flags |= (
            _ANONYMOUS * (source <= 2) | _LOCKED * locked | _POPULATE * populates | _NORESERVE * (more & 1)
        )
        address, length = self.address(at), count * self.size
        yield from self.call(
            worker, expected or address, "mmap", address, length, protection, flags, fd, index * self.size
        )

    def munmap(self, who: int, at: int, count: int) -> Taking:
        yield from self._edit("munmap", who, at, count)

    def mprotect(self, who: int, at: int, count: int, protection: int) -> Taking:
        yield from self._edit("mprotect", who, at, count, protection)

    def madvise(self, who: int, at: int, count: int, advice: int) -> Taking:
        yield from self._edit("madvise", who, at, count, advice)

    def _edit(self, call: str, who: int, at: int, count: int, *more: int) -> Taking:
        worker, name = self.worker(who), self.space(self.worker(who))
        count = self.fits(at, count)
        if not count or not self.free_to_change(name, at, count):
            return
        expected = getattr(self.world, call)(name, at, count, *more)
        yield from self.call(worker, expected, call, self.address(at), count * self.size, *more)

    def mremap(self, who: int, at: int, old: int, new: int, to: int, how: int) -> Taking:
        """`how`: 0 in place, 1 to a place, 2 to a place and the old one stays."""
        worker, name = self.worker(who), self.space(self.worker(who))
        old, target = self.fits(at, old), to if how else None
        new = old if how == 2 else self.fits(to if how else at, new)
        pages = self.world.spaces[name]
        if not old or not new or not self.free_to_change(name, at, max(old, new)):
            return
        if target is not None and (
            self.fits(target, new) < new or not self.free_to_change(name, target, new)
        ):
            return
        segment = any(n in pages and is_segment(pages[n].thing) for n in range(at, at + old))
        if segment and new > old:
            return
        snapshot = self._foreseen(name, at, old, new, target)
        if not snapshot:
            return
        expected = self.world.mremap(name, at, old, new, target, keeps=how == 2)
        assert expected is not ANY
        flags = (0, _MAYMOVE | _MOVED, _MAYMOVE | _MOVED | _KEPT)[how]
        place = self.address(at if target is None else target)
        yield from self.call(
            worker,
            expected or place,
            "mremap",
            self.address(at),
            old * self.size,
            new * self.size,
            flags,
            place,
        )

    def _foreseen(self, name: str, at: int, old: int, new: int, to: int | None) -> bool:
        """Whether it is known if the pages that would move are in one area."""
        pages = self.world.spaces[name]
        row = [pages.get(n) for n in range(at, at + min(old, new))]
        here = [page for page in row if page is not None]
        if new == old and to is None:
            return True
        alike = [page for page in here if page.area == here[0].area]
        return len(alike) < len(row) or all(page.maybe == row[0].maybe for page in here)  # type: ignore[union-attr]

    def mlock(self, who: int, at: int, count: int, how: int) -> Taking:
        """mlock, mlock2 with MLOCK_ONFAULT, or munlock."""
        worker, name = self.worker(who), self.space(self.worker(who))
        count = self.fits(at, count)
        if not count:
            return
        address, length = self.address(at), count * self.size
        if how:
            expected = self.world.mlock(name, at, count, how)
            yield from self.call(worker, expected, "mlock2", address, length, how - 1)
        else:
            yield from self.call(worker, self.world.munlock(name, at, count), "munlock", address, length)

    def msync(self, who: int, at: int, count: int, how: int) -> Taking:
        worker, name = self.worker(who), self.space(self.worker(who))
        count = self.fits(at, count)
        if count:
            expected = self.world.msync(name, at, count, invalidates=bool(how & 2))
            yield from self.call(worker, expected, "msync", self.address(at), count * self.size, how)

    def mincore(self, who: int, at: int, count: int) -> Taking:
        worker, name = self.worker(who), self.space(self.worker(who))
        count = self.fits(at, count)
        if count:
            expected = self.world.mincore(name, at, count)
            yield from self.call(
                worker, expected, "mincore", self.address(at), count * self.size, worker.scratch
            )

    def mseal(self, who: int, first: int, count: int) -> Taking:
        """Of the window's last pages only: there is no way back."""
        worker, name = self.worker(who), self.space(self.worker(who))
        at = self.world.end - SEALABLE + first % SEALABLE
        count = self.fits(at, count)
        expected = self.world.mseal(name, at, count)
        yield from self.call(worker, expected, "mseal", self.address(at), count * self.size, 0)
