"""The judge of encoders finds nothing on the true ones, whatever their CPU has switched on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aether_emu.arch.arm64.stage1 import ArmFormat
from aether_emu.arch.paging import Attributes, PageTableFormat
from aether_emu.arch.x86_64.stage1 import X86Format
from aether_emu.verify import judge
from aether_emu.verify.cases import suites
from aether_emu.verify.cases.comparison import Tally, run
from aether_emu.verify.judging import encodings
from aether_emu.verify.judging.encodings import steps
from aether_emu.verify.spec import x86_64 as spec

TRUE = [item for item in suites.FORMATS.values() if "kvm" not in item.name and "upper" not in item.name]


def judged(fmt: PageTableFormat, isa: str, cases: int, seed: int = 0, only: str = "") -> Tally:
    tally = Tally()
    done = sum(steps(fmt, isa, cases, seed, tally, only))
    assert done == tally.cases == tally.cells.total()
    return tally


def asked_of_the_engine(item: suites.Format, cases: int) -> Tally:
    """The part of `suites.perform` for which an MMU is asked: `cases` for a format of usual size."""
    laboratory, tally = item.open(), Tally()
    chunks = encodings.engine_chunks(item.ours(), laboratory, round(cases * item.share) // 4, 0)
    assert sum(run(laboratory, chunks, tally)) == tally.cases
    laboratory.close()
    return tally


@pytest.mark.parametrize("item", TRUE, ids=lambda item: item.name)
def test_nothing_is_found_on_our_own_formats(item: suites.Format) -> None:
    """Every class of entry, and of those by chance 2,000 each way: a million below, marked slow."""
    tally = judged(item.ours(), item.isa, 2_000)
    assert [case for case in tally.differences if tally.different] == []
    features = {feature for feature, _access in tally.cells}
    for number, level in enumerate(item.ours().levels, 1):
        assert f"decode: {level.name} entry" in features
        assert (f"encode: {level.name} leaf" in features) is level.leaf
        assert (f"clean: {level.name} leaf" in features) is level.leaf
        assert f"held: {level.name} entry" in features
        for reach in ("any", "user", "supervisor"):
            assert (f"table, {reach}: {level.name} entry" in features) is (number > 1)
    reported = tally.known[encodings.RES0]
    assert reported > 0 if item.isa == "arm64" else not tally.known.total()


def test_the_same_seed_asks_the_same_and_another_one_something_else() -> None:
    item = TRUE[0]
    first, again, other = (judged(item.ours(), item.isa, 500, seed) for seed in (1, 1, 2))
    assert first.examples == again.examples
    assert first.examples != other.examples


def test_only_keeps_features_by_name() -> None:
    tally = judged(TRUE[0].ours(), TRUE[0].isa, 500, only="write-protect")
    assert {feature.split(":")[0] for feature, _access in tally.cells} == {"write-protect"}


@pytest.mark.parametrize("physical_bits", [36, 52])
def test_the_physical_width_decides_what_is_reserved(physical_bits: int) -> None:
    assert judged(X86Format(4, physical_bits), "x86_64", 2_000).different == 0
    assert judged(ArmFormat(16384, 36, min(physical_bits, 48)), "arm64", 2_000).different == 0


@pytest.mark.parametrize(("nxe", "pke"), [(False, True), (True, False), (False, False)])
def test_a_format_for_a_cpu_without_a_feature_is_judged_without_it(nxe: bool, pke: bool) -> None:
    fmt = X86Format(4, no_execute=nxe, keys=pke)
    without, with_all = Tally(), Tally()
    for _done in steps(fmt, "x86_64", 2_000, 0, without, nxe=nxe, pke=pke):
        pass
    for _done in steps(fmt, "x86_64", 2_000, 0, with_all):
        pass
    assert without.different == 0 < with_all.different


def test_a_difference_is_an_example_even_where_cases_before_it_agreed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Late(X86Format):
        made = 0

        def leaf_bits(self, attributes: Attributes, level: int = 1) -> int:
            bits = super().leaf_bits(attributes, level)
            Late.made += 1
            return bits ^ 1 << 63 if Late.made == 300 else bits

    monkeypatch.setattr(encodings, "_AT_ONCE", 250)
    tally = judged(Late(4), "x86_64", 4_000, only="encode: PT")
    cell = ("encode: PT leaf", "format")
    assert tally.red[cell] == len(tally.differences) == 1
    assert tally.examples[cell] == tally.differences[0]
    assert tally.differences[0].expected != tally.differences[0].observed


def test_few_cases_are_enough_for_an_engine() -> None:
    for item in TRUE[:3]:
        assert asked_of_the_engine(item, 1).clean
    whole = suites.perform(suites.Task(TRUE[0].name, "encodings", 1, 0, "engine: ")).tally
    assert whole.clean and whole.cells == asked_of_the_engine(TRUE[0], 1).cells


def test_an_mmu_that_does_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    true = spec.judge

    def judge_without_writes(found: spec.Translation, *rest: Any) -> spec.Verdict:
        return true(replace(found, writable=found.writable & False), *rest)

    monkeypatch.setattr(spec, "judge", judge_without_writes)
    tally = asked_of_the_engine(TRUE[0], 4_000)
    assert {access for (_feature, access), red in tally.red.items() if red} == {
        "write user",
        "write supervisor",
    }


@pytest.mark.parametrize("item", TRUE, ids=lambda item: item.name)
def test_an_mmu_takes_our_leaves_as_the_specification_does(item: suites.Format) -> None:
    tally = asked_of_the_engine(item, 4_000)
    assert tally.clean
    accesses = {access for _feature, access in tally.cells}
    assert accesses == {
        f"{what} {who}" for what in ("read", "write", "fetch") for who in ("user", "supervisor")
    }
    assert {feature.rsplit(" ", 1)[1] for feature, _access in tally.cells} == {"any", "user", "supervisor"}
    assert any("fault" in case.expected for case in tally.examples.values())
    assert any("fault" not in case.expected for case in tally.examples.values())


@pytest.mark.slow
@pytest.mark.parametrize("item", TRUE, ids=lambda item: item.name)
def test_a_million_entries_of_each_format_mean_what_the_format_says(item: suites.Format) -> None:
    tally = judged(item.ours(), item.isa, 1_000_000)
    assert tally.cases > 2_000_000
    assert tally.different == 0


def test_everybody_can_judge_an_encoder_of_their_own() -> None:
    class Wrong(X86Format):
        """Supervisor pages are given to users."""

        def leaf_bits(self, attributes: Attributes, level: int = 1) -> int:
            return super().leaf_bits(attributes, level) | 4

    assert judge(X86Format(4), "x86_64", cases=500).clean
    tally = judge(Wrong(4), "x86_64", cases=500)
    assert not tally.clean and tally.cases > 500 and tally.differences
