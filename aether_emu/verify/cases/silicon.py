"""The host as a third opinion: the cases of x86_64, tried under KVM.

Where the CPU translates for guests itself (EPT, NPT) silicon answers. Elsewhere KVM walks the guest's
tables in software and emulates part of ring 0: then the opinion is KVM's, and is called so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from aether_emu.machine.kvm import vm as kvm
from aether_emu.machine.probe.kvm import KvmProber
from aether_emu.verify.cases.cases import Answers, Chunk, Words
from aether_emu.verify.cases.laboratory import CROSSES, Predicted
from aether_emu.verify.cases.x86_64_laboratory import X86Laboratory

KNOWN = {
    "amd-reserves-g": "AMD reserves bit 8 of PML4 and PML5 entries (AMD64 APM 2, 5.3.3), Intel ignores it",
    "pvm-alignment": "kvm_pvm runs ring 3 as if CR0.AM were 1: with EFLAGS.AC unaligned accesses get #AC",
}
"""What hosts are known to do otherwise than the specification, and why."""

_PRESENT_GLOBAL, _PAGE_SIZE = np.uint64(1 << 8 | 1), np.uint64(1 << 7)
_ALIGNMENT_CHECK = 17
_FEATURES = ("smep", "smap", "pke", "nxe")


def available() -> str | None:
    """Why the host can't be asked, in one line; None if it can."""
    try:
        kvm.offer()
    except kvm.KvmUnavailable as error:
        return f"silicon: skipped ({error})"
    return None


class SiliconLaboratory(X86Laboratory):
    """Cases and specification of `X86Laboratory`, with KVM in the engine's place.

    Belongs to the thread that made it. Raises KvmUnavailable; EngineError where 5 levels are not on offer.
    """

    def __init__(self, levels: int = 4) -> None:
        super().__init__(levels)
        self.name = f"{self.name}-kvm"

    def _open(self, memory: Words, live_state: bool) -> KvmProber:
        self._kvm = KvmProber(memory, levels=self.levels)
        return self._kvm

    @property
    def prober(self) -> KvmProber:
        return self._kvm

    @property
    def asked(self) -> str:
        """Who answers, in one line."""
        return f"silicon: {self._kvm.offer}"

    @property
    def blind_to_edits(self) -> str | None:
        """Why histories for the TLB can't be asked, in one line; None if they can.

        Shadow tables follow what a guest does. Edits from outside it are seen after a full flush alone,
        where the prober has KVM build them anew, and never by a flush of one page.
        """
        if self._kvm.offer.second_stage:
            return None
        return "silicon: skipped tlb (shadow tables on this host do not follow edits from outside the guest)"

    def answerable(self, chunks: Iterable[Chunk], skipped: Counter[str]) -> Iterator[Chunk]:
        """The cases that this host can be asked; the others are counted by the feature that it lacks."""
        offer = self._kvm.offer
        for chunk in chunks:
            lacking = [name for name in _FEATURES if chunk.controls.get(name) and not getattr(offer, name)]
            if lacking:
                skipped[lacking[0]] += chunk.size
                continue
            kept = np.full(chunk.size, True) if offer.gigabyte_pages else chunk.words[2] & _PAGE_SIZE == 0
            skipped["1G pages"] += int((~kept).sum())
            if kept.any():
                yield chunk.kept(kept)

    def predicted(self, chunk: Chunk, entries: list[Words], addresses: Words) -> list[Predicted]:
        offer, found = self._kvm.offer, []
        if offer.vendor in ("AuthenticAMD", "HygonGenuine"):
            found.append(Predicted("amd-reserves-g", self._reserving(chunk, entries, addresses)))
        unaligned = chunk.operation in CROSSES and chunk.user and chunk.controls.get("ac")
        if offer.module == "kvm_pvm" and unaligned:
            found.append(Predicted("pvm-alignment", _unaligned(chunk, entries)))
        return found

    def _reserving(self, chunk: Chunk, entries: list[Words], addresses: Words) -> Answers:
        """As `expected`, with bit 8 reserved from level 4 on: one that every manual reserves stands in."""
        stand_in = [
            np.where(words & _PRESENT_GLOBAL == _PRESENT_GLOBAL, _PAGE_SIZE & ~words, np.uint64(0))
            for words in entries[3:]
        ]
        marked = [words | bit for words, bit in zip(entries[3:], stand_in, strict=True)]
        answers = self.expected(chunk, [*entries[:3], *marked], addresses)
        answers.after[3:] = [words ^ bit for words, bit in zip(answers.after[3:], stand_in, strict=True)]
        return answers


def _unaligned(chunk: Chunk, entries: list[Words]) -> Answers:
    """Every access ends in an alignment check, before any translation."""
    n = chunk.size
    return Answers(
        np.full(n, True),
        np.full(n, _ALIGNMENT_CHECK, np.uint64),
        np.zeros(n, np.uint64),
        np.full(n, False),
        np.zeros(n, np.uint64),
        entries,
        [np.zeros(n, np.uint64) for _ in entries],
    )


def skips(skipped: Counter[str]) -> list[str]:
    """A line for each feature for which cases were left out."""
    return [
        f"silicon: skipped {name} (KVM on this host does not offer it), {count:,} cases"
        for name, count in sorted(skipped.items())
        if count
    ]
