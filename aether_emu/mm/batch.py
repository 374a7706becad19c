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
from contextlib import ExitStack
from types import TracebackType
from typing import IO, Any, Self

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
_MAP, _UNMAP, _PROTECT, _ADVISE, _POPULATE = "map", "unmap", "protect", "advise", "populate"
_MAP_FILE, _MAP_DEVICE = "map_file", "map_device"
_OTHER = (_MAP_FILE, _MAP_DEVICE)
_BRING_TO_READ, _BRING_TO_WRITE = mapping.MADV_POPULATE_READ, mapping.MADV_POPULATE_WRITE
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
    """Operations that ask the same, of ranges in a row: `sizes` are theirs."""

    name: str
    start: int
    end: int
    asked: tuple[Any, ...]
    sizes: list[int]


_NO_RUN = _Run("none", 0, -1, (), [])  # nothing follows it


class Batch:
    """Takes operations, and does them when its `with` block ends. All numbers are bytes.

    `done` is how many were done, `failed` the one that was refused. No CPU executes in between, so they have
    one flush, and frames are given back after it; only what brings pages, or maps a file, has what came
    before it flushed first. Refusals are as those of the system calls, such as Refused(EINVAL), and come from
    the block's end; so does TableDamaged.
    """

    def __init__(self, space: AddressSpace) -> None:
        self._space, self._runs = space, list[_Run]()
        self._last = _NO_RUN
        self._in_page = space.page_size - 1
        self._closed = False
        self.done = 0
        self.failed: Operation | None = None

    def __len__(self) -> int:
        """How many operations were asked for."""
        return sum(len(run.sizes) for run in self._runs)

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
        self._add(_MAP, address, size, (protection, populate))

    def unmap(self, address: int, size: int) -> None:
        """As munmap."""
        self._add(_UNMAP, address, size, ())

    def protect(self, address: int, size: int, protection: Protection, key: int | None = None) -> None:
        """As mprotect; with a protection key, as pkey_mprotect."""
        self._add(_PROTECT, address, size, (protection, key))

    def advise(self, address: int, size: int, advice: int) -> None:
        """As madvise: one of `MADV_DONTNEED` and its like in `aether_emu.mm.mapping`."""
        self._add(_ADVISE, address, size, (advice,))

    def populate(self, address: int, size: int, *, write: bool = True) -> None:
        """Bring every page of a range, to be written or else only read, as MADV_POPULATE_WRITE and READ."""
        self._add(_POPULATE, address, size, (_BRING_TO_WRITE if write else _BRING_TO_READ,))

    def map_file(
        self,
        file: IO[bytes] | str | os.PathLike[str],
        address: int,
        size: int,
        protection: Protection,
        offset: int = 0,
    ) -> None:
        """As `AddressSpace.map_file`. An open file must still be open at the end of the batch."""
        self._add(_MAP_FILE, address, size, (file, protection, offset))

    def map_device(
        self,
        device: DeviceMemory | int,
        address: int,
        size: int,
        memory: MemoryType | None = None,
        protection: Protection = _RW,
    ) -> None:
        """As `AddressSpace.map_device`."""
        self._add(_MAP_DEVICE, address, size, (device, memory, protection))

    def _add(self, name: str, address: int, size: int, asked: tuple[Any, ...]) -> None:
        """One operation more: part of the last run, if that asks the same, and whole pages follow such."""
        if self._closed:
            raise MachineError("the batch is over: ask for a new one")
        if type(address) is not int or type(size) is not int:
            address, size = whole("address", address), whole("size", size)
        run = self._last
        if (
            address == run.end and run.name == name and run.asked == asked
            and size > 0 and not (address | size) & self._in_page
        ):  # fmt: skip
            run.end += size
            run.sizes.append(size)
        else:
            self._begin(name, address, size, asked)

    def _begin(self, name: str, address: int, size: int, asked: tuple[Any, ...]) -> None:
        if address < 0 or size < 0:
            raise ConfigError("address and size", (address, size), "numbers that are not negative")
        if name in (_MAP, _PROTECT) and not isinstance(asked[0], Protection):
            raise ConfigError("protection", asked[0], "a Protection, such as Protection.READ")
        if name == _ADVISE:
            asked = (whole("advice", asked[0]),)
        run = _Run(name, address, address + size, asked, [size])
        self._runs.append(run)
        grows = name not in _OTHER and (name != _ADVISE or asked[0] in mapping.IN_PARTS)
        self._last = run if grows and not address & self._in_page else _NO_RUN

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
                if run.name == _MAP:
                    self._bring(run, joint)

    def _do(self, run: _Run, joint: ExitStack) -> None:
        """All of a run at once, where nobody can tell; else one operation after the other."""
        if len(run.sizes) > 1 and _is_one(self._space, run):
            try:
                _edit(self._space, run, run.start, run.end - run.start)
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
            _edit(self._space, run, at, size)
        except OutOfFrames:
            joint.close()  # what was taken away so far can be used now
            try:
                self._space.physical.with_room(lambda: _edit(self._space, run, at, size))
            except OutOfFrames as short:
                raise Refused(errno.ENOMEM, "out of memory") from short
        except NotReady as later:
            raise Refused(errno.EAGAIN, "a page is on its way") from later

    def _bring(self, run: _Run, joint: ExitStack) -> None:
        """The pages of new memory, if they are to be there at once; as with mmap, it is no error without."""
        space = self._space
        area = space.areas.find(run.start)
        flags = mapping.MAP_POPULATE if run.asked[1] else 0
        if area is None or not mapping.populates(flags, area.flags) or not area.protection:
            return
        joint.close()
        try:
            populate(space, run.start, run.end, write=mapping.prefers_write(area))
        except NotReady:
            return


def _edit(space: AddressSpace, run: _Run, at: int, size: int) -> None:
    """An operation of a run, or several together."""
    asked = run.asked
    match run.name:
        case "map":
            request = mapping.Request(at, size, int(asked[0]), _FIXED, None, 0)
            mapping.map_memory(space, request, populate_now=False)
        case "unmap":
            mapping.unmap_memory(space, at, size)
        case "protect":
            mapping.protect_memory(space, at, size, int(asked[0]), asked[1])
        case "map_file":
            space.map_file(asked[0], at, size, *asked[1:])
        case "map_device":
            space.map_device(asked[0], at, size, *asked[1:])
        case _:
            mapping.advise_memory(space, at, size, asked[0])


def _joins(space: AddressSpace, run: _Run) -> bool:
    """Whether the flush of a run may come later: nothing of it relies on that, and it brings no page."""
    if run.name in _OTHER or mapping.has_pool_pages(space, run.start, run.end):
        return False
    if run.name in (_ADVISE, _POPULATE):
        return run.asked[0] in mapping.FLUSH_LATER
    return (
        run.name != _PROTECT or not space.account.locked
    )  # locked pages are copied where they may be written


def _is_one(space: AddressSpace, run: _Run) -> bool:
    """Whether a run may be one edit: none of its operations could be refused where that is not."""
    if len(space.areas) + 2 >= space.limits.areas or mapping.has_pool_pages(space, run.start, run.end):
        return False
    return run.name in (_MAP, _UNMAP) or space.areas.covered(run.start, run.end)
