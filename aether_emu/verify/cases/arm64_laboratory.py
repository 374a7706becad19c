"""ARM64 stage 1 under verification: each granule and width of addresses, either half, by Unicorn's MMU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aether_emu.machine.probe.arm64 import LANDING_CODE, ArmProber
from aether_emu.machine.probe.prober import CROSSING, LANDING, Attempts, Operation
from aether_emu.verify.cases.cases import Answers, Bits, Chunk, Numbers, Words
from aether_emu.verify.cases.laboratory import CROSSES, MEMORY, Laboratory, Predicted, first_of
from aether_emu.verify.cases.paths import Geometry, Paths
from aether_emu.verify.spec import arm64 as spec

_ACCESS = {
    Operation.READ: spec.Access.READ,
    Operation.WRITE: spec.Access.WRITE,
    Operation.FETCH: spec.Access.FETCH,
    Operation.MODIFY: spec.Access.WRITE,
    Operation.CROSS_READ: spec.Access.READ,
    Operation.CROSS_WRITE: spec.Access.WRITE,
    Operation.UNPRIVILEGED_READ: spec.Access.READ,
    Operation.UNPRIVILEGED_WRITE: spec.Access.WRITE,
}
_UNPRIVILEGED = (Operation.UNPRIVILEGED_READ, Operation.UNPRIVILEGED_WRITE)
_DEFAULT = {"wxn": 0, "pan": 0, "uao": 0, "tbi": 0, "epd": 0, "hpd": 0}
_DATA, _FETCH_CLASS = 0x24, 0x20  # exception classes of aborts from a lower level; one more from the same
_WRITE_NOT_READ = 1 << 6
_DOUBLE_WORD = np.uint64(((1 << 64) - 1) ^ 7)
_ENGINE_BLOCKS = (0, 1, 2)
_COUNTS = {12: 200, 14: 200, 16: 60}
"""Paths by granule: as many as tables of that size have room for."""


@dataclass(frozen=True, slots=True)
class _Quirks:
    """How an MMU departs from the architecture."""

    blocks: tuple[int, ...] | None = None  # levels with block descriptors; None: the granule's
    low_bits: bool = False  # address bits that are RES0 in a block are laid over the address


_ARCHITECTURE = _Quirks()


class ArmLaboratory(Laboratory):
    """`controls` of its chunks: wxn, pan, uao, and tbi, epd, hpd of the half under test."""

    isa = "arm64"
    operations = tuple(_ACCESS)
    neighbour = 0x743  # valid page, AF, inner shareable, AP=01: read and written at both levels, executable

    def __init__(
        self, granule: int = 4096, virtual_bits: int = 48, *, upper: bool = False, live_state: bool = True
    ) -> None:
        shift = granule.bit_length() - 1
        stride = shift - 3
        shifts = tuple(range(shift, virtual_bits, stride))
        widths = (stride,) * (len(shifts) - 1) + (virtual_bits - shifts[-1],)
        self.levels = len(shifts)
        width = "" if virtual_bits == 48 else f"-{virtual_bits}bit"
        self.name = f"arm64-{granule >> 10}K{width}{'-upper' if upper else ''}"
        self.block_levels = {12: (2, 3), 14: (2,), 16: (2,)}[shift]  # our levels: 1 is the page's
        self.virtual_bits = virtual_bits
        self._shift, self._upper = shift, upper
        memory = np.zeros(MEMORY // 8, np.uint64)
        count = min(_COUNTS[shift], 1 << widths[-1])
        high = -(1 << virtual_bits) & (1 << 64) - 1 if upper else 0
        self.paths = Paths(memory, Geometry(shifts, widths), count, LANDING_CODE, LANDING, high=high)
        self._prober = ArmProber(
            memory, granule=granule, virtual_bits=virtual_bits, upper=upper, live_state=live_state
        )

    @property
    def prober(self) -> ArmProber:
        return self._prober

    # ---- the specification

    def expected(self, chunk: Chunk, entries: list[Words], addresses: Words) -> Answers:
        return self._accessed(chunk, entries, addresses, _ARCHITECTURE)

    def predicted(self, chunk: Chunk, entries: list[Words], addresses: Words) -> list[Predicted]:
        return [
            Predicted(
                "block-at-any-level", self._accessed(chunk, entries, addresses, _Quirks(_ENGINE_BLOCKS))
            ),
            Predicted(
                "block-low-bits",
                self._accessed(chunk, entries, addresses, _Quirks(_ENGINE_BLOCKS, low_bits=True)),
            ),
        ]

    def _accessed(self, chunk: Chunk, entries: list[Words], addresses: Words, quirks: _Quirks) -> Answers:
        answers = self._judged(chunk, entries, addresses, _ACCESS[chunk.operation], quirks)
        if chunk.operation is not Operation.MODIFY:
            return answers
        # WnR of an atomic instruction: 0 where reading would have faulted too (D19.2.37).
        return first_of(self._judged(chunk, entries, addresses, spec.Access.READ, quirks), answers)

    def _judged(
        self,
        chunk: Chunk,
        entries: list[Words],
        addresses: Words,
        access: spec.Access,
        quirks: _Quirks,
    ) -> Answers:
        on = {**_DEFAULT, **chunk.controls}
        mode = self._mode(on, quirks.blocks)
        controls = spec.Controls(bool(on["wxn"]), bool(on["pan"]), bool(on["uao"]))
        n = chunk.size
        kinds, users = np.full(n, int(access), np.int64), np.full(n, chunk.user)
        if access is spec.Access.FETCH:
            addresses = spec.branch_target(addresses, mode)
        unprivileged = chunk.operation in _UNPRIVILEGED
        crossing = chunk.operation in CROSSES
        page = addresses + np.uint64(CROSSING) if crossing else addresses
        astray = np.zeros(n, bool)
        roots = (self.paths.root, self.paths.root)
        found = spec.translate(self._fetch(entries, astray), roots, page, mode)
        verdict = spec.judge(found, kinds, users, controls, unprivileged)
        fault, status, where = verdict.fault, verdict.status, page
        if crossing:
            front = [np.full(n, self.neighbour, np.uint64), *entries[1:]]
            before = spec.translate(self._fetch(front, np.zeros(n, bool)), roots, addresses, mode)
            first = spec.judge(before, kinds, users, controls, unprivileged)
            halfway = self._physical(before, quirks)
            where = np.where(first.fault, addresses, page)
            status = np.where(first.fault, first.status, status)
            fault = fault | first.fault
        kind = (_FETCH_CLASS if access is spec.Access.FETCH else _DATA) + (not chunk.user)
        write = _WRITE_NOT_READ if access is spec.Access.WRITE else 0
        code = status.astype(np.uint64) | np.uint64(kind << 26 | write)
        physical = self._physical(found, quirks)
        if crossing:  # both halves may be in one block now, the first of them in a hole
            physical = np.where(halfway >= np.uint64(self.paths.size), halfway & _DOUBLE_WORD, physical)
        astray |= ~fault & (physical < np.uint64(self.paths.data))
        return Answers(
            fault,
            np.where(fault, code, np.uint64(0)),
            np.where(fault, where, np.uint64(0)),
            ~fault & (physical >= np.uint64(self.paths.size)),
            np.where(fault, np.uint64(0), physical),
            entries,
            [np.zeros(n, np.uint64)] * self.levels,
            astray,
        )

    def _physical(self, found: spec.Translation, quirks: _Quirks) -> Words:
        """Where translations lead. A block's bits between a page's size and its own are RES0 (D8.3.1)."""
        if not quirks.low_bits:
            return found.physical
        leaf = np.zeros_like(found.physical)
        for level, entries in enumerate(found.entries):
            leaf = np.where(found.level == level, entries, leaf)
        inside = (np.uint64(1) << found.shift.astype(np.uint64)) - np.uint64(1)
        return found.physical | leaf & inside & np.uint64(-(1 << self._shift) & (1 << 64) - 1)

    def _mode(self, on: dict[str, int], blocks: tuple[int, ...] | None) -> spec.Mode:
        def of_our_half(flag: int) -> tuple[bool, bool]:
            return (bool(flag) and not self._upper, bool(flag) and self._upper)

        return spec.Mode(
            self._shift,
            (self.virtual_bits, self.virtual_bits),
            self._prober.physical_bits,
            of_our_half(on["tbi"]),
            of_our_half(on["epd"]),
            of_our_half(on["hpd"]),
            blocks,
        )

    def _fetch(self, entries: list[Words], astray: Bits) -> spec.Fetch:
        homes = self.homes(entries[0].size)

        def fetch(level: int, at: Words, cases: Numbers) -> Words:
            return self.read(homes, entries, 4 - level, at, cases, astray)

        return fetch

    # ---- the engine

    def invalidate(self, addresses: Words) -> None:
        self._prober.run(self.paths.root, addresses, Operation.INVALIDATE, user=False, flush=False)

    def attempt(self, chunk: Chunk, addresses: Words, *, flush: bool = True) -> Attempts:
        on = {**_DEFAULT, **chunk.controls}
        self._prober.configure(**{name: bool(on[name]) for name in ("wxn", "tbi", "epd", "hpd")})
        return self._prober.run(
            self.paths.root, addresses, chunk.operation,
            user=chunk.user, pan=bool(on["pan"]), uao=bool(on["uao"]), flush=flush,
        )  # fmt: skip
