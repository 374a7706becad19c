"""Wrong encoders: the judge catches each, those that are written down and those that a seed makes."""

from __future__ import annotations

from collections import Counter

import pytest

from aether_emu.arch.arm64 import stage1 as arm
from aether_emu.arch.paging import Attributes, Entry, Held, HeldKind, PageFlags, PageTableFormat, Table
from aether_emu.arch.x86_64 import stage1 as x86
from aether_emu.arch.x86_64.stage1 import X86Format
from aether_emu.verify.cases import suites
from aether_emu.verify.judging import edge_mutants, mutations
from aether_emu.verify.judging.mutations import Mutant
from aether_emu.verify.judging.seeded_mutants import seeded

MUTANTS = [*mutations.mutants(), *edge_mutants.mutants()]
SEEDED = seeded(0, 40)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.isa}-{mutant.name}")
def test_a_wrong_encoder_is_caught(mutant: Mutant) -> None:
    assert mutations.is_caught(mutant)


@pytest.mark.parametrize("mutant", SEEDED, ids=lambda mutant: f"{mutant.isa}-{mutant.name}")
def test_an_encoder_with_a_random_mistake_is_caught(mutant: Mutant) -> None:
    assert mutations.is_caught(mutant)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_hundreds_of_random_mistakes_are_caught(seed: int) -> None:
    assert [mutant.name for mutant in seeded(seed, 100) if not mutations.is_caught(mutant)] == []


def test_mutants_are_many_and_all_different() -> None:
    assert len({(mutant.isa, mutant.name) for mutant in MUTANTS}) == len(MUTANTS) >= 100
    assert Counter(mutant.isa for mutant in MUTANTS)["arm64"] >= 50
    assert len({mutant.make().name for mutant in MUTANTS}) == 6


def test_a_seed_makes_the_same_mutants_of_every_kind() -> None:
    names = [mutant.name for mutant in SEEDED]
    assert names == [mutant.name for mutant in seeded(0, 40)]
    assert names != [mutant.name for mutant in seeded(1, 40)]
    assert Counter(mutant.isa for mutant in SEEDED).keys() == {"x86_64", "arm64"}
    for kind in ("swapped", "leaf bit", "table bit", "blind", "flips", "mask", "absent"):
        assert any(kind in name for name in names), kind


def found(name: str) -> set[str]:
    (mutant,) = (one for one in MUTANTS if (one.isa, one.name) == ("x86_64", name))
    return {feature.split(":")[0] for feature in mutations.check(mutant).by}


def test_a_mistake_is_found_where_it_is() -> None:
    assert found("held entries are present") == {"held", "absent"}
    assert found("ageing clears D") == {"age"}
    assert found("next table one bit short") == {"next table", "data"}
    assert found("address mask a bit short, 52 bits") >= {"every address bit", "next table", "leaf address"}
    assert found("absent entries held whatever bit 5 says, 52 bits") == {"absent"}
    assert found("held values cut, 52 bits") == {"held"}
    assert found("addresses unchecked") == {"refused addresses"}
    assert found("a reserved bit not seen") == {"decode", "next table"}
    assert "encode" in found("PS missing in 2M leaves")
    assert found("write-combining refused") == {"accepted"}


def wrong(isa: str, name: str) -> tuple[PageTableFormat, PageTableFormat]:
    """A format with a mistake, and the same one without."""
    (mutant,) = (one for one in MUTANTS if (one.isa, one.name) == (isa, name))
    made = mutant.make()
    return made, next(true for item in suites.FORMATS.values() if (true := item.ours()).name == made.name)


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_a_held_value_one_bit_up_is_twice_the_value_of_the_same_kind(isa: str) -> None:
    mutant, true = wrong(isa, "held values one bit up")
    for kind in HeldKind:
        for value in (0, 1, 0b1011, 1 << 39):
            assert true.decode(mutant.held_entry(Held(kind, value)), 1) == Held(kind, 2 * value)


@pytest.mark.parametrize(
    ("isa", "name"), [("x86_64", "large leaves taken for tables"), ("arm64", "blocks taken for tables")]
)
def test_a_large_leaf_taken_for_a_table_leads_to_where_it_pointed(isa: str, name: str) -> None:
    mutant, true = wrong(isa, name)
    asked = Attributes(PageFlags.READ | PageFlags.USER | PageFlags.ACCESSED)
    page, large = (true.leaf_entry(5 << 30, asked, level) for level in (1, 2))
    assert mutant.decode(large, 2) == Table(5 << 30, true.decode(large, 2).attributes.flags)  # type: ignore[union-attr]  # a leaf
    assert mutant.decode(page, 1) == true.decode(page, 1)


# ---- what `aether verify` judges when nobody asks for more: other CPUs than the engine's too


def differing(isa: str) -> set[str]:
    """The features, without levels, that differ in a run with few cases by chance: a longer one sees more."""
    name = {"x86_64": "x86_64-4level", "arm64": "arm64-64K-42bit"}[isa]
    tally = suites.perform(suites.Task(name, "encodings", 400, 0)).tally
    return {feature.rsplit(": ", 1)[0] for (feature, _access), red in tally.red.items() if red}


def test_a_mask_that_is_short_on_the_widest_cpu_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(x86, "_ADDRESS", 0x0007_FFFF_FFFF_F000)
    assert "52 bits: every address bit" in differing("x86_64")
    monkeypatch.setattr(arm, "_OUTPUT", 0x0000_7FFF_FFFF_F000)
    assert "48 bits: every address bit" in differing("arm64")


def test_an_absent_entry_that_is_taken_for_held_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    true = X86Format._decode_absent
    monkeypatch.setattr(X86Format, "_decode_absent", staticmethod(lambda entry: true(entry & ~0x20)))
    assert "absent" in differing("x86_64")


def test_what_a_cpu_without_nx_or_keys_makes_of_an_entry_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    true = X86Format.decode

    def decode(self: X86Format, entry: int, level: int) -> Entry:
        return true(X86Format(self.top, self.physical_bits), entry, level)

    monkeypatch.setattr(X86Format, "decode", decode)
    wrong = differing("x86_64")
    assert "52 bits, no NX: decode" in wrong
    assert "46 bits, no keys: decode" in wrong
