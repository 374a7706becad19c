"""What a run did, as plain data (`--stats-json`) and as a table for people (`--stats`).

Everything but `wall_seconds` is the same, byte for byte, on every repetition with one seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aether_emu.linux.task.ksm import STOP
from aether_emu.linux.task.lines import Lines
from aether_emu.mm.counters import Event
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.huge_pools import Pools
from aether_emu.mm.hugepage import leaves
from aether_emu.observe.combining import Combining
from aether_emu.observe.metadata import page_tables, per_frame
from aether_emu.rules import format_size
from aether_emu.system import Machine

if TYPE_CHECKING:
    from rich.table import Table

_STATES = {"anonymous": (Kind.ANON, Kind.SHARED), "file": (Kind.FILE,), "zero page": (Kind.ZERO,)}
_FAULTS = [event for event in Event if event.name.startswith("FAULT_")]


def prepare(machine: Machine) -> None:
    """Call before the run: virtual time then counts every executed block."""
    for cpu in machine.kernel.cpus:
        cpu.count_blocks()
    if machine.physical.tags is not None:
        machine.physical.tags.measure()
    if machine.config.write_combining:
        machine.combining = Combining(machine)


def _of_devices(machine: Machine) -> dict[str, Any]:
    """What programs did with devices; nothing without any."""
    board, told = machine.board, dict[str, Any]()
    if board is None:
        return told
    for name, page in (("timer", board.timer), ("dma", board.copier)):
        if page is not None:
            told[name] = {"register_accesses": page.accesses, "lost_accesses": page.lost, **page.figures()}
    if isinstance(machine.combining, Combining):
        told["write_combining_modelled"] = machine.combining.collect()
    return {"devices": told}


def _rows_of_devices(devices: dict[str, dict[str, int]] | None) -> list[tuple[str, int]]:
    return [
        (f"{device.replace('_modelled', ' (modelled)').replace('_', ' ')}: {name.replace('_', ' ')}", count)
        for device, figures in (devices or {}).items()
        for name, count in figures.items()
    ]


def _of_cpus(machine: Machine) -> dict[str, Any]:
    """What there is to tell of several CPUs; of one there is nothing."""
    queue, tlb = machine.kernel.run_queue, machine.physical.tlb
    contention = machine.kernel.contention
    locks: dict[str, Any] = {}
    if contention is not None:
        counted = {kind: each.as_dict() for kind, each in contention.locks.counted.items()}
        locks = {"locks_modelled": {"scheme": contention.scheme, **counted}}
    if not isinstance(queue, Lines):
        return locks
    way = tlb.way
    shootdowns = {
        "interrupts_sent": way.sent,
        "broadcasts": way.broadcasts,
        "spared_not_in_the_space": way.spared,
        "spared_lazy": way.lazily,
        "coalesced": way.coalesced,
        "deferred": way.deferred,
        "blocks_executed_meanwhile": way.stale_blocks,
        "pages_flushed": way.pages,
        "full_flushes": way.everything,
        "waited_ns": queue.waited,
    }
    cpus = {"count": len(queue.lines), "migrations": queue.migrations, "shootdowns": shootdowns}
    return {"cpus": cpus, **locks}


def _of_tags(machine: Machine) -> dict[str, Any]:
    """Changes of address space, and what the CPUs' tags would have kept over them. Nothing without tags."""
    tags = machine.physical.tags
    if tags is None:
        return {}
    return {
        "tags": {
            "switches": tags.switches,
            "kept": tags.kept,
            "flushed_for_edits" if not tags.broadcast else "flushed_after_rollover": tags.behind,
            "taken_anew": tags.fresh,
            **({"rollovers": tags.rollovers} if tags.broadcast else {}),
            "translations_kept_modelled": 0 if tags.model is None else tags.model.translations,
        }
    }


def _of_split(machine: Machine) -> dict[str, Any]:
    """What it cost that programs ran without the supervisor's half, where they did."""
    if not machine.config.kpti:
        return {}
    switches = machine.physical.counters.n[Event.ROOT_SWITCH]
    spent = machine.kernel.cost_of(Event.ROOT_SWITCH) * switches
    return {"kpti": {"root_switches_modelled": switches, "virtual_ns": spent}}


