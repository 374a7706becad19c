"""Exploration: all interleavings, by translations that the emulated CPU executes."""

from __future__ import annotations

import pytest

from aether_emu.litmus.explore import TooManyStates, _Exploration, explore
from aether_emu.litmus.laboratory import Laboratory, Path
from aether_emu.litmus.program import INVALID, Entry, Kind, Litmus, Slot
from aether_emu.litmus.suite import ISAS, chosen
from aether_emu.litmus.text import parse
from tests.litmus.conftest import Run


def written(isa: str, body: str) -> Litmus:
    memory = "memory\n pa1 = 10\n pa2 = 20\n paz = 0\nmap\n x -> pa1\n z -> paz\n table t -> pa2\n"
    return parse(f"name: t\nisa: {isa}\npublished: allowed\nsource: s\n{memory}{body}")


@pytest.mark.parametrize("isa", ISAS)
def test_every_interleaving_and_no_other_end_is_found(run: Run, isa: str) -> None:
    body = "thread 0\n store x 1\n r0 = load z\nthread 1\n store z 1\n r0 = load x\nexists 0:r0 = 0\n"
    found = run(written(isa, body))
    ends = {tuple(part.split("=")[1] for part in end.split()[:2]) for end in found.ends}
    assert ends == {("0", "1"), ("1", "10"), ("1", "1")}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("store", [False, True])
def test_a_stale_translation_is_gone_by_in_the_engines_own_tlb(
    laboratories: dict[str, Laboratory], isa: str, store: bool
) -> None:
    laboratory = laboratories[isa]
    test = written(isa, "thread 0\n r0 = load x\nexists 0:r0 = 0\n")
    laboratory.place(test)
    now = {**test.entries, Slot(1, "x"): INVALID, Slot(1, "t"): Entry(Kind.PAGE, "pa2")}
    for leaf, page in ((Entry(Kind.PAGE, "pa1"), 0), (Entry(Kind.PAGE, "pa2"), 1)):
        laboratory.put(now, (10, 20, 0))
        before = laboratory.planted
        by = Path(((Slot(2, "x"), test.entries[Slot(2, "x")]), (Slot(1, "x"), leaf)))
        got = laboratory.access(0, "x", 77 if store else None, by, stale=True)
        assert laboratory.planted == before + 1
        assert laboratory.entry(Slot(1, "x")) == INVALID, "memory is as it was"
        assert got == (0 if store else (10, 20)[page])
        assert laboratory.data()[page] == (77 if store else (10, 20)[page])
    assert laboratory.access(0, "x", None, Path(()), stale=False) is None, (
        "the next walk finds what memory says"
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("page", ["x", ""])
def test_an_invalidation_that_is_executed_drops_a_stale_translation(
    laboratories: dict[str, Laboratory], isa: str, page: str
) -> None:
    laboratory = laboratories[isa]
    test = written(isa, "thread 0\n r0 = load x\nexists 0:r0 = 0\n")
    laboratory.place(test)
    laboratory.put(test.entries, (10, 20, 0))
    assert laboratory.access(0, "x", None, Path(()), stale=False) == 10
    laboratory.put({**test.entries, Slot(1, "x"): INVALID}, (10, 20, 0))
    load = laboratory.access_warm
    assert load(0, "x") == 10
    laboratory.invalidate([0], page)
    assert load(0, "x") is None


def test_entries_are_stored_by_the_supervisor_and_users_cannot(run: Run) -> None:
    for isa in ISAS:
        body = "thread 0\n set pte(x) = pa2 kernel\n r1 = load pte(x)\nexists 0:r1 = entry(pa2 kernel)\n"
        found = run(written(isa, body))
        assert found.reached
        assert found.executed == 2


def test_an_interrupt_is_handled_at_any_time_and_waiting_means_acknowledged(run: Run) -> None:
    body = "thread 0\n set pte(x) = invalid\n ipi 1 invlpg x\n{}store z 1\n"
    body += "thread 1\n r0 = load z\n r1 = load x\n"
    ends = "exists 1:r0 = 1 and 1:r1 = 10\n"
    assert run(written("x86_64", body.format("") + ends)).reached
    assert not run(written("x86_64", body.format(" wait\n ") + ends)).reached
    early = body.format(" wait\n ").replace("invlpg x", "invlpg x early")
    assert run(written("x86_64", early + ends)).reached


def test_hardware_records_what_was_used(run: Run) -> None:
    (test,) = chosen(["accessed"])
    unused = parse(
        "name: t\nisa: x86_64\npublished: allowed\nsource: s\nmemory\n p = 3\nmap\n x -> p old clean\n"
        "thread 0\n r0 = load x\nexists pte(x).accessed = 1 and pte(x).dirty = 0\n"
    )
    assert run(unused).reached
    assert not run(test).reached


def test_a_test_with_too_many_states_is_given_up_in_one_line(laboratories: dict[str, Laboratory]) -> None:
    (test,) = chosen(["shootdown.three"])
    with pytest.raises(TooManyStates, match=r"shootdown\.three has more than 20 states") as raised:
        explore(test, laboratories["x86_64"], most=20)
    assert "\n" not in str(raised.value)


def test_taking_barriers_at_once_changes_no_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    names = (
        "coRR-pte5",
        "coRR-pte8-dsb-isb",
        "MP+shoot+DSB-ISB",
        "I2V-R-DSB.ISH-ISB-R+W",
        "WRC+DSB-ISB+DSB-ISB",
    )
    quick = [run(name) for name in names]
    monkeypatch.setattr(_Exploration, "_unseen", lambda self, state, number: False)
    slow = [run(name) for name in names]
    assert [one.ends for one in quick] == [one.ends for one in slow]
    assert sum(one.states for one in quick) < sum(one.states for one in slow)


@pytest.mark.parametrize(
    ("isa", "first"), [("x86_64", "flush all"), ("x86_64", "invlpg x"), ("arm64", "tlbi all")]
)
def test_a_test_may_begin_with_an_invalidation(isa: str, first: str) -> None:
    laboratory = Laboratory(isa)
    try:
        test = written(isa, f"thread 0\n {first}\n r0 = load x\nexists 0:r0 = 10\n")
        assert explore(test, laboratory).reached
    finally:
        laboratory.close()


def test_the_engines_hidden_state_is_no_condition() -> None:
    """Where no view of the CPU's state is possible, the slower way gives the same."""
    for isa, name in (("x86_64", "protect+po"), ("arm64", "coRR-pte9")):
        (test,) = chosen([name], (isa,))
        laboratory = Laboratory(isa, live_state=False)
        try:
            assert explore(test, laboratory).reached == test.allowed
        finally:
            laboratory.close()
