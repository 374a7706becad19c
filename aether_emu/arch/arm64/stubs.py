"""EL1 code that the machine keeps in its supervisor text page, as bytes with their assembly.

A test assembles each source and compares. Every stub ends in `wfi`, which ends a run of the engine.
"""

from __future__ import annotations

from aether_emu.records import dataclass


@dataclass(frozen=True, slots=True)
class Stub:
    """One routine: where it sits in the text page, its source, its bytes."""

    offset: int
    source: str
    code: bytes


LOAD = Stub(0x00, "ldr x0, [x1]; wfi", bytes.fromhex("200040f97f2003d5"))
STORE = Stub(0x10, "str x0, [x1]; wfi", bytes.fromhex("200000f97f2003d5"))
LOAD_UNPRIVILEGED = Stub(0x20, "ldtr x0, [x1]; wfi", bytes.fromhex("200840f87f2003d5"))
JUMP = Stub(0x30, "br x1", bytes.fromhex("20001fd6"))

ALL: tuple[Stub, ...] = (LOAD, STORE, LOAD_UNPRIVILEGED, JUMP)
