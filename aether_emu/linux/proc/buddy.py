"""/proc/buddyinfo, /proc/pagetypeinfo: how long the rows of free frames are, by zone (proc_buddyinfo(5))."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aether_emu.linux.kernel import Kernel

LARGEST_ORDER = 10
"""Linux has no longer blocks: here they count as several of these."""


_MOVABLE = "Movable"
_TYPES = ("Unmovable", _MOVABLE, "Reclaimable", "HighAtomic", "Isolate")


def zone_lines(kernel: Kernel, texts: Sequence[str]) -> bytes:
    """A line with each zone's text, as Linux begins them."""
    zones = kernel.physical.buddy.stats().zones
    lines = (f"Node 0, zone {zone.name:>8} {text}\n" for zone, text in zip(zones, texts, strict=True))
    return "".join(lines).encode()


def buddyinfo(kernel: Kernel) -> bytes:
    """Free blocks of each order. Frames that a CPU has ready count as blocks of one."""
    rows = ("".join(f"{count:6d} " for count in counts) for counts in _free_blocks(kernel))
    return zone_lines(kernel, list(rows))


def _free_blocks(kernel: Kernel) -> Iterator[list[int]]:
    """How many there are of each order, for each zone."""
    for zone in kernel.physical.buddy.stats().zones:
        counts = list(zone.blocks[: LARGEST_ORDER + 1])
        counts[0] += zone.ready
        longer = enumerate(zone.blocks[LARGEST_ORDER + 1 :], 1)
        counts[LARGEST_ORDER] += sum(count << more for more, count in longer)
        yield counts


def pagetypeinfo(kernel: Kernel, order: int) -> bytes:
    """The same by what the blocks are kept for, of which the zones have so many of `order`.

    Nothing is kept apart here: all that is free counts as movable.
    """
    buddy = kernel.physical.buddy
    zones = list(zip(buddy.stats().zones, buddy.zones, _free_blocks(kernel), strict=True))
    orders = "".join(f"{each:6d} " for each in range(LARGEST_ORDER + 1))
    lines = [f"Page block order: {order}", f"Pages per block:  {1 << order}", ""]
    lines.append(f"{'Free pages count per migrate type at order':<43}{orders}")
    for zone, _bounds, counts in zones:
        for kind in _TYPES:
            row = "".join(f"{count if kind == _MOVABLE else 0:6d} " for count in counts)
            lines.append(f"Node {0:4d}, zone {zone.name:>8}, type {kind:>12} {row}")
    lines += ["", f"{'Number of blocks type':<23}" + "".join(f"{kind:>12} " for kind in _TYPES)]
    for zone, (first, end), _counts in zones:
        blocks = -(-end >> order) - (first >> order)
        row = "".join(f"{blocks if kind == _MOVABLE else 0:12d} " for kind in _TYPES)
        lines.append(f"Node 0, zone {zone.name:>8} {row}")
    return ("\n".join(lines) + "\n").encode()
