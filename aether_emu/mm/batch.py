"""Many operations on an address space by one call: done in order, at its end, with one flush for them all.

    with mm.batch() as batch:
        batch.unmap(old, size)                         nothing happens yet
        for page in pages:
            batch.protect(page, 4096, Protection.READ)
                                                       all is done here: one range edit, one flush

Each operation does what it would do alone, and the next one sees that. At the first that is refused the batch
ends with the same error: what came before it is done and flushed, what comes after it is not done. Nothing is
done if the `with` block itself raises.

Operations of one kind that ask the same of ranges in a row are one edit (`Run`). Where a program could tell,
they are done one by one: beside a hole or huge pages of a pool, near the limit of areas, and again after a
refusal, which then comes from the operation that it is due to. What it cannot see may differ: a huge page
that is protected page by page stays one, and a watcher of mappings is told of the whole range.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any, Self

from aether_emu.arch.paging import MemoryType
from aether_emu.errors import ConfigError, MachineError, whole
from aether_emu.mm.objects.device import DeviceMemory
from aether_emu.mm.protection import Protection
from aether_emu.records import dataclass

MAP, UNMAP, PROTECT, ADVISE, POPULATE = "map", "unmap", "protect", "advise", "populate"
MAP_FILE, MAP_DEVICE = "map_file", "map_device"
_RW = Protection.READ | Protection.WRITE
_OVER = "the batch is over: ask for a new one"
_NOT_OPEN = "nothing would be done: ask inside its block, `with mm.batch() as batch:`"


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
class Run:
    """Operations that ask the same, of ranges in a row: `sizes` are theirs."""

    name: str
    start: int
    end: int
    asked: tuple[Any, ...]
    sizes: list[int]


_NO_RUN = Run("none", 0, -1, (), [])  # nothing follows it


class Batch:
    """Takes operations, and does them when its `with` block ends. All numbers are bytes.

    `done` is how many were done, `failed` the one that was refused. No CPU executes in between, so they have
    one flush, and frames are given back after it; only what brings pages, or maps a file, has what came
    before it flushed first. Refusals are as those of the system calls, such as Refused(EINVAL), and come from
    the block's end; so does TableDamaged.
    """

    def __init__(self, page_size: int, perform: Callable[[Batch], None]) -> None:
        self.runs: list[Run] = []
        self._perform = perform
        self._last = _NO_RUN
        self._in_page = page_size - 1
        self._open = self._closed = False
        self.done = 0
        self.failed: Operation | None = None

    def __len__(self) -> int:
        """How many operations were asked for."""
        return sum(len(run.sizes) for run in self.runs)

    def __enter__(self) -> Self:
        if self._closed:
            raise MachineError(_OVER)
        self._open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open, self._closed = False, True
        if error is None:
            self._perform(self)

    # ---- what can be asked

    def map(self, address: int, size: int, protection: Protection = _RW, *, populate: bool = False) -> None:
        """Private anonymous memory at `address`, as mmap with MAP_FIXED; with all its pages, if asked for."""
        self._add(MAP, address, size, (protection, populate))

    def unmap(self, address: int, size: int) -> None:
        """As munmap."""
        self._add(UNMAP, address, size, ())

    def protect(self, address: int, size: int, protection: Protection, key: int | None = None) -> None:
        """As mprotect; with a protection key, as pkey_mprotect."""
        self._add(PROTECT, address, size, (protection, key))

    def advise(self, address: int, size: int, advice: int) -> None:
        """As madvise: one of `MADV_DONTNEED` and its like in `aether_emu.mm.mapping`."""
        self._add(ADVISE, address, size, (advice,))

    def populate(self, address: int, size: int, *, write: bool = True) -> None:
        """Bring every page of a range, to be written or else only read, as MADV_POPULATE_WRITE and READ."""
        self._add(POPULATE, address, size, (write,))

    def map_file(
        self,
        file: IO[bytes] | str | os.PathLike[str],
        address: int,
        size: int,
        protection: Protection,
        offset: int = 0,
    ) -> None:
        """As `AddressSpace.map_file`. An open file must still be open at the end of the batch."""
        self._add(MAP_FILE, address, size, (file, protection, offset))

    def map_device(
        self,
        device: DeviceMemory | int,
        address: int,
        size: int,
        memory: MemoryType | None = None,
        protection: Protection = _RW,
    ) -> None:
        """As `AddressSpace.map_device`."""
        self._add(MAP_DEVICE, address, size, (device, memory, protection))

    def _add(self, name: str, address: int, size: int, asked: tuple[Any, ...]) -> None:
        """One operation more: part of the last run, if that asks the same, and whole pages follow such."""
        if not self._open:
            raise MachineError(_OVER if self._closed else _NOT_OPEN)
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
        if name in (MAP, PROTECT) and not isinstance(asked[0], Protection):
            raise ConfigError("protection", asked[0], "a Protection, such as Protection.READ")
        if name == ADVISE:
            asked = (whole("advice", asked[0]),)
        run = Run(name, address, address + size, asked, [size])
        self.runs.append(run)
        alone = name in (MAP_FILE, MAP_DEVICE) or address & self._in_page
        self._last = _NO_RUN if alone else run
