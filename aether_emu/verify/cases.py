"""Cases of a verification, and the answers that the specification and an MMU give to them.

A `Chunk` holds many cases that share an operation, a privilege and the control bits, so that they can
be tried in few entries of a CPU. An answer has the same words whoever gives it: faults with the ISA's
own code, holes where an access translated to an address without memory, and the entries afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aether_emu.machine.prober import Operation

Words = np.ndarray[Any, np.dtype[np.uint64]]
Numbers = np.ndarray[Any, np.dtype[np.int64]]
Bits = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Cases of one kind. `leaf` is the level where each case's page is meant to be.

    `words[k]` are the entries of level k+1 without the path's own address, which is laid over them by
    exclusive or: a bit set there is a bit of the address that is wrong on purpose. `features` names
    what is under test, `feature` is each case's index into it. `stray` is laid over the accessed
    addresses in the same way.
    """

    leaf: Numbers
    words: list[Words]
    operation: Operation
    user: bool
    controls: Mapping[str, int]
    features: tuple[str, ...]
    feature: Numbers
    stray: int = 0

    @property
    def size(self) -> int:
        return int(self.leaf.size)


@dataclass(slots=True)
class Answers:
    """One element a case. `code` and `where` (the fault address) are 0 without a fault.

    `physical` is where the access went, in a hole or not; `after[k]` the entries of level k+1 afterwards.
    `loose[k]` are bits of those that the architecture leaves open. `astray` marks cases whose altered
    entries led into the memory of other cases' tables: they say nothing. Who is `blind` cannot tell where
    an access that went through to memory went.
    """

    fault: Bits
    code: Words
    where: Words
    hole: Bits
    physical: Words
    after: list[Words]
    loose: list[Words] = field(default_factory=list)
    astray: Bits | None = None
    blind: bool = False


def differing(expected: Answers, observed: Answers) -> Bits:
    """The cases whose answers are not the same."""
    different = expected.fault != observed.fault
    different |= expected.fault & ((expected.code != observed.code) | (expected.where != observed.where))
    elsewhere = expected.physical != observed.physical
    if expected.blind or observed.blind:
        elsewhere &= expected.hole
    different |= ~expected.fault & ((expected.hole != observed.hole) | elsewhere)
    for one, other, loose in zip(expected.after, observed.after, expected.loose, strict=True):
        different |= (one ^ other) & ~loose != 0
    return np.asarray(different)
