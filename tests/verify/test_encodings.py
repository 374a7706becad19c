"""The judge of encoders: it finds nothing on the true ones, and catches each of many wrong ones."""

from __future__ import annotations

from collections import Counter

import pytest

from aether_emu.arch.paging import PageTableFormat
from aether_emu.verify import mutations, suites
from aether_emu.verify.comparison import Tally
from aether_emu.verify.encodings import judge
from aether_emu.verify.mutations import Mutant

TRUE = [item for item in suites.FORMATS.values() if "kvm" not in item.name and "upper" not in item.name]
MUTANTS = mutations.mutants()


def judged(fmt: PageTableFormat, isa: str, cases: int, seed: int = 0, only: str = "") -> Tally:
    tally = Tally()
    done = sum(judge(fmt, isa, cases, seed, tally, only))
    assert done == tally.cases == tally.cells.total()
    return tally


@pytest.mark.parametrize("item", TRUE, ids=lambda item: item.name)
def test_nothing_is_found_on_our_own_formats(item: suites.Format) -> None:
    tally = judged(item.ours(), item.isa, 8_000)
    assert [case for case in tally.differences if tally.different] == []
    features = {feature for feature, _access in tally.cells}
    for level in item.ours().levels:
        assert f"decode: {level.name} entry" in features
        assert (f"encode: {level.name} leaf" in features) is level.leaf
        assert (f"clean: {level.name} leaf" in features) is level.leaf
    assert {"table: any", "table: user", "table: supervisor", "held and absent entries"} <= features


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.isa}-{mutant.name}")
def test_a_wrong_encoder_is_caught(mutant: Mutant) -> None:
    assert mutations.check(mutant).by


def test_mutants_are_many_and_all_different() -> None:
    assert len(MUTANTS) >= 60
    assert len({(mutant.isa, mutant.name) for mutant in MUTANTS}) == len(MUTANTS)
    assert Counter(mutant.isa for mutant in MUTANTS)["arm64"] >= 30
    assert len({mutant.make().name for mutant in MUTANTS}) == 5


def test_a_mistake_is_found_where_it_is() -> None:
    by = {mutant.name: mutations.check(mutant).by for mutant in MUTANTS if mutant.isa == "x86_64"}
    assert by["held entries are present"] == ("held and absent entries",)
    assert by["PS missing in 2M leaves"][0] == "encode: PD leaf"
    assert {feature.split(":")[0] for feature in by["ageing clears D"]} == {"age"}
    assert all(feature.startswith("decode") for feature in by["D not read"])


def test_the_same_seed_asks_the_same_and_another_one_something_else() -> None:
    item = TRUE[0]
    first, again, other = (judged(item.ours(), item.isa, 500, seed) for seed in (1, 1, 2))
    assert first.examples == again.examples
    assert first.examples != other.examples


def test_only_keeps_features_by_name() -> None:
    tally = judged(TRUE[0].ours(), TRUE[0].isa, 500, only="write-protect")
    assert {feature.split(":")[0] for feature, _access in tally.cells} == {"write-protect"}


@pytest.mark.slow
@pytest.mark.parametrize("item", TRUE, ids=lambda item: item.name)
def test_a_million_entries_of_each_format_mean_what_the_format_says(item: suites.Format) -> None:
    tally = judged(item.ours(), item.isa, 1_000_000)
    assert tally.cases > 2_000_000
    assert tally.different == 0
