"""`aether scale`: what scales under which locks, the same for one seed, and a figure that says what it is."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from aether_emu.observe.scaling import plot, sweep
from aether_emu.observe.scaling.sweep import WORKS, Point
from aether_emu.system import Machine
from tests.programs.run import ISAS

_BY_NAME = {work.name: replace(work, operations=min(work.operations, 20)) for work in WORKS}


def _measure(isa: str, work: str, scheme: str, cpus: int) -> Point:
    return sweep.measure(isa, _BY_NAME[work], scheme, cpus)


@pytest.mark.parametrize("isa", ISAS)
def test_page_faults_scale_with_the_locks_of_areas_and_leaf_tables_alone(isa: str) -> None:
    alone, one, fine = (
        _measure(isa, "own", scheme, cpus) for scheme, cpus in (("leaf", 1), ("space", 8), ("leaf", 8))
    )
    assert fine.throughput > 4 * alone.throughput
    assert one.throughput < 1.1 * alone.throughput
    assert one.locks["space"]["contended"] > 100 > fine.locks["table"]["contended"]
    assert one.locks["frames"]["taken"] > 3 * fine.locks["frames"]["taken"]
    shared = _measure(isa, "shared", "leaf", 8)
    assert one.throughput < shared.throughput < fine.throughput
    assert shared.locks["table"]["contended"] > 50


@pytest.mark.parametrize("isa", ISAS)
def test_mappings_of_ranges_apart_wait_for_no_lock_where_there_is_none_of_the_space(isa: str) -> None:
    by = {
        (work, scheme): _measure(isa, work, scheme, 4)
        for work, scheme in (("disjoint", "leaf"), ("neighbours", "leaf"), ("disjoint", "area"))
    }
    apart = by["disjoint", "leaf"]
    assert apart.locks["table"]["contended"] < 5
    for other in (by["neighbours", "leaf"], by["disjoint", "area"]):
        assert apart.throughput > 1.5 * other.throughput
    assert by["neighbours", "leaf"].locks["table"]["waited_ns"] > 0
    assert by["disjoint", "area"].locks["space"]["waited_ns"] > 0


def test_forks_of_one_process_wait_for_its_locks() -> None:
    space, leaf = (_measure("x86_64", "fork", scheme, 4) for scheme in ("space", "leaf"))
    assert space.locks["space"]["waited_ns"] > leaf.locks["table"]["waited_ns"]
    assert space.throughput < leaf.throughput


def test_one_seed_gives_the_same_bytes_and_a_figure_that_says_it_is_modelled() -> None:
    works = ("own", "neighbours")
    first, second = (
        [_measure("x86_64", work, scheme, 2) for work in works for scheme in sweep.SCHEMES] for _ in range(2)
    )
    assert sweep.as_json("x86_64", 0, first) == sweep.as_json("x86_64", 0, second)
    picture = plot.as_svg("x86_64", 0, first)
    assert picture == plot.as_svg("x86_64", 0, second)
    root = ElementTree.fromstring(picture)
    texts = [item.text or "" for item in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any("modelled" in text for text in texts)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == len(works) * len(sweep.SCHEMES)
    page = plot.as_html("x86_64", 0, first)
    assert "modelled" in page
    assert page.count("<tr>") == len(first) + 1


def test_without_locks_nothing_of_them_is_there() -> None:
    with Machine("x86_64", cpus=2) as machine:
        assert machine.kernel.contention is None
        assert type(machine.buddy).__name__ == "Buddy"


def test_the_figure_names_only_what_was_measured_and_so_that_it_can_be_read() -> None:
    counts = (1, 2, 4, 24, 28, 56, 60, 62, 63, 64)
    points = [Point("own", "leaf", cpus, 10, 1000, {}, 0) for cpus in counts]
    root = ElementTree.fromstring(plot.as_svg("x86_64", 0, points))
    texts = list(root.iter("{http://www.w3.org/2000/svg}text"))
    assert [text.text for text in texts if (text.text or "").startswith(("space:", "area:", "leaf:"))] == [
        "leaf: leaf tables' locks in place of the space's"
    ]
    below = [text for text in texts if text.get("text-anchor") == "middle" and text.text != "CPUs"]
    assert [text.text for text in below if text.text in ("1", "64")] == ["1", "64"]
    places = sorted(float(text.get("x", "")) for text in below)
    assert all(right - left >= 16 for left, right in pairwise(places))
