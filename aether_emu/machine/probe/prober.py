"""What trying an access on a CPU gives: the question `verify` asks of every MMU it can reach.

A prober is a CPU that does nothing but single accesses, many of them in one entry of the engine,
through page tables that somebody else put into its memory. Its own code and lists stand in a second
range of physical memory, far above, and in two entries of the root that the tables leave to it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

from aether_emu.records import dataclass

Words = np.ndarray[Any, np.dtype[np.uint64]]
Numbers = np.ndarray[Any, np.dtype[np.int64]]

BATCH = 2048
"""The most accesses in one entry."""

LANDING = 0x800
"""Offset in a page where a fetch may land: code there returns to the prober (`landing` of each)."""


class Operation(IntEnum):
    """The instruction that makes the access. Each touches 8 bytes but FETCH."""

    READ = 0
    WRITE = 1
    FETCH = 2
    MODIFY = 3  # locked read-modify-write
    CROSS_READ = 4  # the same at 4 bytes in front of the page: its second half is in the page
    CROSS_WRITE = 5
    UNPRIVILEGED_READ = 6  # by the supervisor with a user's rights (Arm's ldtr and sttr)
    UNPRIVILEGED_WRITE = 7
    INVALIDATE = 8  # no access: the supervisor drops what the TLB holds for the page
    STORE = 9  # as WRITE, of the value that `run` is given for it
    INVALIDATE_ALL = 10  # no access: the supervisor drops what the TLB holds, by writing CR3 or by tlbi


CROSSING = 4
"""How far in front of its page a crossing access begins, in bytes."""


class Happened(IntEnum):
    """What became of an access."""

    DONE = 0
    FAULT = 1  # a page fault or an abort by the MMU
    OTHER = 2  # another exception: the ISA's number is in `code`
    HOLE = 3  # it translated to an address without memory


@dataclass(frozen=True, slots=True)
class Attempts:
    """One element an access. `code` is x86's error code or Arm's syndrome; `address` the fault address.

    For a HOLE `address` is physical. `value` is what a READ or MODIFY that was DONE loaded. WRITE stores
    the address that it accesses, MODIFY adds it.
    """

    happened: Numbers
    code: Words
    address: Words
    value: Words


Memory = Words | list[tuple[int, Words]]
"""Words from physical 0 on, or several ranges of them, each with its physical start."""


def placed(memory: Memory) -> list[tuple[int, Words]]:
    """The ranges that a prober maps."""
    return memory if isinstance(memory, list) else [(0, memory)]
