"""What /proc and /sys tell of pools of huge pages (hugetlb), and how root makes them larger and smaller."""

from __future__ import annotations

import errno
import stat as modes
from collections.abc import Callable, Mapping
from functools import partial

from aether_emu.errors import Refused, shown
from aether_emu.linux.files.synthetic import Text
from aether_emu.linux.kernel import Kernel
from aether_emu.mm.huge_pools import Pool, Pools

_SIZE = 4096
_LONGEST = 20  # digits of a number that is looked at


def _pools(kernel: Kernel) -> Pools:
    pools = kernel.physical.pools
    assert isinstance(pools, Pools), "a machine with Linux has them"
    return pools


def meminfo(kernel: Kernel) -> str:
    """The lines at the end of /proc/meminfo: of the default size, and what all pools take."""
    pools = _pools(kernel)
    default, taken = pools.default, sum(len(pool) * pool.size for pool in pools)
    if default is None:
        return ""
    free = default.free  # lets go of surplus pages that are free
    rows = (("Total", len(default)), ("Free", free), ("Rsvd", default.reserved), ("Surp", default.surplus))
    text = "".join(f"HugePages_{name + ':':<7}{value:7d}\n" for name, value in rows)
    sizes = (("Hugepagesize", default.size), ("Hugetlb", taken))
    return text + "".join(f"{name + ':':<16}{value >> 10:8d} kB\n" for name, value in sizes)


def default_size(kernel: Kernel) -> Text:
    """/proc/sys/vm/nr_hugepages, of the default size."""
    pool = _pools(kernel).default
    return _writable(pool) if pool is not None else Text(lambda: b"0\n")


def default_overcommit(kernel: Kernel) -> Text:
    """/proc/sys/vm/nr_overcommit_hugepages, of the default size."""
    pool = _pools(kernel).default
    return _overcommit(pool) if pool is not None else Text(lambda: b"0\n")


def segment_group(kernel: Kernel) -> Text:
    """/proc/sys/vm/hugetlb_shm_group: whose members may have segments of huge pages."""
    pools = _pools(kernel)

    def change(data: bytes) -> int:
        pools.segment_group = _number(data)
        return len(data)

    return Text(lambda: b"%d\n" % pools.segment_group, modes.S_IFREG | 0o644, change)


def pool_texts(kernel: Kernel) -> Mapping[str, Text]:
    """What is below /sys/kernel/mm/hugepages."""
    found: dict[str, Text] = {}
    for pool in _pools(kernel):
        folder = f"hugepages-{pool.size >> 10}kB"
        values: dict[str, Callable[[Pool], int]] = {
            "free_hugepages": lambda pool: pool.free,
            "resv_hugepages": lambda pool: pool.reserved,
            "surplus_hugepages": lambda pool: pool.surplus,
        }
        for name, value in values.items():
            found[f"{folder}/{name}"] = Text(partial(_line, pool, value), size=_SIZE)
        found[f"{folder}/nr_hugepages"] = _writable(pool, size=_SIZE)
        found[f"{folder}/nr_overcommit_hugepages"] = _overcommit(pool, size=_SIZE)
    return found


def _line(pool: Pool, value: Callable[[Pool], int]) -> bytes:
    assert pool.free >= 0, "to be asked lets surplus pages go"
    return b"%d\n" % value(pool)


def _writable(pool: Pool, *, size: int = 0) -> Text:
    """How many pages a pool has, and is to have: as many as memory has room for."""
    return Text(partial(_line, pool, len), modes.S_IFREG | 0o644, partial(_resize, pool), size)


def _overcommit(pool: Pool, *, size: int = 0) -> Text:
    """How many pages programs may have beyond the pool's size, while memory has room for them."""
    value = partial(_line, pool, lambda pool: pool.overcommit)
    return Text(value, modes.S_IFREG | 0o644, partial(_set_overcommit, pool), size)


def _set_overcommit(pool: Pool, data: bytes) -> int:
    pool.overcommit = _number(data)
    return len(data)


def _resize(pool: Pool, data: bytes) -> int:
    pool.resize(_number(data))
    return len(data)


def _number(data: bytes) -> int:
    text = data.strip(b" \t\n\0")
    if not text.isdigit() or len(text) > _LONGEST:
        raise Refused(errno.EINVAL, f"a pool has a number of pages, not {shown(data)}")
    return int(text)
