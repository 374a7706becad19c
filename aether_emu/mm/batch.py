"""Many operations on an address space by one call: done in order, at its end, with one flush for them all.

    with mm.batch() as batch:
        batch.unmap(old, size)                         nothing happens yet
        for page in pages:
            batch.protect(page, 4096, Protection.READ)
                                                       all is done here: one range edit, one flush

Each operation does what it would do alone, and the next one sees that. At the first that is refused the batch
ends with the same error: what came before it is done and flushed, what comes after it is not done. Nothing is
done if the `with` block itself raises.

Operations of one kind that ask the same of ranges in a row are one edit (`_Run`). Where a program could tell,
they are done one by one: beside a hole or huge pages of a pool, near the limit of areas, and again after a
refusal, which then comes from the operation that it is due to. What it cannot see may differ: a huge page
that is protected page by page stays one, and a watcher of mappings is told of the whole range.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import field
from types import TracebackType
from typing import IO, Self

from aether_emu.arch.paging import MemoryType
from aether_emu.errors import ConfigError, MachineError, OutOfFrames, Refused, whole
from aether_emu.mm import mapping
from aether_emu.mm.joint import joined
from aether_emu.mm.objects.device import DeviceMemory
from aether_emu.mm.objects.protocol import NotReady
from aether_emu.mm.populate import populate
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from aether_emu.records import dataclass

_FIXED = mapping.MAP_PRIVATE | mapping.MAP_ANONYMOUS | mapping.MAP_FIXED
_MAP, _UNMAP, _PROTECT, _ADVISE, _OTHER = "map", "unmap", "protect", "advise", "other"
_RW = Protection.READ | Protection.WRITE


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a batch: which one it is, counted from 0, and what was asked. Sizes are bytes."""

    index: int
    name: str
    address: int
    size: int

    def __str__(self) -> str:
        return (
            f"operation {self.index} of the batch, {self.name} of {self.size:#x} bytes at {self.address:#x}"
        )


@dataclass(slots=True)
class _Run:
    """Operations of one kind that ask the same, of ranges in a row: `sizes` are theirs."""

    kind: str
    name: str
    start: int
    end: int
    asked: object  # what they have in common; None of what stays alone
    edit: Callable[[int, int], object]
    populates: bool = False
    sizes: list[int] = field(default_factory=list)


