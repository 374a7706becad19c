"""x86_64 under verification: 4 or 5 levels, by Unicorn's MMU."""

from __future__ import annotations

import numpy as np

from aether_emu.machine.kvm.vm import page_aligned
from aether_emu.machine.probe.kvm import KvmProber
from aether_emu.machine.probe.prober import CROSSING, LANDING, Attempts, Operation
from aether_emu.machine.probe.x86_64 import LANDING_CODE, X86Prober
from aether_emu.verify.cases.cases import Answers, Bits, Chunk, Numbers, Words
from aether_emu.verify.cases.laboratory import CROSSES, MEMORY, Laboratory, Predicted, first_of
from aether_emu.verify.cases.paths import Geometry, Paths
from aether_emu.verify.spec import x86_64 as spec

_ACCESS = {
    Operation.READ: spec.Access.READ,
    Operation.WRITE: spec.Access.WRITE,
    Operation.FETCH: spec.Access.FETCH,
    Operation.MODIFY: spec.Access.WRITE,
    Operation.CROSS_READ: spec.Access.READ,
    Operation.CROSS_WRITE: spec.Access.WRITE,
}
_DEFAULT = {"wp": 1, "smep": 0, "smap": 0, "ac": 0, "pke": 0, "pkru": 0, "nxe": 1}
_GENERAL_PROTECTION = 13
_ACCESSED = np.uint64(1 << 5)
_DOUBLE_WORD = np.uint64(((1 << 64) - 1) ^ 7)


class X86Laboratory(Laboratory):
    """`controls` of its chunks: wp, smep, smap, ac, pke, pkru, nxe."""

    isa = "x86_64"
    operations = tuple(_ACCESS)
    neighbour = 0x67  # present, writable, user, accessed, dirty

    def __init__(self, levels: int = 4, *, live_state: bool = True) -> None:
        self.levels = levels
        self.name = f"x86_64-{levels}level"
        geometry = Geometry(tuple(12 + 9 * k for k in range(levels)), (9,) * levels)
        memory = page_aligned(MEMORY)
        count = 250 if levels == 4 else 224
        self.paths = Paths(memory, geometry, count, LANDING_CODE, LANDING, first_slot=1)
        self._prober = self._open(memory, live_state)
        self.physical_bits = self._prober.physical_bits

    def _open(self, memory: Words, live_state: bool) -> X86Prober | KvmProber:
        return X86Prober(memory, levels=self.levels, live_state=live_state)

    @property
    def prober(self) -> X86Prober | KvmProber:
        return self._prober

    # ---- the specification

    def expected(self, chunk: Chunk, entries: list[Words], addresses: Words) -> Answers:
        return self._judged(chunk, entries, addresses, _ACCESS[chunk.operation])

    def predicted(self, chunk: Chunk, entries: list[Words], addresses: Words) -> list[Predicted]:
        if chunk.operation is not Operation.MODIFY:
            return []
        read = self._judged(chunk, entries, addresses, spec.Access.READ)
        return [Predicted("rmw-reads-first", first_of(read, self.expected(chunk, entries, addresses)))]

    def _judged(self, chunk: Chunk, entries: list[Words], addresses: Words, access: spec.Access) -> Answers:
        on = {**_DEFAULT, **chunk.controls}
        mode = spec.Mode(self.levels, self.physical_bits, bool(on["nxe"]))
        controls = spec.Controls(
            bool(on["wp"]), bool(on["smep"]), bool(on["smap"]), bool(on["pke"]), bool(on["ac"]), on["pkru"]
        )
        kinds = np.full(chunk.size, int(access), np.int64)
        users = np.full(chunk.size, chunk.user)
        crossing = chunk.operation in CROSSES
        page = addresses + np.uint64(CROSSING) if crossing else addresses
        astray = np.zeros(chunk.size, bool)
        found = spec.translate(self._fetch(entries, astray), self.paths.root, page, mode)
        verdict = spec.judge(found, kinds, users, controls, mode)
        fault, error, where = verdict.fault, verdict.error, page
        if crossing:
            front = [np.full(chunk.size, self.neighbour, np.uint64), *entries[1:]]
            before = spec.translate(
                self._fetch(front, np.zeros(chunk.size, bool)), self.paths.root, addresses, mode
            )
            first = spec.judge(before, kinds, users, controls, mode)
            where, error = np.where(first.fault, addresses, page), np.where(first.fault, first.error, error)
            fault = fault | first.fault
            halfway = before.physical
        protection = verdict.general_protection
        code = np.where(protection, np.uint64(_GENERAL_PROTECTION), error)
        after = [
            np.where(fault | (seen == 0), entry, used)
            for seen, used, entry in zip(found.entries, verdict.after, entries, strict=True)
        ]
        # 4.8: a walk that ends in a fault may have set accessed flags on its way.
        loose = [np.where(fault, _ACCESSED, np.uint64(0)) for _ in entries]
        physical = found.physical
        if crossing:  # both halves may be in one large page now, the first of them in a hole
            physical = np.where(halfway >= np.uint64(self.paths.size), halfway & _DOUBLE_WORD, physical)
        astray |= ~fault & (physical < np.uint64(self.paths.data))
        return Answers(
            fault,
            np.where(fault, code, np.uint64(0)),
            np.where(fault & ~protection, where, np.uint64(0)),
            ~fault & (physical >= np.uint64(self.paths.size)),
            np.where(fault, np.uint64(0), physical),
            after,
            loose,
            astray,
        )

    def _fetch(self, entries: list[Words], astray: Bits) -> spec.Fetch:
        homes = self.homes(entries[0].size)

        def fetch(level: int, at: Words, cases: Numbers) -> Words:
            return self.read(homes, entries, level, at, cases, astray)

        return fetch

    # ---- the engine

    def invalidate(self, addresses: Words) -> None:
        self._prober.run(self.paths.root, addresses, Operation.INVALIDATE, user=False, flush=False)

    def attempt(self, chunk: Chunk, addresses: Words, *, flush: bool = True) -> Attempts:
        on = {**_DEFAULT, **chunk.controls}
        self._prober.configure(**{name: bool(on[name]) for name in ("wp", "smep", "smap", "pke", "nxe")})
        return self._prober.run(
            self.paths.root,
            addresses,
            chunk.operation,
            user=chunk.user,
            ac=bool(on["ac"]),
            pkru=on["pkru"],
            flush=flush,
        )
