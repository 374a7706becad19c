"""The PAGEMAP_SCAN ioctl of /proc/PID/pagemap: runs of pages that are of some categories, in one call.

Checks and their order are those of Linux 6.18 (fs/proc/task_mmu.c, admin-guide/mm/pagemap). With
PM_SCAN_WP_MATCHING what is found is protected in the same step: the next scan tells what was written since.
That goes for areas that are watched with UFFD_FEATURE_WP_ASYNC; others are left out, or refused with
PM_SCAN_CHECK_WPASYNC.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator
from functools import reduce
from operator import or_

from aether_emu.errors import Refused
from aether_emu.linux.files.region import RegionFile
from aether_emu.linux.task.task import Task
from aether_emu.mm.categories import Category, Run
from aether_emu.records import dataclass

PAGEMAP_SCAN = 0xC060_6610
_WP_MATCHING, _CHECK_WP_ASYNC = 1, 2
_EVERY = int(reduce(or_, Category))
_ARGUMENT = struct.Struct("<12Q")
_WALK_END = 32  # its place in the argument
_REGION = struct.Struct("<3Q")


@dataclass(frozen=True, slots=True)
class _Scan:
    """The argument (struct pm_scan_arg)."""

    size: int
    flags: int
    start: int
    end: int
    walk_end: int
    vector: int
    length: int
    most: int
    inverted: int
    mask: int
    any_of: int
    returned: int

    def fits(self, categories: int) -> bool:
        """Whether a page of these categories is asked for."""
        categories ^= self.inverted
        return categories & self.mask == self.mask and (not self.any_of or bool(categories & self.any_of))


def control(task: Task, file: RegionFile, request: int, argument: int) -> int:
    """ioctl(2) on a file of /proc that has pages to scan: how many runs were found."""
    if request != PAGEMAP_SCAN:
        raise Refused(errno.EINVAL, f"a pagemap has no ioctl {request:#x}")
    scan = _Scan(*_ARGUMENT.unpack(task.cpu.copy_from_user(argument, _ARGUMENT.size)))
    end = _check(task, scan)
    found: list[Run] = []
    walked, passed = end, 0
    for run in _joined(file.scan(scan.start, end)):
        allowed = run.categories & Category.WP_ALLOWED
        if scan.flags & _CHECK_WP_ASYNC and not allowed:
            raise Refused(errno.EPERM, "nobody watches it asynchronously")
        if (scan.flags & _WP_MATCHING and not allowed) or not scan.fits(run.categories):
            continue
        protects = scan.flags & _WP_MATCHING and _is_protected(run)
        some = _whole(run) if protects else run
        if some != run:  # as on Linux, which goes on behind what it leaves out
            passed = some.end if some.start == run.start else run.start
        walked = _add(task, scan, found, some) if scan.length else some.end
        if protects and run.unit > 1 and walked % run.unit:
            walked = _back_out(found, walked & -run.unit)
        if protects and walked > some.start:
            file.protect(some.start, walked)
        if walked < some.end:
            break
    else:
        walked = passed or end
    for number, run in enumerate(found):
        task.cpu.copy_to_user(scan.vector + number * _REGION.size, _REGION.pack(*run[:3]))
    task.cpu.copy_to_user(argument + _WALK_END, struct.pack("<Q", walked))
    return len(found)


def _check(task: Task, scan: _Scan) -> int:
    """Refuse what is no request. Returns where it ends."""
    limits, page = task.process.mm.limits, task.process.mm.page_size
    categories = scan.inverted | scan.mask | scan.any_of | scan.returned
    if scan.size != _ARGUMENT.size or scan.flags & ~(_WP_MATCHING | _CHECK_WP_ASYNC) or categories & ~_EVERY:
        raise Refused(errno.EINVAL, "unknown size, flags or categories")
    if scan.start % page:
        raise Refused(errno.EINVAL, "the start is not page aligned")
    if scan.start > limits.user_end or not 0 <= scan.end - scan.start <= limits.user_end - scan.start:
        raise Refused(errno.EFAULT, "the range leaves the user half")
    if scan.length and not scan.vector:
        raise Refused(errno.EINVAL, "there is nowhere to put the runs")
    if scan.vector and scan.vector + scan.length * _REGION.size > limits.user_end:
        raise Refused(errno.EFAULT, "the vector leaves the user half")
    return scan.end + page - 1 & -page


def _is_protected(run: Run) -> bool:
    """Whether a run that is found is protected: of a pool's pages with a table, those that were written."""
    return run.unit == 1 or not run.categories & Category.HUGE or bool(run.categories & Category.WRITTEN)


def _whole(run: Run) -> Run:
    """The part of a run that is told and protected: a huge page of a pool is so whole, or not."""
    low, high = run.start + run.unit - 1 & -run.unit, run.end & -run.unit
    return Run(low, max(low, high), run.categories, run.unit)


def _back_out(found: list[Run], end: int) -> int:
    """Take from the last run what lies behind `end`. Returns that."""
    last = found.pop()
    if last.start < end:
        found.append(Run(last.start, end, last.categories))
    return end


def _joined(runs: Iterable[Run]) -> Iterator[Run]:
    """The runs; those that touch and are alike are one, whatever areas they are of."""
    last: Run | None = None
    for run in runs:
        if last is not None and last.end == run.start and last[2:] == run[2:]:
            last = Run(last.start, run.end, run.categories, run.unit)
            continue
        if last is not None:
            yield last
        last = run
    if last is not None:
        yield last


def _add(task: Task, scan: _Scan, found: list[Run], run: Run) -> int:
    """Add a run, as far as there is room, with what is asked about it. Returns where it ended."""
    page, returned = task.process.mm.page_size, run.categories & scan.returned
    pages = sum(each.end - each.start for each in found) // page
    end = run.end if not scan.most else min(run.end, run.start + (scan.most - pages) * page)
    if end == run.start:
        return end
    if found and found[-1].end == run.start and found[-1].categories == returned:
        found[-1] = Run(found[-1].start, end, returned)
    elif len(found) < scan.length:
        found.append(Run(run.start, end, returned))
    else:
        return run.start
    return end
