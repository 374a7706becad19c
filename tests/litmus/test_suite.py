"""The tests that come with the package: each end is as published, and every rule is needed for that."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from aether_emu.litmus import report
from aether_emu.litmus.explore import Explored
from aether_emu.litmus.program import Manual
from aether_emu.litmus.rules import RULES
from aether_emu.litmus.suite import ISAS, NoSuchTest, Verdict, chosen, shipped, verdict
from tests.litmus.conftest import Run


def test_every_end_is_as_published(everything: list[Explored]) -> None:
    assert [(one.test.isa, one.test.name) for one in everything if verdict(one).finding] == []


@pytest.mark.parametrize("isa", ISAS)
def test_an_isa_has_at_least_forty_shapes_of_both_verdicts_each_with_its_source(isa: str) -> None:
    tests = list(chosen([], (isa,)))
    assert len(tests) >= 40
    assert len({(test.threads, test.text, test.manual, tuple(test.entries.items())) for test in tests}) >= 40
    by_verdict = Counter(test.allowed for test in tests)
    assert min(by_verdict.values()) >= 30
    assert all(test.source and test.summary for test in tests)
    assert [test.name for test in tests] == [path.name.removesuffix(".litmus") for path in shipped(isa)]


def test_what_is_out_of_reach_is_weak_memory_order_and_little(everything: list[Explored]) -> None:
    reasons = [one.test.out_of_reach for one in everything if one.test.out_of_reach]
    assert 0 < len(reasons) <= 8
    assert all(reason.startswith("weak memory order: ") for reason in reasons)


FORBIDDEN = {
    "x86_64": ("unmap+invlpg", "remap+movcr3", "protect+invlpg", "shootdown", "shootdown.three",
               "free-table+invlpg", "global+pge", "clean+invlpg", "block+invlpg"),
    "arm64": ("V2I-W-DSB.ISH-TLBI-DSB.ISH-ISB-W", "coRR-pte9", "MP+shoot+DMBLD", "MP+bbm+DSB-ISB+VMALL",
              "WRC+shoot+DSB", "RBS+dsb-tlbiis-dsb", "permchange-M-shoot+DMB.ISH",
              "table.inv+dsb-tlbi-dsb-isb", "MP.RT.EL1+dsb-shootdown-dsb"),
}  # fmt: skip


@pytest.mark.parametrize(("isa", "name"), [(isa, name) for isa in ISAS for name in FORBIDDEN[isa]])
def test_without_invalidation_what_is_forbidden_is_reached(run: Run, isa: str, name: str) -> None:
    (test,) = chosen([name], (isa,))
    assert not run(test).reached
    assert verdict(run(test, replace(RULES[test.manual], completes=False))) is Verdict.MUST_NOT


def test_without_the_adversary_no_stale_translation_is_used(run: Run, everything: list[Explored]) -> None:
    relied = [one.test for one in everything if one.reached and one.test.allowed]
    missed = [test.name for test in relied if not run(test, replace(RULES[test.manual], keeps=False)).reached]
    assert {"remap+po", "protect+po", "upgrade+po", "shootdown.early", "coRR-pte3", "free-table+po"} <= set(
        missed
    )
    assert {test.name for test in relied} - set(missed) <= {
        # These ends are those of a CPU without a TLB.
        "unmap.fault+po", "dirty-lost", "BBM+dsb-tlbiis-dsb", "STR-LDR-I2V", "W-DSB-TLBI-DSB",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "isa", "names"),
    [
        ("ahead", "arm64", ("coWRExpNExp", "coRR-pte8-dsb", "D15347-store", "coWRExpNExp+DSB-TLBI-DSB")),
        ("upper", "x86_64", ("table+po", "free-table+po")),
        ("upper", "arm64", ("table.inv+dsb-tlbileaf-dsb-isb", "MP.table.inv+dsb-dsb+po")),
        ("weaker", "x86_64", ("upgrade+po", "MP.upgrade+po", "user+po")),
    ],
)
def test_without_a_rule_what_it_allows_is_missed(
    run: Run, rule: str, isa: str, names: tuple[str, ...]
) -> None:
    for test in chosen(names, (isa,)):
        assert verdict(run(test, replace(RULES[test.manual], **{rule: False}))) is Verdict.MISSED, test.name


@pytest.mark.parametrize("name", ["upgrade+po.amd", "user+po.amd", "table+po.amd", "MP.upgrade+po.amd"])
def test_amds_manual_forbids_the_spurious_faults_that_intels_allows(run: Run, name: str) -> None:
    assert not run(name).reached
    assert run(name, RULES[Manual.INTEL]).reached


def test_a_forbidden_end_is_told_with_the_steps_to_it(run: Run) -> None:
    (test,) = chosen(["shootdown"])
    found = run(test, replace(RULES[test.manual], completes=False))
    assert found.witness is not None
    assert found.witness[-1].startswith("thread 1: r0 = load x, by a stale [pa1]: 9")
    assert "cpu 1: interrupt of thread 0" in found.witness
    assert " REACHED " in report.row(found)
    assert report.total([found]).startswith("1 test, 1 finding, ")


def test_the_report_is_the_same_each_time(run: Run) -> None:
    names = ["shootdown.three", "coRR-pte15", "dirty-lost"]
    first, second = ([run(test) for test in chosen(names)] for _ in range(2))
    assert report.as_json(first) == report.as_json(second)


def test_a_wrong_name_suggests_the_nearest() -> None:
    with pytest.raises(NoSuchTest, match=r"coRR-pte99.*did you mean coRR-pte9"):
        list(chosen(["coRR-pte99"]))
