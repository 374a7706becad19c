"""/sys: what the C library, run-times and tools ask of a machine: its processors, memory and loopback.

All processors are cores of one package, and all memory is near them. It is sysfs(5) as far as there is
something to tell: no caches, no disks, no control groups.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Mapping
from functools import partial

from aether_emu.errors import Refused
from aether_emu.linux.files.proc import Provided
from aether_emu.linux.files.synthetic import Directory, Link, Text
from aether_emu.linux.kernel import Kernel
from aether_emu.linux.proc.buddy import LARGEST_ORDER, zone_lines
from aether_emu.linux.proc.cpus import as_list, as_mask
from aether_emu.linux.proc.pools import pool_texts
from aether_emu.linux.proc.transparent import transparent_texts
from aether_emu.linux.task.process import Process
from aether_emu.mm.merging import duplicates

_SIZE = 4096
"""What sysfs says of the size of each file."""
_CPU, _NODE, _HUGE = "devices/system/cpu", "devices/system/node", "kernel/mm/transparent_hugepage"
_KSM, _WRITABLE = "kernel/mm/ksm", stat.S_IFREG | 0o644
_LOOPBACK = "devices/virtual/net/lo"


def _topology(number: int, count: int) -> dict[str, str]:
    """What a processor's folder `topology` has."""
    own, all_of_them = 1 << number, (1 << count) - 1
    sets = {
        "core_cpus": own,
        "thread_siblings": own,
        "core_siblings": all_of_them,
        "package_cpus": all_of_them,
    }
    return {
        "core_id": str(number),
        "physical_package_id": "0",
        **{name: as_mask(mask, count) for name, mask in sets.items()},
        **{f"{name}_list": as_list(mask) for name, mask in sets.items()},
    }


def system_texts(process: Process) -> Mapping[str, Provided]:
    """What /sys tells, by paths below it."""
    kernel = process.kernel
    count = len(kernel.cpus)
    everyone = as_list((1 << count) - 1)
    fixed = {
        **{f"{_CPU}/{name}": everyone for name in ("online", "possible", "present")},
        f"{_CPU}/kernel_max": str(count - 1),
        **{f"{_CPU}/{name}": "" for name in ("offline", "isolated")},
        **{
            f"{_CPU}/cpu{number}/topology/{name}": value
            for number in range(count)
            for name, value in _topology(number, count).items()
        },
        **{
            f"{_NODE}/{name}": "0"
            for name in ("online", "possible", "has_cpu", "has_normal_memory", "has_memory")
        },
        f"{_NODE}/node0/cpulist": everyone,
        f"{_NODE}/node0/cpumap": as_mask((1 << count) - 1, count),
        f"{_NODE}/node0/distance": "10",
        "kernel/address_bits": "64",
        "kernel/cpu_byteorder": "little",
        **{f"{_LOOPBACK}/{name}": value for name, value in _INTERFACE.items()},
    }
    return {
        **{path: _text(value) for path, value in fixed.items()},
        **{f"kernel/mm/hugepages/{path}": text for path, text in pool_texts(kernel).items()},
        **_merging(kernel),
        **{f"{_HUGE}/{name}": text for name, text in transparent_texts(kernel).items()},
        f"{_NODE}/node0/meminfo": Text(lambda: _meminfo(kernel), size=_SIZE),
        "kernel/debug/extfrag/unusable_index": Text(lambda: _unusable(kernel), size=_SIZE),
        "class/net/lo": Link(lambda: b"../../devices/virtual/net/lo"),
        **{name: Directory(dict) for name in ("block", "fs")},
    }


def _merging(kernel: Kernel) -> dict[str, Text]:
    """The folder of what merges equal pages (Linux: mm/ksm.c). Root sets the first five."""
    ksm = kernel.ksm
    settings: dict[str, tuple[Callable[[], int], Callable[[int, int], None]]] = {
        "run": (lambda: ksm.run, ksm.set_run),
        "pages_to_scan": (lambda: ksm.scan.pages, ksm.set_pages),
        "sleep_millisecs": (lambda: ksm.sleep, ksm.set_sleep),
        "use_zero_pages": (lambda: int(ksm.scan.zero_pages), ksm.set_zero_pages),
        "max_page_sharing": (lambda: ksm.scan.most, ksm.set_most),
    }

    def accept(change: Callable[[int, int], None], data: bytes) -> int:
        text = data.strip()
        if not text.isdigit():
            raise Refused(errno.EINVAL, f"{data!r} is no number")
        change(int(text), kernel.time_now())
        return len(data)

    def figure(name: str) -> Callable[[], bytes]:
        return lambda: b"%d\n" % ksm.figures()[name]

    return {
        **{
            f"{_KSM}/{name}": Text(partial(_number, value), _WRITABLE, partial(accept, change), size=_SIZE)
            for name, (value, change) in settings.items()
        },
        **{f"{_KSM}/{name}": Text(figure(name), size=_SIZE) for name in ksm.figures()},
        f"{_KSM}/stable_node_chains": Text(lambda: b"%d\n" % duplicates(kernel.physical)[0], size=_SIZE),
        f"{_KSM}/stable_node_dups": Text(lambda: b"%d\n" % duplicates(kernel.physical)[1], size=_SIZE),
    }


def _number(value: Callable[[], int]) -> bytes:
    return b"%d\n" % value()


_INTERFACE = {
    **{"address": "00:00:00:00:00:00", "broadcast": "00:00:00:00:00:00", "addr_len": "6"},
    **{"ifindex": "1", "iflink": "1", "type": "772", "flags": "0x9", "mtu": "65536", "carrier": "1"},
    **{"operstate": "unknown", "tx_queue_len": "1000", "dormant": "0"},
}
"""Of the loopback."""


def _text(value: str) -> Text:
    line = f"{value}\n".encode()
    return Text(lambda: line, size=_SIZE)


def _unusable(kernel: Kernel) -> bytes:
    """For each zone and order: which share of its free frames lies in blocks that are too short."""
    zones = kernel.physical.buddy.stats().zones
    rows = ([f"{zone.unusable(order):.3f}" for order in range(LARGEST_ORDER + 1)] for zone in zones)
    return zone_lines(kernel, [" ".join(row) for row in rows])


def _meminfo(kernel: Kernel) -> bytes:
    """As far as a node's pages are told apart here."""
    buddy, kib = kernel.physical.buddy, kernel.config.page_size >> 10
    total, free = buddy.total * kib, buddy.free_frames * kib
    rows = (("MemTotal", total), ("MemFree", free), ("MemUsed", total - free))
    return "".join(f"Node 0 {name + ':':<15}{value:8d} kB\n" for name, value in rows).encode()
