"""Other people's tables tried on the emulated CPU: the same pages, asked by real accesses.

For each address of a sample the entries on its way are copied to where they stood, in memory of the
prober's own that begins as zeros and spans what the image spans; the image itself is never written.
Then every address is read, written and fetched from, by a user and by the supervisor, and what came of
it, the frame it reached included, is compared with the specification. CR0.WP is 1, SMEP, SMAP, PKE and
PAN are off, NXE and WXN are as the image tells.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from aether_emu.address import VirtAddr
from aether_emu.errors import ConfigError
from aether_emu.machine.memory import host
from aether_emu.machine.probe import arm64 as prober_arm64
from aether_emu.machine.probe import x86_64 as prober_x86
from aether_emu.machine.probe.arm64 import ArmProber
from aether_emu.machine.probe.prober import BATCH, LANDING, Attempts, Happened, Operation
from aether_emu.machine.probe.x86_64 import X86Prober
from aether_emu.verify.spec import arm64, x86_64
from aether_emu.verify.tables.formats import Bits, Words
from aether_emu.verify.tables.formats_arm64 import Arm
from aether_emu.verify.tables.survey import Numbers, Odd, Survey
from aether_emu.verify.tables.walking import Tables

SAMPLE = 4096
"""Pages that are tried."""

_OFFSETS = {Operation.READ: 0x10, Operation.WRITE: 0x18, Operation.FETCH: LANDING}
_ALIGN = 1 << 16
_MIX = 0x9E37_79B9_7F4A_7C15  # an odd number whose multiples spread well
_WORD = np.uint64((1 << 64) - 8)  # a hole shows at one of a word's bytes
_GENERAL_PROTECTION = 13
_MOST_TOLD = 10
_ARM_BITS = 48


@dataclass(frozen=True, slots=True)
class Difference:
    """One access on which the two disagree, each in words."""

    address: VirtAddr
    operation: Operation
    user: bool
    expected: str
    observed: str


@dataclass(slots=True)
class Agreement:
    """`pages` were tried by `accesses`; `set_aside` could not be: they would have hit their own tables."""

    pages: int = 0
    accesses: int = 0
    set_aside: int = 0
    faults: int = 0
    differences: int = 0
    examples: list[Difference] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """For people."""
        yield (
            f"executed: {self.accesses:,} accesses to {self.pages:,} pages, "
            f"{self.faults:,} faults as specified, {self.differences:,} differences"
            + (f", {self.set_aside:,} set aside" if self.set_aside else "")
        )
        for one in self.examples:
            who = "user" if one.user else "kernel"
            what = one.operation.name.lower()
            yield f"  {who} {what} at {one.address:#018x}: specified {one.expected}, executed {one.observed}"


@dataclass(frozen=True, slots=True)
class _Answers:
    """One element an access. `code` and `where` of a fault; `physical` of an access that went through."""

    fault: Bits
    code: Words
    where: Words
    physical: Words


class _Sandbox:
    """Physical memory of the image's extent, zeros at first."""

    def __init__(self, ranges: list[tuple[int, int]], end: int) -> None:
        self.ranges: list[tuple[int, Words]] = []
        for start, stop in _merged(ranges, end):
            at = host.reserve(stop - start)
            block = (ctypes.c_ubyte * (stop - start)).from_address(at)
            self.ranges.append((start, np.frombuffer(memoryview(block).cast("B"), np.uint64)))
        self._starts = np.array([start for start, _ in self.ranges], np.uint64)
        self._ends = np.array([start + words.nbytes for start, words in self.ranges], np.uint64)

    def holds(self, addresses: Words) -> Bits:
        """Whether there is memory."""
        which = np.searchsorted(self._starts, addresses, "right").astype(np.int64) - 1
        return np.asarray((which >= 0) & (addresses < self._ends[np.maximum(which, 0)]))

    def load(self, addresses: Words) -> Words:
        """The words there; 0 where there is no memory."""
        found = np.zeros(addresses.size, np.uint64)
        for start, words, here in self._each(addresses):
            found[here] = words[addresses[here] - np.uint64(start) >> np.uint64(3)]
        return found

    def store(self, addresses: Words, values: Words) -> None:
        """Put words there, where there is memory."""
        for start, words, here in self._each(addresses):
            words[addresses[here] - np.uint64(start) >> np.uint64(3)] = values[here]

    def _each(self, addresses: Words) -> Iterator[tuple[int, Words, Bits]]:
        for start, words in self.ranges:
            here = (addresses >= np.uint64(start)) & (addresses < np.uint64(start + words.nbytes))
            if here.any():
                yield start, words, here

    def close(self) -> None:
        """Give the memory back; the prober that maps it must be gone."""
        for _start, words in self.ranges:
            host.unmap(words.ctypes.data, words.nbytes)


