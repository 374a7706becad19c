"""Engines that all tests of this folder share: opening them is most of the time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from aether_emu.litmus.explore import Explored, explore
from aether_emu.litmus.laboratory import Laboratory
from aether_emu.litmus.program import Litmus
from aether_emu.litmus.rules import Rules
from aether_emu.litmus.suite import ISAS, chosen

Run = Callable[..., Explored]


@pytest.fixture(scope="session")
def laboratories() -> Iterator[dict[str, Laboratory]]:
    opened = {isa: Laboratory(isa) for isa in ISAS}
    yield opened
    for laboratory in opened.values():
        laboratory.close()


@pytest.fixture(scope="session")
def run(laboratories: dict[str, Laboratory]) -> Run:
    """Explores a test, given itself or by name, under its manual's rules or others."""

    def run(test: Litmus | str, rules: Rules | None = None, isa: str = "") -> Explored:
        if isinstance(test, str):
            (test,) = chosen([test], (isa,) if isa else ISAS)
        return explore(test, laboratories[test.isa], rules)

    return run


@pytest.fixture(scope="session")
def everything(run: Run) -> list[Explored]:
    """All tests that come with the package."""
    return [run(test) for test in chosen([])]
