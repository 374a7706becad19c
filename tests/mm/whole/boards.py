"""The machines that are walked on: both ISAs, every granule, little RAM and much to keep in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.mm.whole.play import Play

_WITH_HUGE_PAGES: dict[str, Any] = {
    "hugepages": "2M=1",
    "pooled": 2 << 20,
    "thp": "always",
    "mthp": "64K",
    "khugepaged_sleep": 2,
}
_ROOM = ("6M", "12M", "8M")  # a third of the walks has room for huge pages that are made of small ones
KINDS: dict[str, dict[str, Any]] = {
    "x86_64": {"isa": "x86_64", "pages": 1536, "huge": 512, **_WITH_HUGE_PAGES},
    "arm64": {"isa": "arm64", "pages": 1536, "huge": 512, **_WITH_HUGE_PAGES},
    # A huge page has 32M and 512M there: more than all memory.
    "arm64-16K": {"isa": "arm64", "pages": 256, "huge": 64, "page_size": "16K", "ram": "3M"},
    "arm64-64K": {"isa": "arm64", "pages": 256, "huge": 64, "page_size": "64K", "ram": "10M"},
}
"""By name: the pages of the window, how many of them are stored to in bulk, and the machine's options."""


def play_of(kind: str, folder: Path, seed: int, *, checks_every: int = 10) -> Play:
    """A play on one kind of machine; the policy of reclaim, and RAM for huge pages, change with the seed."""
    options = {"ram": _ROOM[seed % len(_ROOM)], **KINDS[kind]}
    return Play(
        **options,
        folder=folder,
        checks_every=checks_every,
        pinned=seed % 4 > 0,
        aperture="8M",
        swap="64M",
        cpus=2,
        page_cache="outside" if seed % 3 == 1 else "counted",
        ksm=True,
        ksm_sleep=1,
        tlbsan=True,
        reclaim=("mglru", "clock")[seed % 2],
        seed=seed,
    )
