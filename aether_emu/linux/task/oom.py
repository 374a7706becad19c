"""Out of memory: which process goes, and the table that says why (Linux: mm/oom_kill.c).

A process counts what it has in memory, in swap and in page tables, and its oom_score_adj as so many
thousandths of all memory. The one that counts most goes; among equals the oldest. -1000 is never chosen,
unless nobody else is left: then it is whoever needs the memory.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterable
from signal import SIGKILL

from aether_emu.linux.proc import smaps
from aether_emu.linux.task.ended import Ended
from aether_emu.linux.task.process import Process
from aether_emu.mm.tables.damage import TableDamaged

NEVER = -1000
"""The oom_score_adj of a process that is not chosen."""
_MOST_ROWS = 32


def make_an_end(current: Process) -> bool:
    """Choose a process, tell why, and end it. Whether `current`, who needs the memory, may try again.

    Whoever shares its memory goes with it. What it has of its own is given back at once: its tasks get no
    further (Linux: the OOM reaper).
    """
    if current.ended is not None:
        return False
    processes = list(current.registry.processes.values())
    chosen = choose(processes, current)
    current.kernel.tell(table(processes, chosen, current))
    space = chosen.mm
    for process in processes:
        if process.ended is None and process.mm is space:
            process.end(Ended(signal=SIGKILL, why="out of memory"))
    if current.ended is not None:
        return False
    with contextlib.suppress(TableDamaged):
        for area in list(space.areas):
            if not area.shared:
                space.discard(area, area.start, area.end)
    return True


def badness(process: Process) -> int:
    """Pages that the end of a process would give back: in memory, in swap, and its tables'."""
    space = process.mm
    return space.table.tables + sum(_pages(process))


def _pages(process: Process) -> tuple[int, int]:
    """Pages in memory, and in swap. None of one whose tables are damaged: nobody can tell."""
    try:
        usage = smaps.usage(process.mm, [0])
    except TableDamaged:
        return 0, 0
    size = process.mm.page_size
    return int(usage["Rss"][0]) // size, int(usage["Own"][0]) // size


def points(process: Process) -> int:
    """By how much it is chosen."""
    return badness(process) + process.oom_adjustment * all_pages(process) // 1000


def all_pages(process: Process) -> int:
    """Pages of memory and swap of its machine, of which oom_score_adj names thousandths."""
    physical = process.kernel.physical
    return physical.buddy.total + (physical.most_memory - physical.ram.size) // physical.ram.page_size


def choose(processes: Iterable[Process], current: Process) -> Process:
    """Who goes. `current` is who needs the memory."""
    chosen, most = None, 0
    for process in processes:
        if process.ended is None and process.oom_adjustment != NEVER:
            score = points(process)
            if chosen is None or score > most:
                chosen, most = process, score
    return current if chosen is None else chosen


def table(processes: Iterable[Process], chosen: Process, current: Process) -> str:
    """Why `chosen` goes, and what processes have, those that count most: lines as Linux logs them."""
    kernel = current.kernel
    free, total = kernel.physical.buddy.free_frames, kernel.physical.buddy.total
    size = kernel.physical.ram.page_size
    swap_total, swap_free = kernel.swap_bytes()
    lines = [
        f"out of memory: {_name(current)} ({current.pid}) needs a page; {free * size >> 10} of "
        f"{total * size >> 10} KiB are free, {swap_free >> 10} of {swap_total >> 10} KiB of swap",
        "[  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name",
    ]
    cache = kernel.physical.cache
    if cache is not None:
        lines.insert(
            1, f"page cache: {cache.pages * size >> 10} KiB of files, {cache.dirty * size >> 10} dirty"
        )
    living = [process for process in processes if process.ended is None]
    shown = set(heapq.nlargest(_MOST_ROWS, living, key=points)) | {chosen}
    for process in living:
        if process in shown:
            rss, swapped = _pages(process)
            space = process.mm
            lines.append(
                f"[{process.pid:7d}] {process.credentials.uid:5d} {process.pid:5d} "
                f"{space.account.reserved // size:8d} {rss:8d} {space.table.tables * size:8d} {swapped:8d} "
                f"{process.oom_adjustment:13d} {_name(process)}"
            )
    if len(shown) < len(living):
        lines.append(f"and {len(living) - len(shown)} more, which count less")
    lines.append(
        f"killed: {_name(chosen)} ({chosen.pid}), which counts most: {points(chosen)} pages, "
        f"oom_score_adj {chosen.oom_adjustment}"
    )
    return "\n".join(lines) + "\n"


def _name(process: Process) -> str:
    return process.name.decode("utf-8", "backslashreplace")
