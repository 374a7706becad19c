"""KVM's opinion on the cases of x86_64: none where there is no KVM, otherwise no difference left over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aether_emu.machine.kvm import vm as kvm
from aether_emu.machine.probe.prober import Operation
from aether_emu.verify.cases import silicon
from aether_emu.verify.cases import x86_64 as x86_cases
from aether_emu.verify.cases.cases import Chunk
from aether_emu.verify.cases.comparison import Tally, run
from aether_emu.verify.cases.silicon import SiliconLaboratory

ABSENCE = silicon.available()
needs_kvm = pytest.mark.skipif(ABSENCE is not None, reason=str(ABSENCE))


@pytest.fixture(scope="module")
def opened() -> Iterator[SiliconLaboratory]:
    laboratory = SiliconLaboratory()
    yield laboratory
    laboratory.close()


@pytest.fixture
def laboratory(opened: SiliconLaboratory) -> Iterator[SiliconLaboratory]:
    offer, bits = opened.prober.offer, opened.physical_bits
    yield opened
    opened.prober.offer, opened.physical_bits = offer, bits


def _chunk(controls: dict[str, int], operation: Operation = Operation.READ, user: bool = True) -> Chunk:
    """A case whose PML4 entry has bit 8 set, and one with a 1G page."""
    words = [np.full(2, 0x67, np.uint64) for _ in range(4)]
    words[2][1] |= np.uint64(0x80)
    words[3][0] |= np.uint64(0x100)
    return Chunk(np.array([1, 3]), words, operation, user, controls, ("one",), np.zeros(2, np.int64))


def test_a_host_without_it_is_told_of_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> kvm.Offer:
        raise kvm.KvmUnavailable("/dev/kvm: Permission denied")

    monkeypatch.setattr(kvm, "offer", none)
    assert silicon.available() == "silicon: skipped (/dev/kvm: Permission denied)"


def test_features_that_were_skipped_are_named() -> None:
    assert silicon.skips(Counter({"smap": 1234, "pke": 0, "1G pages": 5})) == [
        "silicon: skipped 1G pages (KVM on this host does not offer it), 5 cases",
        "silicon: skipped smap (KVM on this host does not offer it), 1,234 cases",
    ]


@needs_kvm
@pytest.mark.parametrize(("suite", "count"), [(x86_cases.entries, 20_000), (x86_cases.permissions, 60_000)])
def test_host_and_specification_agree(
    laboratory: SiliconLaboratory, suite: Callable[..., Iterator[Chunk]], count: int
) -> None:
    tally = Tally()
    for _ in run(laboratory, laboratory.answerable(suite(laboratory, count, 1), Counter()), tally):
        pass
    assert tally.clean, tally.differences[:3]
    assert tally.cases > 2_000


@needs_kvm
def test_a_specification_that_is_wrong_is_contradicted(laboratory: SiliconLaboratory) -> None:
    laboratory.physical_bits += 1
    words = [np.full(1, 0x67, np.uint64) for _ in range(4)]
    words[0] |= np.uint64(1 << laboratory.prober.physical_bits)
    chunk = Chunk(np.array([1]), words, Operation.READ, True, {}, ("one",), np.zeros(1, np.int64))
    tally = Tally()
    assert list(run(laboratory, [chunk], tally)) == [1]
    assert tally.different == 1
    assert "fault 0xd" in tally.differences[0].observed


@needs_kvm
@pytest.mark.parametrize("name", ["smep", "smap", "pke", "nxe"])
def test_cases_with_a_control_that_is_not_on_offer_are_skipped_by_its_name(
    laboratory: SiliconLaboratory, name: str
) -> None:
    everything: dict[str, Any] = {
        "smep": True,
        "smap": True,
        "pke": True,
        "nxe": True,
        "gigabyte_pages": True,
    }
    laboratory.prober.offer = replace(laboratory.prober.offer, **{**everything, name: False})
    with_it, without = _chunk({name: 1}), _chunk({name: 0})
    skipped = Counter[str]()
    assert [dict(chunk.controls) for chunk in laboratory.answerable([with_it, without], skipped)] == [
        {name: 0}
    ]
    assert {key: count for key, count in skipped.items() if count} == {name: 2}


@needs_kvm
def test_large_pages_that_are_not_on_offer_are_skipped_case_by_case(laboratory: SiliconLaboratory) -> None:
    laboratory.prober.offer = replace(laboratory.prober.offer, gigabyte_pages=False)
    skipped = Counter[str]()
    (kept,) = laboratory.answerable([_chunk({})], skipped)
    assert kept.leaf.tolist() == [1]
    assert [word.tolist() for word in kept.words] == [[0x67], [0x67], [0x67], [0x167]]
    assert skipped == {"1G pages": 1}


@needs_kvm
def test_amd_reserves_what_intel_ignores(laboratory: SiliconLaboratory) -> None:
    chunk = _chunk({})
    entries, addresses = laboratory.place(chunk)
    laboratory.prober.offer = replace(laboratory.prober.offer, vendor="GenuineIntel", module="kvm_intel")
    assert laboratory.predicted(chunk, entries, addresses) == []
    laboratory.prober.offer = replace(laboratory.prober.offer, vendor="AuthenticAMD", module="kvm_amd")
    (known,) = laboratory.predicted(chunk, entries, addresses)
    assert known.name == "amd-reserves-g"
    assert known.answers.fault.tolist() == [True, False]
    assert known.answers.code.tolist() == [0xD, 0]
    assert all((a == b).all() for a, b in zip(known.answers.after, entries, strict=True))


@needs_kvm
def test_an_entry_that_everybody_refuses_is_left_as_it_was(laboratory: SiliconLaboratory) -> None:
    laboratory.prober.offer = replace(laboratory.prober.offer, vendor="AuthenticAMD", module="kvm_amd")
    chunk = _chunk({})
    chunk.words[3][0] |= np.uint64(0x80)
    entries, addresses = laboratory.place(chunk)
    (known,) = laboratory.predicted(chunk, entries, addresses)
    assert known.answers.fault[0]
    assert known.answers.after[3].tolist() == entries[3].tolist()


@needs_kvm
@pytest.mark.parametrize(
    ("operation", "user", "ac", "checked"),
    [
        (Operation.CROSS_READ, True, 1, True),
        (Operation.CROSS_WRITE, True, 1, True),
        (Operation.CROSS_READ, True, 0, False),
        (Operation.CROSS_READ, False, 1, False),
        (Operation.READ, True, 1, False),
    ],
)
def test_pvm_checks_alignment_of_users_who_ask(
    laboratory: SiliconLaboratory, operation: Operation, user: bool, ac: int, checked: bool
) -> None:
    laboratory.prober.offer = replace(laboratory.prober.offer, vendor="GenuineIntel", module="kvm_pvm")
    chunk = _chunk({"ac": ac}, operation, user)
    known = laboratory.predicted(chunk, *laboratory.place(chunk))
    assert [one.name for one in known] == ["pvm-alignment"] * checked
    assert all(one.answers.code.tolist() == [17, 17] for one in known)


@needs_kvm
def test_who_answers_is_told(laboratory: SiliconLaboratory) -> None:
    offer = laboratory.prober.offer
    laboratory.prober.offer = replace(offer, module="kvm_amd", second_stage=False)
    assert "not silicon: kvm_amd" in laboratory.asked
    assert laboratory.blind_to_edits is not None
    laboratory.prober.offer = replace(offer, module="kvm_amd", second_stage=True, under_hypervisor=True)
    assert laboratory.asked == "silicon: kvm_amd with a second stage, under a hypervisor"
    assert laboratory.blind_to_edits is None


@needs_kvm
def test_every_known_difference_has_a_reference(laboratory: SiliconLaboratory) -> None:
    laboratory.prober.offer = replace(laboratory.prober.offer, vendor="AuthenticAMD", module="kvm_pvm")
    chunk = _chunk({"ac": 1}, Operation.CROSS_READ)
    known = laboratory.predicted(chunk, *laboratory.place(chunk))
    assert {one.name for one in known} == set(silicon.KNOWN)
