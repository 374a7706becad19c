"""A batch is done: its operations in order, those that ask the same of ranges in a row as one edit.

runs of the batch --> joined: unmap, protect, advice, new areas    one flush, at the end or before ...
                  --> not joined: pages that come, files           ... what must find all flushed
"""

from __future__ import annotations

import errno
from contextlib import ExitStack

from aether_emu.errors import OutOfFrames, Refused
from aether_emu.mm import mapping
from aether_emu.mm.batch import (
    ADVISE,
    MAP,
    MAP_DEVICE,
    MAP_FILE,
    POPULATE,
    PROTECT,
    UNMAP,
    Batch,
    Operation,
    Run,
)
from aether_emu.mm.joint import joined
from aether_emu.mm.objects.protocol import NotReady
from aether_emu.mm.populate import populate
from aether_emu.mm.space import AddressSpace

_FIXED = mapping.MAP_PRIVATE | mapping.MAP_ANONYMOUS | mapping.MAP_FIXED
_OTHER = (MAP_FILE, MAP_DEVICE)


def perform(space: AddressSpace, batch: Batch) -> None:
    """Do what a batch was asked. Raises as the operations do, with a note that says which one it was."""
    with ExitStack() as joint:
        for run in batch.runs:
            if not _joins(space, run):
                joint.close()
            elif space.joint is None:
                joint.enter_context(joined(space))
            _do(space, batch, run, joint)
            if run.name == MAP:
                _bring(space, run, joint)


def _do(space: AddressSpace, batch: Batch, run: Run, joint: ExitStack) -> None:
    """All of a run at once, where nobody can tell; else one operation after the other."""
    if len(run.sizes) > 1 and _is_one(space, run):
        try:
            _edit(space, run, run.start, run.end - run.start)
        except (Refused, OutOfFrames):
            pass  # nothing is different if what was done of it is done again
        else:
            batch.done += len(run.sizes)
            return
    at = run.start
    for size in run.sizes:
        try:
            _one(space, run, at, size, joint)
        except BaseException as error:
            batch.failed = Operation(batch.done, run.name, at, size)
            error.add_note(str(batch.failed))
            raise
        batch.done += 1
        at += size


def _one(space: AddressSpace, run: Run, at: int, size: int, joint: ExitStack) -> None:
    try:
        _edit(space, run, at, size)
    except OutOfFrames:
        joint.close()  # what was taken away so far can be used now
        try:
            space.physical.with_room(lambda: _edit(space, run, at, size))
        except OutOfFrames as short:
            raise Refused(errno.ENOMEM, "out of memory") from short
    except NotReady as later:
        raise Refused(errno.EAGAIN, "a page is on its way") from later


def _bring(space: AddressSpace, run: Run, joint: ExitStack) -> None:
    """The pages of new memory, if they are to be there at once; as with mmap, it is no error without."""
    area = space.areas.find(run.start)
    flags = mapping.MAP_POPULATE if run.asked[1] else 0
    if area is None or not mapping.populates(flags, area.flags) or not area.protection:
        return
    joint.close()
    try:
        populate(space, run.start, run.end, write=mapping.prefers_write(area))
    except NotReady:
        return


def _edit(space: AddressSpace, run: Run, at: int, size: int) -> None:
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
            mapping.advise_memory(space, at, size, _advice(run))


def _joins(space: AddressSpace, run: Run) -> bool:
    """Whether the flush of a run may come later: nothing of it relies on that, and it brings no page."""
    if run.name in _OTHER or mapping.has_pool_pages(space, run.start, run.end):
        return False
    if run.name in (ADVISE, POPULATE):
        return _advice(run) in mapping.FLUSH_LATER
    return (
        run.name != PROTECT or not space.account.locked
    )  # locked pages are copied where they may be written


def _is_one(space: AddressSpace, run: Run) -> bool:
    """Whether a run may be one edit: none of its operations could be refused where that is not."""
    if len(space.areas) + 2 >= space.limits.areas or mapping.has_pool_pages(space, run.start, run.end):
        return False
    if run.name == ADVISE and _advice(run) not in mapping.IN_PARTS:
        return False
    return run.name in (MAP, UNMAP) or space.areas.covered(run.start, run.end)


def _advice(run: Run) -> int:
    """Which advice a run gives; to populate is one, too."""
    if run.name == ADVISE:
        return int(run.asked[0])
    return mapping.MADV_POPULATE_WRITE if run.asked[0] else mapping.MADV_POPULATE_READ
