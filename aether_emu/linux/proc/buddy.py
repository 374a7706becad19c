"""/proc/buddyinfo: how long the rows of free frames are, by zone (proc_buddyinfo(5))."""

from __future__ import annotations

from collections.abc import Sequence

from aether_emu.linux.kernel import Kernel

LARGEST_ORDER = 10
"""Linux has no longer blocks: here they count as several of these."""


def zone_lines(kernel: Kernel, texts: Sequence[str]) -> bytes:
    """A line with each zone's text, as Linux begins them."""
    zones = kernel.physical.buddy.stats().zones
    lines = (f"Node 0, zone {zone.name:>8} {text}\n" for zone, text in zip(zones, texts, strict=True))
    return "".join(lines).encode()


def buddyinfo(kernel: Kernel) -> bytes:
    """Free blocks of each order. Frames that a CPU has ready count as blocks of one."""
    texts = []
    for zone in kernel.physical.buddy.stats().zones:
        counts = list(zone.blocks[: LARGEST_ORDER + 1])
        counts[0] += zone.ready
        longer = enumerate(zone.blocks[LARGEST_ORDER + 1 :], 1)
        counts[LARGEST_ORDER] += sum(count << more for more, count in longer)
        texts.append("".join(f"{count:6d} " for count in counts))
    return zone_lines(kernel, texts)
