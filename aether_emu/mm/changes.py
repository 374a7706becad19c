"""What can happen to a range of an address space, for whoever watches it (`Physical.on_mapping`)."""

from __future__ import annotations

from enum import Enum


class Change(Enum):
    """What became of the range. One call can make several: mremap maps, moves and unmaps."""

    MAPPED = "mapped"
    UNMAPPED = "unmapped"
    PROTECTED = "protected"  # another protection
    MARKED = "marked"  # other flags: locked, advice that areas keep
    GROWN = "grown"  # the stack, down to the start of the range
