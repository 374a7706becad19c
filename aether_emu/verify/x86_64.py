"""x86_64 under verification: what the specification and Unicorn's MMU say to the same chunk of cases."""

from __future__ import annotations

import numpy as np

from aether_emu.machine.prober import CROSSING, LANDING, Happened, Operation
from aether_emu.machine.prober_x86 import LANDING_CODE, X86Prober
from aether_emu.verify.cases import Answers, Bits, Chunk, Numbers, Words
from aether_emu.verify.paths import Geometry, Paths
from aether_emu.verify.spec import x86_64 as spec

MEMORY = 32 << 20
"""Bytes of physical memory in which cases stand."""

_NEIGHBOUR = 0x67  # present, writable, user, accessed, dirty
_ONES = (1 << 64) - 1
_CROSSES = (Operation.CROSS_READ, Operation.CROSS_WRITE)
_ACCESS = {
    Operation.READ: spec.Access.READ,
    Operation.WRITE: spec.Access.WRITE,
    Operation.FETCH: spec.Access.FETCH,
    Operation.MODIFY: spec.Access.WRITE,
    Operation.CROSS_READ: spec.Access.READ,
    Operation.CROSS_WRITE: spec.Access.WRITE,
}
DEFAULT_CONTROLS = {"wp": 1, "smep": 0, "smap": 0, "ac": 0, "pke": 0, "pkru": 0, "nxe": 1}


