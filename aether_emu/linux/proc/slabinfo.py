"""/proc/slabinfo: the caches of kernel objects (slabinfo(5), version 2.1)."""

from __future__ import annotations

from aether_emu.linux.kernel import Kernel

_HEAD = """slabinfo - version: 2.1
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> \
<batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>
"""


def slabinfo(kernel: Kernel) -> bytes:
    """A line for each cache, the youngest first. Objects in magazines are not active; nothing is tunable."""
    lines = (
        f"{row.name:<17} {row.active:6d} {row.objects:6d} {row.size:6d} {row.per_slab:4d} "
        f"{row.frames_per_slab:4d} : tunables    0    0    0 : slabdata {row.active_slabs:6d} {row.slabs:6d} "
        f"     0\n"
        for row in reversed(kernel.physical.slabs.rows())
    )
    return (_HEAD + "".join(lines)).encode()