class Batch:
    """Takes operations, and does them when its `with` block ends. All numbers are bytes.

    `done` is how many were done, `failed` the one that was refused. No CPU executes in between, so they have
    one flush, and frames are given back after it; only what brings pages, or maps a file, has what came
    before it flushed first. Refusals are as those of the system calls, such as Refused(EINVAL), and come from
    the block's end; so does TableDamaged.
    """

    def __init__(self, space: AddressSpace) -> None:
        self._space, self._runs = space, list[_Run]()
        self._closed = False
        self._asked = self.done = 0
        self.failed: Operation | None = None

    def __len__(self) -> int:
        """How many operations were asked for."""
        return self._asked

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        if error is None:
            self._execute()

    # ---- what can be asked

    def map(self, address: int, size: int, protection: Protection = _RW, *, populate: bool = False) -> None:
        """Private anonymous memory at `address`, as mmap with MAP_FIXED; with all its pages, if asked for."""
        rights, space = _rights(protection), self._space
        flags = _FIXED | (mapping.MAP_POPULATE if populate else 0)

        def edit(start: int, length: int) -> None:
            request = mapping.Request(start, length, rights, flags, None, 0)
            mapping.map_memory(space, request, populate_now=False)

        self._add(_MAP, _MAP, address, size, (rights, populate), edit, populates=populate)

    def unmap(self, address: int, size: int) -> None:
        """As munmap."""
        space = self._space
        self._add(_UNMAP, _UNMAP, address, size, (), lambda at, n: mapping.unmap_memory(space, at, n))

    def protect(self, address: int, size: int, protection: Protection, key: int | None = None) -> None:
        """As mprotect; with a protection key, as pkey_mprotect."""
        rights, space = _rights(protection), self._space

        def edit(start: int, length: int) -> None:
            mapping.protect_memory(space, start, length, rights, key)

        self._add(_PROTECT, _PROTECT, address, size, (rights, key), edit)

    def advise(self, address: int, size: int, advice: int) -> None:
        """As madvise: one of `MADV_DONTNEED` and its like in `aether_emu.mm.mapping`."""
        number, space = whole("advice", advice), self._space
        asked = (number,) if number in mapping.IN_PARTS else None

        def edit(start: int, length: int) -> None:
            mapping.advise_memory(space, start, length, number)

        self._add(_ADVISE, _ADVISE, address, size, asked, edit)

    def populate(self, address: int, size: int, *, write: bool = True) -> None:
        """Bring every page of a range, to be written or else only read, as MADV_POPULATE_WRITE and READ."""
        number, space = mapping.MADV_POPULATE_WRITE if write else mapping.MADV_POPULATE_READ, self._space

        def edit(start: int, length: int) -> None:
            mapping.advise_memory(space, start, length, number)

        self._add(_ADVISE, "populate", address, size, (number,), edit)

    def map_file(
        self,
        file: IO[bytes] | str | os.PathLike[str],
        address: int,
        size: int,
        protection: Protection,
        offset: int = 0,
    ) -> None:
        """As `AddressSpace.map_file`. An open file must still be open at the end of the batch."""
        space = self._space

        def edit(start: int, length: int) -> None:
            space.map_file(file, start, length, protection, offset)

        self._add(_OTHER, "map_file", address, size, None, edit)

    def map_device(
        self,
        device: DeviceMemory | int,
        address: int,
        size: int,
        memory: MemoryType | None = None,
        protection: Protection = _RW,
    ) -> None:
        """As `AddressSpace.map_device`."""
        space = self._space

        def edit(start: int, length: int) -> None:
            space.map_device(device, start, length, memory, protection)

        self._add(_OTHER, "map_device", address, size, None, edit)

    def _add(
        self,
        kind: str,
        name: str,
        address: int,
        size: int,
        asked: object,
        edit: Callable[[int, int], object],
        *,
        populates: bool = False,
    ) -> None:
        if self._closed:
            raise MachineError("the batch is over: ask for a new one")
        address, size = whole("address", address), whole("size", size)
        if address < 0 or size < 0:
            raise ConfigError("address and size", (address, size), "numbers that are not negative")
        self._asked += 1
        last = self._runs[-1] if self._runs else None
        in_row = last is not None and last.kind == kind and asked is not None and last.asked == asked
        if (
            last is not None
            and in_row
            and last.end == address
            and _fits(self._space, last.start, address, size)
        ):
            last.end += size
            last.sizes.append(size)
        else:
            self._runs.append(_Run(kind, name, address, address + size, asked, edit, populates, [size]))

    # ---- doing it

    def _execute(self) -> None:
        space = self._space
        with ExitStack() as joint:
            for run in self._runs:
                if not _joins(space, run):
                    joint.close()
                elif space.joint is None:
                    joint.enter_context(joined(space))
                self._do(run, joint)
                if run.kind == _MAP:
                    self._bring(run, joint)

    def _do(self, run: _Run, joint: ExitStack) -> None:
        """All of a run at once, where nobody can tell; else one operation after the other."""
        if len(run.sizes) > 1 and _is_one(self._space, run):
            try:
                run.edit(run.start, run.end - run.start)
            except (Refused, OutOfFrames):
                pass  # nothing is different if what was done of it is done again
            else:
                self.done += len(run.sizes)
                return
        at = run.start
        for size in run.sizes:
            try:
                self._one(run, at, size, joint)
            except BaseException as error:
                self.failed = Operation(self.done, run.name, at, size)
                error.add_note(str(self.failed))
                raise
            self.done += 1
            at += size

    def _one(self, run: _Run, at: int, size: int, joint: ExitStack) -> None:
        try:
            run.edit(at, size)
        except OutOfFrames:
            joint.close()  # what was taken away so far can be used now
            try:
                self._space.physical.with_room(lambda: run.edit(at, size))
            except OutOfFrames as short:
                raise Refused(errno.ENOMEM, "out of memory") from short
        except NotReady as later:
            raise Refused(errno.EAGAIN, "a page is on its way") from later

    def _bring(self, run: _Run, joint: ExitStack) -> None:
        """The pages of new memory, if they are to be there at once; as with mmap, it is no error without."""
        space = self._space
        area = space.areas.find(run.start)
        flags = mapping.MAP_POPULATE if run.populates else 0
        if area is None or not mapping.populates(flags, area.flags) or not area.protection:
            return
        joint.close()
        try:
            populate(space, run.start, run.end, write=mapping.prefers_write(area))
        except NotReady:
            return


def _rights(protection: Protection) -> int:
    if not isinstance(protection, Protection):
        raise ConfigError("protection", protection, "a Protection, such as Protection.READ")
    return int(protection)


def _fits(space: AddressSpace, start: int, address: int, size: int) -> bool:
    """Whether whole pages follow whole pages: what does not is refused, or rounded up, for itself."""
    return size > 0 and not (start | address | size) & space.page_size - 1


def _joins(space: AddressSpace, run: _Run) -> bool:
    """Whether the flush of a run may come later: nothing of it relies on that, and it brings no page."""
    if run.kind == _OTHER or mapping.has_pool_pages(space, run.start, run.end):
        return False
    if run.kind == _ADVISE:
        asked = run.asked
        return isinstance(asked, tuple) and asked[0] in mapping.FLUSH_LATER
    return (
        run.kind != _PROTECT or not space.account.locked
    )  # locked pages are copied where they may be written


def _is_one(space: AddressSpace, run: _Run) -> bool:
    """Whether a run may be one edit: none of its operations could be refused where that is not."""
    if len(space.areas) + 2 >= space.limits.areas or mapping.has_pool_pages(space, run.start, run.end):
        return False
    return run.kind in (_MAP, _UNMAP) or space.areas.covered(run.start, run.end)