class X86Laboratory:
    """Paths in memory, a prober over them, and the walker that judges it. `levels` is 4 or 5."""

    isa = "x86_64"
    known = "a read-modify-write is judged as a read first"

    def __init__(self, levels: int = 4, *, live_state: bool = True) -> None:
        self.levels = levels
        self.name = f"x86_64-{levels}level"
        geometry = Geometry(tuple(12 + 9 * k for k in range(levels)), (9,) * levels)
        count = 250 if levels == 4 else 224
        memory = np.zeros(MEMORY // 8, np.uint64)
        self.paths = Paths(memory, geometry, count, LANDING_CODE, LANDING)
        self.prober = X86Prober(memory, levels=levels, live_state=live_state)
        self.mode = spec.Mode(levels, self.prober.physical_bits)

    # ---- what both are asked

    def place(self, chunk: Chunk) -> tuple[list[Words], Words]:
        """The entries as they stand in memory (level 1 first), and the address that each case accesses."""
        which = np.arange(chunk.size) % self.paths.count
        entries = []
        for level in range(1, self.levels + 1):
            right = self._addresses_for(level)
            entries.append(
                np.where(chunk.leaf == level, right[1][which], right[0][which]) ^ chunk.words[level - 1]
            )
        addresses = self.paths.addresses[which]
        if chunk.operation is Operation.FETCH:
            return entries, addresses + np.uint64(LANDING)
        if chunk.operation in _CROSSES:
            return entries, addresses - np.uint64(CROSSING)
        return entries, addresses

    def _addresses_for(self, level: int) -> tuple[Words, Words]:
        every = np.ones(self.paths.count, bool)
        return self.paths.address_bits(level, ~every), self.paths.address_bits(level, every)

    # ---- the specification

    def expected(self, chunk: Chunk, entries: list[Words], addresses: Words) -> Answers:
        """The walker's answers."""
        return self._judged(chunk, entries, addresses, _ACCESS[chunk.operation])

    def _judged(self, chunk: Chunk, entries: list[Words], addresses: Words, access: spec.Access) -> Answers:
        controls = {**DEFAULT_CONTROLS, **chunk.controls}
        mode = spec.Mode(self.levels, self.mode.physical_bits, bool(controls["nxe"]))
        decided = spec.Controls(
            wp=bool(controls["wp"]),
            smep=bool(controls["smep"]),
            smap=bool(controls["smap"]),
            pke=bool(controls["pke"]),
            ac=bool(controls["ac"]),
            pkru=controls["pkru"],
        )
        kinds = np.full(chunk.size, int(access), np.int64)
        users = np.full(chunk.size, chunk.user)
        crossing = chunk.operation in _CROSSES
        page = addresses + np.uint64(CROSSING) if crossing else addresses
        astray = np.zeros(chunk.size, bool)
        found = spec.translate(self._fetch(entries, astray), self.paths.root, page, mode)
        verdict = spec.judge(found, kinds, users, decided, mode)
        fault, error, where = verdict.fault, verdict.error, page
        after = [
            np.where(seen != 0, used, entry)
            for seen, used, entry in zip(found.entries, verdict.after, entries, strict=True)
        ]
        if crossing:
            first = spec.judge(self._neighbour(found, entries, addresses, mode), kinds, users, decided, mode)
            where = np.where(first.fault, addresses, page)
            error = np.where(first.fault, first.error, error)
            fault = fault | first.fault
        after = [np.where(fault, entry, used) for entry, used in zip(entries, after, strict=True)]
        # 4.8: a walk that ends in a fault may have set accessed flags on its way.
        loose = [np.where(fault, np.uint64(1 << 5), np.uint64(0)) for _ in entries]
        astray |= ~fault & (found.physical < np.uint64(self.paths.data))
        hole = ~fault & (found.physical >= np.uint64(self.paths.size))
        return Answers(
            fault, np.where(fault, error, np.uint64(0)), np.where(fault, where, np.uint64(0)), hole,
            np.where(fault, np.uint64(0), found.physical), after, loose, astray,
        )  # fmt: skip

    def _neighbour(
        self, found: spec.Translation, entries: list[Words], addresses: Words, mode: spec.Mode
    ) -> spec.Translation:
        """The page in front: another entry of the same table."""
        n = addresses.size
        return spec.translate(
            self._fetch([np.full(n, _NEIGHBOUR, np.uint64), *entries[1:]], np.zeros(n, bool)),
            self.paths.root,
            addresses,
            mode,
        )

    def _fetch(self, entries: list[Words], astray: Bits) -> spec.Fetch:
        """A case's own entry where the walk comes by its own tables; elsewhere what memory holds.

        Walks that come by tables of other cases are marked in `astray`.
        """
        count = entries[0].size
        which = np.arange(count) % self.paths.count
        tables = [slots[which] >> np.uint64(9) for slots in self.paths.slots]

        def fetch(level: int, at: Words, cases: Numbers) -> Words:
            at_home = at >> np.uint64(12) == tables[level - 1][cases]
            astray[cases] |= ~at_home & (at < np.uint64(self.paths.data))
            return np.where(at_home, entries[level - 1][cases], self.paths.elsewhere(at))

        return fetch

    # ---- the engine

    def predicted(self, chunk: Chunk, entries: list[Words], addresses: Words) -> Answers | None:
        """What the engine is known to do (see `known`); None for chunks where it differs in nothing."""
        if chunk.operation is not Operation.MODIFY:
            return None
        read = self._judged(chunk, entries, addresses, spec.Access.READ)
        write = self.expected(chunk, entries, addresses)
        first = read.fault | read.hole
        return Answers(
            np.where(first, read.fault, write.fault),
            np.where(first, read.code, write.code),
            np.where(first, read.where, write.where),
            np.where(first, read.hole, write.hole),
            np.where(first, read.physical, write.physical),
            [np.where(first, one, other) for one, other in zip(read.after, write.after, strict=True)],
            [np.where(first | write.fault, np.uint64(1 << 5), np.uint64(0)) for _ in entries],
        )

    def observed(self, chunk: Chunk, entries: list[Words], addresses: Words) -> Answers:
        """What happens on the emulated CPU."""
        controls = {**DEFAULT_CONTROLS, **chunk.controls}
        self.prober.configure(
            wp=bool(controls["wp"]),
            smep=bool(controls["smep"]),
            smap=bool(controls["smap"]),
            pke=bool(controls["pke"]),
            nxe=bool(controls["nxe"]),
        )
        n, step = chunk.size, self.paths.count
        fault, hole = np.zeros(n, bool), np.zeros(n, bool)
        code, where, physical = (np.zeros(n, np.uint64) for _ in range(3))
        after = [np.zeros(n, np.uint64) for _ in entries]
        for start in range(0, n, step):
            part = slice(start, min(n, start + step))
            self.paths.install([words[part] for words in entries], _NEIGHBOUR, self.prober.own_entries)
            tried = self.prober.run(
                self.paths.root, addresses[part], chunk.operation,
                user=chunk.user, ac=bool(controls["ac"]), pkru=controls["pkru"],
            )  # fmt: skip
            fault[part] = (tried.happened == Happened.FAULT) | (tried.happened == Happened.OTHER)
            hole[part] = tried.happened == Happened.HOLE
            code[part] = tried.code
            where[part] = np.where(fault[part], tried.address, np.uint64(0))
            # The engine stores the bytes of a crossing access one by one: a hole shows at one of eight.
            physical[part] = np.where(hole[part], tried.address & np.uint64(_ONES ^ 7), np.uint64(0))
            done = ~fault[part] & ~hole[part]
            landed = self._landed(chunk.operation, tried.value, addresses[part], entries, part)
            physical[part] = np.where(done, landed, physical[part])
            for words, now in zip(after, self.paths.read_back(part.stop - start), strict=True):
                words[part] = now
        return Answers(fault, code, where, hole, physical, after)

    def _landed(
        self, operation: Operation, values: Words, addresses: Words, entries: list[Words], part: slice
    ) -> Words:
        """Where accesses that went through went to, as memory and registers tell it."""
        pages = self.paths.pages[: addresses.size]
        if operation is Operation.READ:
            return values  # every word holds its own address
        if operation is Operation.CROSS_READ:
            return values >> np.uint64(32)
        if operation is Operation.FETCH:
            return pages + np.uint64(LANDING)  # it came back, so there was a landing
        memory = self.paths.memory
        stored = memory[pages >> np.uint64(3)]
        if operation is Operation.MODIFY:
            return np.where(stored == pages, pages, np.uint64(0))
        if operation is Operation.CROSS_WRITE:
            before = memory[(pages >> np.uint64(3)) - np.uint64(1)]
            whole = before >> np.uint64(32) | stored << np.uint64(32)
            self.paths.restore(pages - np.uint64(8))
        else:
            whole = stored
        self.paths.restore(pages)
        return np.where(whole == addresses, pages, np.uint64(0))

    def close(self) -> None:
        """Let go of the engine."""
        self.prober.close()
