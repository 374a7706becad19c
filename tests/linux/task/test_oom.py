"""Which process goes when memory is out, and the table that says why."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from aether_emu.linux.task import oom
from aether_emu.linux.task.ended import Ended
from aether_emu.linux.task.oom import NEVER, choose, points, table
from aether_emu.system import Machine
from tests.guests.running import program


@pytest.fixture
def machine() -> Any:
    with Machine("x86_64", ram="16M", swap="16M") as made:
        made.load(program("x86_64", "hello"), ["hello"])
        yield made


@dataclass(eq=False)
class Fake:
    """A process, as far as the choice looks at it."""

    mm: Any
    pid: int
    oom_adjustment: int
    kernel: Any
    credentials: Any
    name: bytes
    ended: object = None


def others(monkeypatch: pytest.MonkeyPatch, machine: Machine, *described: tuple[int, int]) -> list[Any]:
    """Processes of so many pages, with these oom_score_adj."""
    first = machine.process
    assert first is not None
    made = []
    for number, (count, adjustment) in enumerate(described):
        tables, account = SimpleNamespace(tables=1), SimpleNamespace(reserved=1 << 20)
        space = SimpleNamespace(table=tables, account=account, count=count)
        name = b"p%d" % number
        made.append(Fake(space, 2000 + number, adjustment, machine.kernel, first.credentials, name))
    pages_of = oom._pages

    def pages(process: Any) -> tuple[int, int]:
        return (process.mm.count, 0) if isinstance(process, Fake) else pages_of(process)

    monkeypatch.setattr(oom, "_pages", pages)
    return made


def test_the_one_with_most_goes_but_for_what_its_user_says(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    few: Any
    few, many, most = others(monkeypatch, machine, (10, 0), (1000, 0), (3000, NEVER))
    current = machine.process
    assert current is not None
    assert choose([few, many, most], current) is many
    few.oom_adjustment = 500  # of all memory and swap, which have 8192 pages
    assert points(few) == 11 + 4096
    assert choose([few, many, most], current) is few
    few.ended = Ended(signal=9)
    many.oom_adjustment = NEVER
    assert choose([few, many, most], current) is current
    assert choose([many, few], few) is few


def test_the_table_shows_those_that_count_most(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    current = machine.process
    assert current is not None
    made = others(monkeypatch, machine, *[(number * 10, 0) for number in range(40)])
    lines = table(made, made[-1], current).splitlines()
    assert lines[0].startswith("out of memory: hello (1000) needs a page; ")
    assert lines[0].endswith("16384 of 16384 KiB of swap")
    assert len(lines) == 2 + 32 + 2
    assert lines[2].split()[-1] == "p8"
    assert lines[-3].split() == ["[", "2039]", "1000", "2039", "256", "390", "4096", "0", "0", "p39"]
    assert lines[-2:] == [
        "and 8 more, which count less",
        "killed: p39 (2039), which counts most: 391 pages, oom_score_adj 0",
    ]