def _merged(ranges: list[tuple[int, int]], end: int) -> list[tuple[int, int]]:
    """The ranges in multiples of 64 KiB, below `end`, none touching another."""
    found: list[tuple[int, int]] = []
    for first, last in ranges:
        start, stop = first & -_ALIGN, min(-(-last // _ALIGN) * _ALIGN, end & -_ALIGN)
        if start >= stop:
            continue
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        else:
            found.append((start, stop))
    return found


def check(tables: Tables) -> None:
    """Raise ConfigError for tables that the emulated CPU cannot walk: of 52-bit addresses on ARM64."""
    rules = tables.format
    if isinstance(rules, Arm) and (rules.mode.wide or max(rules.mode.virtual_bits) > _ARM_BITS):
        raise ConfigError(
            "execute",
            rules.name,
            "the emulated CPU has addresses of 48 bits",
            refusal=f"is not possible with {rules.name}",
        )


def execute(found: Survey, *, sample: int = SAMPLE) -> Agreement:
    """Try up to `sample` pages and wrong entries. Raises as `check` does, EngineError, HostMemoryError."""
    check(found.tables)
    agreement = Agreement()
    addresses = _addresses(found, sample)
    upper = found.tables.format.is_upper(addresses)
    if isinstance(found.tables.format, Arm):
        for half, chosen in enumerate((addresses[~upper], addresses[upper])):
            if chosen.size:
                _try(found, _ArmBench(found, bool(half)), chosen, agreement)
    elif addresses.size:
        bench = _X86Bench(found, addresses)
        _try(found, bench, bench.addresses, agreement)
    return agreement


def _addresses(found: Survey, sample: int) -> Words:
    """Pages in chosen leaves, behind some of them, below repeated tables, and below wrong entries."""
    leaves, sizes = found.leaves, found.sizes()
    chosen = np.unique(np.linspace(0, max(leaves.count - 1, 0), min(sample, leaves.count)).astype(np.int64))
    inside = chosen.astype(np.uint64) * np.uint64(_MIX) >> np.uint64(7)
    rules = found.tables.format
    page = np.uint64(rules.page)
    pages = leaves.address[chosen] + (inside & sizes[chosen] - np.uint64(1) & ~(page - np.uint64(1)))
    behind = (leaves.address[chosen] + sizes[chosen])[:: max(chosen.size // 256, 1)]
    end = 1 << rules.shifts[-1] + rules.widths[-1] - (rules.isa == "x86_64")  # of the lower half
    behind = behind[(behind != 0) & (behind != np.uint64(end))]
    wrong = [item.address[: sample // 8] for item in found.odd if item.odd in (Odd.RESERVED, Odd.BEYOND)]
    return np.unique(np.concatenate([pages, behind, _reached_again(found, sample // 4), *wrong]))


def _reached_again(found: Survey, sample: int) -> Words:
    """Up to `sample` addresses that lead by a repeated table to the first of its leaves."""
    again, leaves, rules = found.again, found.leaves, found.tables.format
    count = again.address.size
    if not count or not leaves.count:
        return np.zeros(0, np.uint64)
    chosen = np.unique(np.linspace(0, count - 1, min(sample, count)).astype(np.int64))
    first = again.first[chosen]
    leaf = leaves.address[np.minimum(np.searchsorted(leaves.address, first), leaves.count - 1)]
    # The first leaf may itself be known from elsewhere: then none of its addresses is in the table's span.
    span = np.uint64(1) << np.array([*rules.shifts, 0], np.uint64)[again.level[chosen]]
    there = (leaf >= first) & (leaf - first < span)
    return np.asarray((again.address[chosen] + (leaf - first))[there])


class _X86Bench:
    """What an x86_64 CPU should do, and what it does."""

    def __init__(self, found: Survey, addresses: Words) -> None:
        rules, tables = found.tables.format, found.tables
        self.sandbox = _Sandbox(tables.image.ranges, prober_x86.SCRATCH)
        self.root = tables.roots[0] or 0
        top = np.uint64(rules.shifts[-1])
        slots = addresses >> top & np.uint64(511)
        free = [self._rarest(slots, range(256)), self._rarest(slots, range(256, 512))]
        self.addresses = addresses[~np.isin(slots, np.array(free, np.uint64))]
        self.landing = prober_x86.LANDING_CODE
        nxe = rules.registers.nxe is not False
        self.prober = X86Prober(
            self.sandbox.ranges, levels=rules.levels, user_slot=free[0], supervisor_slot=free[1]
        )
        self.mode = x86_64.Mode(rules.levels, self.prober.physical_bits, nxe)
        self.prober.configure(wp=True, smep=False, smap=False, pke=False, nxe=nxe)

    @staticmethod
    def _rarest(slots: Words, among: range) -> int:
        counts = np.bincount(slots.astype(np.int64), minlength=512)
        return min(among, key=lambda slot: int(counts[slot]))

    def reserve(self) -> Words:
        """Put the prober's own entries into the root; where they stand."""
        at = np.array([self.root + 8 * slot for slot in self.prober.own_entries], np.uint64)
        self.sandbox.store(at, np.array(list(self.prober.own_entries.values()), np.uint64))
        return at

    def expected(self, fetch: x86_64.Fetch, at: Words, operation: Operation, user: bool) -> _Answers:
        found = x86_64.translate(fetch, self.root, at, self.mode)
        kind = np.full(at.size, int(x86_64.Access[operation.name]), np.int64)
        verdict = x86_64.judge(found, kind, np.full(at.size, user), x86_64.Controls(), self.mode)
        general = verdict.general_protection
        code = np.where(general, np.uint64(_GENERAL_PROTECTION), verdict.error)
        where = np.where(general, np.uint64(0), at)
        return _Answers(verdict.fault, code, where, found.physical)

    def attempt(self, at: Words, operation: Operation, user: bool) -> Attempts:
        return self.prober.run(self.root, at, operation, user=user)


class _ArmBench:
    """The same for one half of an ARM64 address space."""

    def __init__(self, found: Survey, upper: bool) -> None:
        rules, tables = found.tables.format, found.tables
        assert isinstance(rules, Arm)
        self.sandbox = _Sandbox(tables.image.ranges, prober_arm64.SCRATCH)
        self.root = tables.roots[upper] or 0
        self.landing = prober_arm64.LANDING_CODE
        self.wxn = bool(rules.registers.wxn)
        bits = rules.mode.virtual_bits[0]
        self.prober = ArmProber(self.sandbox.ranges, granule=rules.page, virtual_bits=bits, upper=upper)
        self.mode = arm64.Mode(rules.shifts[0], (bits, bits), self.prober.physical_bits)
        self.prober.configure(wxn=self.wxn, tbi=False, epd=False, hpd=False)

    def reserve(self) -> Words:
        """Nothing of the prober's stands in the root."""
        return np.zeros(0, np.uint64)

    def expected(self, fetch: arm64.Fetch, at: Words, operation: Operation, user: bool) -> _Answers:
        found = arm64.translate(fetch, (self.root, self.root), at, self.mode)
        kind = np.full(at.size, int(arm64.Access[operation.name]), np.int64)
        verdict = arm64.judge(found, kind, np.full(at.size, user), arm64.Controls(wxn=self.wxn))
        # D19.2.37: exception classes 0x20 and 0x24 are a fetch and a data access from EL0, one more from EL1.
        kind_of = (0x20 if operation is Operation.FETCH else 0x24) + (not user)
        write = (operation is Operation.WRITE) << 6
        code = verdict.status.astype(np.uint64) | np.uint64(kind_of << 26 | write)
        return _Answers(verdict.fault, code, at, found.physical)

    def attempt(self, at: Words, operation: Operation, user: bool) -> Attempts:
        return self.prober.run(self.root, at, operation, user=user)


def _try(found: Survey, bench: _X86Bench | _ArmBench, pages: Words, agreement: Agreement) -> None:
    """All operations by both privileges, at all pages."""
    sandbox, image = bench.sandbox, found.tables.image
    try:
        own = bench.reserve()
        plain = np.uint64(~found.tables.format.encryption & (1 << 64) - 1)  # the CPU encrypts no memory
        entries: list[Words] = []

        def copying(_level: int, at: Words, _cases: Numbers) -> Words:
            words = np.where(sandbox.holds(at), image.read(at)[0], np.uint64(0)) & plain
            entries.append(at)
            sandbox.store(at, words)
            return words

        targets = bench.expected(copying, pages, Operation.READ, False)
        taken = np.unique(np.concatenate([*entries, own]))
        landing = np.uint64(int.from_bytes(bench.landing.ljust(8, b"\0"), "little"))
        frames = targets.physical
        own_page = np.zeros(pages.size, bool)
        for offset in _OFFSETS.values():
            own_page |= np.isin(frames + np.uint64(offset), taken)
        agreement.set_aside += int(own_page.sum())
        reached = frames[~own_page & ~targets.fault]
        pages = pages[~own_page]
        read = reached + np.uint64(_OFFSETS[Operation.READ])
        sandbox.store(read, read)
        sandbox.store(reached + np.uint64(LANDING), np.full(reached.size, landing))
        agreement.pages += pages.size

        def fetch(_level: int, at: Words, _cases: Numbers) -> Words:
            return sandbox.load(at)

        for operation, offset in _OFFSETS.items():
            for user in (False, True):
                for start in range(0, pages.size, BATCH):
                    at = pages[start : start + BATCH] + np.uint64(offset)
                    expected = bench.expected(fetch, at, operation, user)
                    _compare(
                        sandbox, at, operation, user, expected, bench.attempt(at, operation, user), agreement
                    )
    finally:
        bench.prober.close()
        sandbox.close()


def _compare(
    sandbox: _Sandbox, at: Words, operation: Operation, user: bool, expected: _Answers, tried: Attempts,
    agreement: Agreement,
) -> None:  # fmt: skip
    fault = (tried.happened == Happened.FAULT) | (tried.happened == Happened.OTHER)
    hole = tried.happened == Happened.HOLE
    expects_hole = ~expected.fault & ~sandbox.holds(expected.physical)
    reached = expected.physical  # what cannot be told apart from it counts as it
    if operation is Operation.READ:
        reached = tried.value
    elif operation is Operation.WRITE:
        last = expected.physical.size - 1 - np.unique(expected.physical[::-1], return_index=True)[1]
        stored = sandbox.load(expected.physical[last])
        reached = reached.copy()
        reached[last] = np.where(stored == at[last], reached[last], np.uint64(0))
    reached = np.where(hole, tried.address & _WORD, reached)
    target = np.where(hole, expected.physical & _WORD, expected.physical)
    same = fault == expected.fault
    same &= hole == expects_hole
    same &= ~fault | (tried.code == expected.code) & (tried.address == expected.where)
    same &= fault | (reached == target)
    agreement.accesses += at.size
    agreement.faults += int((same & fault).sum())
    agreement.differences += int((~same).sum())
    for index in np.flatnonzero(~same)[: _MOST_TOLD - len(agreement.examples)].tolist():
        wanted = _words(
            bool(expected.fault[index]), bool(expects_hole[index]), int(expected.code[index]),
            int(expected.where[index]), int(target[index]),
        )  # fmt: skip
        got = _words(
            bool(fault[index]), bool(hole[index]), int(tried.code[index]), int(tried.address[index]),
            int(reached[index]),
        )  # fmt: skip
        agreement.examples.append(Difference(VirtAddr(int(at[index]), 64), operation, user, wanted, got))


def _words(fault: bool, hole: bool, code: int, where: int, physical: int) -> str:
    if fault:
        return f"a fault with code {code:#x} at {where:#x}"
    return f"no memory at {physical:#x}" if hole else f"frame {physical:#x}"