def _rows_of_tags(tags: dict[str, int] | None) -> list[tuple[str, int]]:
    """Of a run that changed address spaces."""
    if tags is None or tags["switches"] < 2:
        return []
    names = {
        "switches": "changes of address space",
        "translations_kept_modelled": "  translations kept (modelled)",
    }
    return [(names.get(name, f"  {name.replace('_', ' ')}"), count) for name, count in tags.items()]


def _rows_of_split(kpti: dict[str, int] | None) -> list[tuple[str, int]]:
    if kpti is None:
        return []
    return [
        ("KPTI: changes of root (modelled)", kpti["root_switches_modelled"]),
        ("  virtual time of them, us", kpti["virtual_ns"] // 1000),
    ]


def _of_reclaim(machine: Machine) -> dict[str, Any]:
    """What left memory and came back. Nothing where nothing can."""
    physical, n = machine.physical, machine.physical.counters.n
    if physical.swap is None and physical.cache is None:
        return {}
    return {
        "reclaim": {
            "order": machine.config.reclaim,
            "stalls": n[Event.RECLAIM_STALLS],
            "frames_scanned": n[Event.RECLAIM_SCANNED],
            "frames_taken": n[Event.RECLAIM_TAKEN],
            "background_runs": n[Event.KSWAPD_RUNS],
            "background_taken": n[Event.KSWAPD_TAKEN],
            "taken_unchanged": n[Event.RECLAIM_CLEAN],
        },
        **_of_page_cache(machine),
        **_of_swap(machine),
    }


def _of_page_cache(machine: Machine) -> dict[str, Any]:
    """Pages of files, where they count as memory."""
    cache, n = machine.physical.cache, machine.physical.counters.n
    if cache is None:
        return {}
    return {
        "page_cache": {
            "pages": cache.pages,
            "dirty": cache.dirty,
            "pages_read": n[Event.FILE_READ],
            "pages_dirtied": n[Event.FILE_DIRTIED],
            "pages_written": n[Event.FILE_WRITTEN],
            "pages_scanned": n[Event.FILE_SCANNED],
            "pages_dropped": n[Event.FILE_TAKEN],
            "code_spared": n[Event.FILE_SPARED],
            "refaults": n[Event.FILE_REFAULT],
            "refaults_soon": n[Event.FILE_REFAULT_SOON],
        }
    }


def _of_swap(machine: Machine) -> dict[str, Any]:
    """What went to the swap area and came back. Nothing without one."""
    swap, n = machine.physical.swap, machine.physical.counters.n
    if swap is None:
        return {}
    store = swap.store
    return {
        "swap": {
            "bytes": machine.config.swap,
            "slots_used": swap.used,
            "frames_cached": swap.cached,
            "pages_out": n[Event.SWAP_OUT],
            "pages_in": n[Event.SWAP_IN],
            "pages_read_ahead": n[Event.SWAP_AHEAD],
            "refaults": n[Event.REFAULT],
            "refaults_soon": n[Event.REFAULT_SOON],
            "codec": store.codec.name,
            "pages_of_one_word": store.same_filled,
            "pool_pages": store.compressed,
            "pool_bytes": store.pooled,
            "file_pages": len(store.file),
            "file_written": n[Event.SWAP_WRITTEN],
            "file_read": n[Event.SWAP_READ],
        },
    }


def _rows_of_swap(name: str, counts: dict[str, Any] | None) -> list[tuple[str, object]]:
    """Of a run with a swap area."""
    return [(f"{name}: {key.replace('_', ' ')}", value) for key, value in (counts or {}).items()]


def _of_huge_pages(machine: Machine, shown: int) -> dict[str, Any]:
    """What became of huge pages, `shown` of which the program has in the end; nothing without any."""
    n = machine.physical.counters.n
    if machine.physical.huge is None and not n[Event.HUGE_COLLAPSE]:
        return {}
    return {
        "huge_pages": {
            "faults": n[Event.HUGE_FAULT],
            "fallbacks": n[Event.HUGE_FALLBACK],
            "zero_page_faults": n[Event.HUGE_ZERO_PAGE],
            "runs": n[Event.HUGE_RUN],
            "runs_broken": n[Event.RUN_BROKEN],
            "splits": n[Event.HUGE_SPLIT],
            "underused": n[Event.HUGE_UNDERUSED],
            "collapses": n[Event.HUGE_COLLAPSE],
            "collapses_failed": n[Event.HUGE_COLLAPSE_FAILED],
            "scanned": n[Event.HUGE_SCANNED],
            "compactions": n[Event.COMPACTED],
            "compactions_failed": n[Event.COMPACTION_FAILED],
            "pages_migrated": n[Event.MIGRATED_PAGES],
            "page_table_bytes_saved": shown * machine.config.page_size,
        }
    }


def _of_pools(machine: Machine) -> dict[str, Any]:
    """The pools of huge pages that have some."""
    pools = machine.physical.pools
    assert isinstance(pools, Pools), "a machine with Linux has them"
    told = {
        format_size(pool.size): {
            "pages": len(pool),
            "free": free,
            "promised": pool.reserved,
            "surplus": pool.surplus,
        }
        for pool in pools
        if (free := pool.free) or len(pool)
    }
    return {"hugetlb": told} if told else {}


def _rows_of_pools(pools: dict[str, dict[str, int]] | None) -> list[tuple[str, int]]:
    return [
        (f"pool of {size}: {name}", count)
        for size, figures in (pools or {}).items()
        for name, count in figures.items()
    ]


def _of_shared_huge_pages(machine: Machine) -> dict[str, Any]:
    """What became of huge pages of shared memory; nothing where none was wanted or shown."""
    n = machine.physical.counters.n
    figures = {
        "faults": n[Event.SHARED_HUGE],
        "fallbacks": n[Event.SHARED_HUGE_FALLBACK],
        "leaves": n[Event.SHARED_HUGE_MAPPED],
    }
    return {"shared_huge_pages": figures} if any(figures.values()) else {}


def _rows_of_huge_pages(huge: dict[str, int] | None) -> list[tuple[str, int]]:
    return [(f"huge pages: {name.replace('_', ' ')}", count) for name, count in (huge or {}).items()]


def _of_merging(machine: Machine) -> dict[str, Any]:
    """What became of equal pages; nothing where nobody looked for any."""
    n = machine.physical.counters.n
    if machine.kernel.ksm.run == STOP and not n[Event.MERGE_SCANNED]:
        return {}
    return {
        "merging": {
            "scanned": n[Event.MERGE_SCANNED],
            "merged": n[Event.MERGED_PAGES],
            "merged_with_the_zero_page": n[Event.MERGED_ZEROS],
            "unmerged": n[Event.UNMERGED_PAGES],
            **machine.kernel.ksm.figures(),
        }
    }


def _rows_of_merging(merging: dict[str, int] | None) -> list[tuple[str, int]]:
    return [(f"merging: {name.replace('_', ' ')}", count) for name, count in (merging or {}).items()]


def _of_slabs(machine: Machine) -> dict[str, Any]:
    """What kernel objects took."""
    slabs = machine.physical.slabs
    return {
        "slabs": {
            "caches": len(slabs.caches),
            "frames": slabs.used_frames,
            "stack_bytes": slabs.stack_bytes,
            "allocated": sum(cache.allocated for cache in slabs.caches),
            "freed": sum(cache.freed for cache in slabs.caches),
            "from_magazines": sum(cache.magazines.hits for cache in slabs.caches),
            "depot_exchanges": sum(cache.magazines.exchanges for cache in slabs.caches),
            "slabs_made": sum(cache.grown for cache in slabs.caches),
            "slabs_given_back": sum(cache.reaped for cache in slabs.caches),
            "scanned": machine.physical.counters.n[Event.SLABS_SCANNED],
        }
    }


def _of_tlbsan(machine: Machine) -> dict[str, Any]:
    """What the sanitizer saw; without one there is nothing to tell."""
    return {} if machine.tlbsan is None else {"tlbsan": machine.tlbsan.statistics()}


def _rows_of_tlbsan(tlbsan: dict[str, int] | None) -> list[tuple[str, int]]:
    return [(f"tlbsan: {name.replace('_', ' ')}", count) for name, count in (tlbsan or {}).items()]


def _rows_of_cpus(cpus: dict[str, Any] | None) -> list[tuple[str, int]]:
    if cpus is None:
        return []
    shootdowns = cpus["shootdowns"]
    return [
        ("CPUs", cpus["count"]),
        ("  tasks that went to another", cpus["migrations"]),
        *((f"  shootdowns: {name.replace('_', ' ')}", count) for name, count in shootdowns.items()),
    ]


def _rows_of_locks(locks: dict[str, Any] | None) -> list[tuple[str, object]]:
    if locks is None:
        return []
    rows: list[tuple[str, object]] = [("locks, modelled", locks["scheme"])]
    for kind, counted in locks.items():
        if kind != "scheme":
            rows += [(f"  {kind}: {name.replace('_', ' ')}", count) for name, count in counted.items()]
    return rows


def _rows_of_metadata(memory: dict[str, Any]) -> list[tuple[str, object]]:
    tables = memory["page_tables"]
    return [
        ("metadata, B a frame", f"{memory['metadata']['bytes_a_frame']:.2f}"),
        ("page tables, KiB", tables["bytes"] >> 10),
        ("  of all programs", tables["bytes_of_all"] >> 10),
        ("  of small leaves", tables["bytes_with_small_leaves"] >> 10),
        ("  saved by large ones", tables["bytes_saved_by_large_leaves"] >> 10),
        ("TLB entries for all", tables["tlb_entries"]),
        ("  of single pages", tables["tlb_entries_of_pages"]),
    ]


def _by_size(page: int, pages: int, huge: int) -> dict[str, int]:
    """How many leaves of each size show them, if `huge` of them are huge."""
    each = page >> 3
    return {str(page): pages - huge * each} | ({str(page * each): huge} if huge else {})


def collect(
    machine: Machine, wall_seconds: float, injected: list[dict[str, str | int]] | None = None
) -> dict[str, Any]:
    """The statistics of a finished run; call it before `machine.close()`.

    `injected` is what was put into the run on purpose; None where nothing was to be.
    """
    process, kernel = machine.process, machine.kernel
    assert process is not None, "nothing was loaded"
    kernel.charge()
    machine.clock.blocks = kernel.blocks
    n = machine.physical.counters.n
    resident = process.mm.resident()
    buddy = machine.buddy.stats()
    page, huge = machine.config.page_size, len(leaves(process.mm))
    ended = process.ended
    return {
        "program": process.program.path.decode("utf-8", "backslashreplace"),
        "isa": machine.abi.isa,
        "page_table_format": machine.format.name,
        "page_size": page,
        "exit_status": ended.status if ended is not None else None,
        "faults": {event.name.removeprefix("FAULT_").lower(): n[event] for event in _FAULTS},
        "file_pages_mapped_around": n[Event.FILE_AROUND],
        "pages": {
            "by_state": {name: sum(resident[kind] for kind in kinds) for name, kinds in _STATES.items()},
            "by_size": _by_size(page, sum(resident.values()), huge),
        },
        "page_table_pages": process.mm.table.tables,
        "areas": len(process.mm.areas),
        "writable_executable_areas": n[Event.WRITABLE_EXECUTABLE],
        "copied_pages": n[Event.COPIED_PAGES],
        "zeroed_pages": n[Event.ZEROED_PAGES],
        "frames_given_back_to_host": machine.physical.host_memory.returned,
        "pages_written_back": n[Event.WRITTEN_BACK],
        "flushes": {
            "single_page": n[Event.FLUSH_PAGE],
            "full": n[Event.FLUSH_ALL],
            "code": n[Event.FLUSH_CODE],
            "joined_with_others": n[Event.FLUSH_JOINED],
        },
        "system_calls": kernel.calls_by_name(),
        "memory": {
            "ram_bytes": machine.config.ram,
            "peak_bytes": (buddy.total - buddy.lowest_free) * page,
            "metadata": per_frame(machine.physical),
            "page_tables": page_tables(machine.physical, process.mm),
        },
        **_of_cpus(machine),
        **_of_tags(machine),
        **_of_split(machine),
        **_of_reclaim(machine),
        **_of_huge_pages(machine, huge),
        **_of_shared_huge_pages(machine),
        **_of_devices(machine),
        **_of_pools(machine),
        **_of_merging(machine),
        **_of_slabs(machine),
        **_of_tlbsan(machine),
        **({} if injected is None else {"injected": injected}),
        "blocks_executed": kernel.blocks,
        "virtual_ns": machine.clock.total_ns,
        "wall_seconds": round(wall_seconds, 6),
    }


def as_json(statistics: dict[str, Any]) -> str:
    """The data as indented JSON, keys in their own order, with a final newline."""
    import json  # only needed when somebody asks for it

    return json.dumps(statistics, indent=2) + "\n"


def as_table(statistics: dict[str, Any]) -> Table:
    """The data for a terminal. Rows of zeros are left out."""
    from rich.table import Table  # heavy, and only needed when somebody looks

    partial = ", so far" if statistics["exit_status"] is None else ""
    table = Table(title=f"{statistics['program']} ({statistics['isa']}){partial}", show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    calls = statistics["system_calls"]
    rows: list[tuple[str, object]] = [
        ("page size, KiB", statistics["page_size"] >> 10),
        *((f"faults: {name.replace('_', ' ')}", count) for name, count in statistics["faults"].items()),
        ("file pages mapped around faults", statistics["file_pages_mapped_around"]),
        *((f"pages: {name}", count) for name, count in statistics["pages"]["by_state"].items()),
        ("page-table pages", statistics["page_table_pages"]),
        ("areas", statistics["areas"]),
        ("writable and executable areas", statistics["writable_executable_areas"]),
        ("pages copied", statistics["copied_pages"]),
        ("used frames cleared", statistics["zeroed_pages"]),
        ("free frames given back to the host", statistics["frames_given_back_to_host"]),
        ("pages written back", statistics["pages_written_back"]),
        *((f"flushes: {name.replace('_', ' ')}", count) for name, count in statistics["flushes"].items()),
        *_rows_of_cpus(statistics.get("cpus")),
        *_rows_of_locks(statistics.get("locks_modelled")),
        *_rows_of_tags(statistics.get("tags")),
        *_rows_of_split(statistics.get("kpti")),
        *_rows_of_swap("reclaim", statistics.get("reclaim")),
        *_rows_of_swap("page cache", statistics.get("page_cache")),
        *_rows_of_swap("swap", statistics.get("swap")),
        *_rows_of_huge_pages(statistics.get("huge_pages")),
        *_rows_of_swap("shared huge pages", statistics.get("shared_huge_pages")),
        *_rows_of_devices(statistics.get("devices")),
        *_rows_of_pools(statistics.get("hugetlb")),
        *_rows_of_merging(statistics.get("merging")),
        *_rows_of_tlbsan(statistics.get("tlbsan")),
        ("system calls", sum(calls.values())),
        *((f"  {name}", count) for name, count in sorted(calls.items(), key=lambda kv: (-kv[1], kv[0]))[:8]),
        ("peak memory, KiB", statistics["memory"]["peak_bytes"] >> 10),
        *_rows_of_metadata(statistics["memory"]),
        ("blocks executed", statistics["blocks_executed"]),
        ("virtual time, us", statistics["virtual_ns"] // 1000),
    ]
    for name, value in rows:
        if value:
            table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    table.add_row("wall time, ms", f"{statistics['wall_seconds'] * 1000:.1f}")
    return table
