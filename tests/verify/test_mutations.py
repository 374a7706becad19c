"""Wrong encoders: the judge catches each, those that are written down and those that a seed makes."""

from __future__ import annotations

from collections import Counter

import pytest

from aether_emu.verify.judge import mutations
from aether_emu.verify.judge.mutations import Mutant
from aether_emu.verify.judge.seeded_mutants import seeded

MUTANTS = mutations.mutants()
SEEDED = seeded(0, 40)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.isa}-{mutant.name}")
def test_a_wrong_encoder_is_caught(mutant: Mutant) -> None:
    assert mutations.check(mutant).by


@pytest.mark.parametrize("mutant", SEEDED, ids=lambda mutant: f"{mutant.isa}-{mutant.name}")
def test_an_encoder_with_a_random_mistake_is_caught(mutant: Mutant) -> None:
    assert mutations.check(mutant).by


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_hundreds_of_random_mistakes_are_caught(seed: int) -> None:
    assert [mutant.name for mutant in seeded(seed, 100) if not mutations.check(mutant).by] == []


def test_mutants_are_many_and_all_different() -> None:
    assert len({(mutant.isa, mutant.name) for mutant in MUTANTS}) == len(MUTANTS) >= 100
    assert Counter(mutant.isa for mutant in MUTANTS)["arm64"] >= 50
    assert len({mutant.make().name for mutant in MUTANTS}) == 5


def test_a_seed_makes_the_same_mutants_of_every_kind() -> None:
    names = [mutant.name for mutant in SEEDED]
    assert names == [mutant.name for mutant in seeded(0, 40)]
    assert names != [mutant.name for mutant in seeded(1, 40)]
    assert Counter(mutant.isa for mutant in SEEDED).keys() == {"x86_64", "arm64"}
    for kind in ("swapped", "leaf bit", "table bit", "blind", "flips"):
        assert any(kind in name for name in names), kind


def found(name: str) -> set[str]:
    (mutant,) = (one for one in MUTANTS if (one.isa, one.name) == ("x86_64", name))
    return {feature.split(":")[0] for feature in mutations.check(mutant).by}


def test_a_mistake_is_found_where_it_is() -> None:
    assert found("held entries are present") == {"held"}
    assert found("ageing clears D") == {"age"}
    assert found("next table one bit short") == {"next table"}
    assert found("addresses unchecked") == {"refused addresses"}
    assert found("a reserved bit not seen") == {"decode"}
    assert "encode" in found("PS missing in 2M leaves")
    assert found("write-combining refused") == {"accepted"}
