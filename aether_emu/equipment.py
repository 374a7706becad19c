"""What a machine has beyond a computer and a kernel, as its parameters say.

    before the computer    `allocator`, `flusher`: which ones it is made with
    `equip_memory`         pools of huge pages, the swap area, huge pages at faults, compaction
    `equip_kernel`         the kernel's own objects in RAM, modelled locks, devices
    `begin_scans`          who works in the background: kswapd, khugepaged, the scan for equal pages

Each raises ConfigError for a parameter that the machine has no room for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aether_emu.computer import Computer
from aether_emu.config import Config
from aether_emu.errors import ConfigError, OutOfFrames
from aether_emu.linux.kernel import Kernel
from aether_emu.linux.slabs import open_slabs
from aether_emu.linux.task.khugepaged import Khugepaged
from aether_emu.linux.task.ksm import Ksm
from aether_emu.linux.task.kswapd import Kswapd
from aether_emu.mm.collapse import Scan
from aether_emu.mm.collapse_terms import Terms
from aether_emu.mm.compaction import Compaction
from aether_emu.mm.frames.buddy import Buddy
from aether_emu.mm.huge_pools import Pools
from aether_emu.mm.hugepage import HugePages, huge_order
from aether_emu.mm.merging import MergeScan
from aether_emu.mm.physical import Physical, Reclaiming
from aether_emu.mm.room import Room
from aether_emu.mm.shared_huge import SharedHugePages
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.swap.area import SwapArea
from aether_emu.mm.tlb import Tlb
from aether_emu.random import Streams
from aether_emu.rules import format_size, pool_sizes, run_sizes

if TYPE_CHECKING:
    from aether_emu.linux.devices.board import Board

_ROOM_FOR_ZEROS = 32  # huge pages that RAM has at least where one of them is kept for zeros


# ---- before the computer


def allocator(config: Config) -> Callable[..., Buddy]:
    """What hands out frames; one that counts where locks are modelled."""
    if config.locks == "none":
        return Buddy
    if config.real_time:
        raise ConfigError("locks", config.locks, "none with real_time, whose clock nothing advances")
    from aether_emu.mm.frames.locked import CountedBuddy, SharedBuddy  # noqa: PLC0415  # few runs want any

    return SharedBuddy if config.locks == "space" else CountedBuddy


def flusher(config: Config, streams: Streams) -> Callable[..., Tlb]:
    """What flushes the CPUs; with the faults that the parameters ask for."""
    if config.tlb_fault == "none":
        return Tlb
    from aether_emu.mm.tlb_faults import FaultyTlb  # noqa: PLC0415  # few runs want any

    one_in = streams.stream("tlb_fault").one_in
    return functools.partial(FaultyTlb, config.tlb_fault, config.tlb_fault_one_in, one_in)


# ---- memory


def equip_memory(computer: Computer[Any], config: Config) -> None:
    """Huge pages that programs reserve, and get at faults; where pages go when memory is short."""
    physical = computer.physical
    _fill_pools(computer, config)
    physical.swappiness = config.swappiness
    if config.swap:
        _connect_swap(computer, config)
    if config.page_cache == "counted":
        from aether_emu.policy.reclaim import count_files  # noqa: PLC0415  # few runs have it

        count_files(physical, config)
    physical.compaction = Compaction(physical)
    orders, defrag, page = _run_orders(config), config.thp_defrag, config.page_size
    zero_page = config.ram >= _ROOM_FOR_ZEROS * page * (page // 8)
    HugePages(
        physical, computer.format, setting=config.thp, orders=orders, zero_page=zero_page, compacts=defrag
    )
    physical.shared_huge = SharedHugePages(
        physical, computer.format, setting=config.shmem_thp, orders=orders, compacts=defrag
    )


def _run_orders(config: Config) -> tuple[int, ...]:
    """The orders of the runs of pages that a fault brings."""
    return tuple((size // config.page_size).bit_length() - 1 for size in run_sizes(config.mthp))


def _fill_pools(computer: Computer[Any], config: Config) -> None:
    """Take the huge pages out of RAM that programs may ask for."""
    pools = computer.physical.pools = Pools(computer.physical, computer.format)
    for size, count in pool_sizes(config.hugepages).items():
        pool = pools.of_size(size)
        if pool is None:
            there = " and ".join(format_size(each.size) for each in pools)
            raise ConfigError("hugepages", config.hugepages, f"pages of {there}, which tables have")
        if (fits := pool.resize(count)) < count:
            room = f"{format_size(config.ram)} of RAM has room for {fits} of {format_size(size)}"
            raise ConfigError("hugepages", config.hugepages, f"fewer pages: {room}")


def _connect_swap(computer: Computer[Any], config: Config) -> None:
    """The area to which pages go, and who takes them there."""
    from aether_emu.policy.reclaim import connect  # noqa: PLC0415  # few runs have any

    try:
        connect(computer.physical, computer.format, config)
    except BaseException:
        computer.abandon()
        raise


# ---- the kernel


def equip_kernel(kernel: Kernel, computer: Computer[Any], kernel_base: int) -> Board | None:
    """Objects in RAM, and locks. Returns the devices that programs map, if there are any."""
    config = kernel.config
    try:
        open_slabs(kernel, kernel_base)
    except OutOfFrames as error:
        computer.abandon()
        raise ConfigError("ram", config.ram, "enough for the kernel's own objects") from error
    if config.locks != "none":
        kernel.model_locks(computer.percpu)
    if config.framebuffer == "none" and config.devices == "none":
        return None
    from aether_emu.linux.devices.board import Board  # noqa: PLC0415  # few runs have any

    try:
        return Board(kernel, config, computer.register_base)
    except OutOfFrames as error:
        need = f"fewer pixels, with {format_size(config.ram)} of RAM"
        raise ConfigError("framebuffer", config.framebuffer, need) from error


# ---- in the background


def begin_scans(kernel: Kernel, computer: Computer[Any], spaces: Callable[[], list[AddressSpace]]) -> None:
    """Who makes room, huge pages and equal pages one by and by; `spaces` are those of living processes."""
    config, physical = kernel.config, kernel.physical
    kernel.khugepaged = _khugepaged(physical, config, huge_order(computer.format), spaces)
    _keep_room(kernel, computer)
    scan = physical.merge_scan = MergeScan(physical, config.ksm_pages, zero_pages=config.ksm_zero_pages)
    kernel.ksm = Ksm(scan, config.ksm_sleep, spaces, runs=config.ksm)
    if config.real_time:
        kernel.ksm.of_host = kernel.time_now


def _khugepaged(
    physical: Physical, config: Config, order: int, spaces: Callable[[], list[AddressSpace]]
) -> Khugepaged:
    """What makes huge pages of small ones by and by, with Linux's settings unless others are chosen."""
    pages = 1 << order
    absent = pages - 1 if config.khugepaged_none is None else config.khugepaged_none
    shared = pages // 2 if config.khugepaged_shared is None else config.khugepaged_shared
    terms = Terms(absent, shared, pages // 8, used=True, moves=config.thp_defrag != "never")
    return Khugepaged(Scan(physical, terms, config.khugepaged_pages), config.khugepaged_sleep, spaces)


def _keep_room(kernel: Kernel, computer: Computer[Any]) -> None:
    """Let whoever makes room keep the watermarks, and be served in the background, as parameters say."""
    config, physical = kernel.config, kernel.physical
    if config.kswapd:
        kernel.kswapd = Kswapd(physical.counters.n, kernel.interrupt_turn, kernel.without_pressure)

    def kept(room: Reclaiming) -> Reclaiming:
        assert isinstance(room, Room)
        room.set_marks(config.min_free, config.watermark_scale)
        if kernel.kswapd is not None:
            kernel.kswapd.serve(room)
        return room

    def new_swap() -> SwapArea:
        _connect_swap(computer, config)
        assert physical.reclaim is not None and physical.swap is not None, "they are connected"
        kernel.attend_to_swap()
        physical.swap.slabs = physical.slabs
        kept(physical.reclaim)
        return physical.swap

    physical.new_room, physical.new_swap = lambda physical: kept(Room(physical)), new_swap
    if physical.reclaim is not None:
        kept(physical.reclaim)
