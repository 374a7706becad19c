"""The litmus tests that come with the package, and how a published verdict stands to what was reached."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path

from aether_emu.errors import AetherError, shown, suggestion
from aether_emu.litmus.explore import Explored
from aether_emu.litmus.program import Litmus
from aether_emu.litmus.text import read

ISAS = ("x86_64", "arm64")
SUFFIX = ".litmus"
_HERE = Path(__file__).parent


class Verdict(Enum):
    """How what was reached stands to what is published. `finding` of one tells whether something is wrong."""

    ALLOWED = "reached"
    FORBIDDEN = "not reached"
    OUT_OF_REACH = "out of reach"
    MUST_NOT = "REACHED"
    MISSED = "NOT REACHED"
    WITHIN_REACH = "REACHED, said to be out of reach"

    @property
    def finding(self) -> bool:
        """Whether our outcomes and the published ones differ."""
        return self in (Verdict.MUST_NOT, Verdict.MISSED, Verdict.WITHIN_REACH)


def verdict(explored: Explored) -> Verdict:
    """What a test that was run shows."""
    test = explored.test
    if not test.allowed:
        return Verdict.MUST_NOT if explored.reached else Verdict.FORBIDDEN
    if test.out_of_reach:
        return Verdict.WITHIN_REACH if explored.reached else Verdict.OUT_OF_REACH
    return Verdict.ALLOWED if explored.reached else Verdict.MISSED


class NoSuchTest(AetherError):
    """Neither a file nor the name of a test that comes with the package."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        near = suggestion(name, known)
        super().__init__(
            f"{shown(name)}: a litmus file or a name of aether litmus --list was expected{near}"
        )  # fmt: skip


def shipped(isa: str) -> list[Path]:
    """The files of an ISA that come with the package, by name."""
    return sorted((_HERE / isa).glob(f"*{SUFFIX}"), key=lambda path: path.name.removesuffix(SUFFIX))


def chosen(names: Sequence[str], isas: Sequence[str] = ISAS) -> Iterator[Litmus]:
    """The tests of these files and names, of these ISAs; without names all that come with the package.

    A name that both ISAs have is both tests. Raises LitmusError and NoSuchTest.
    """
    stems = {isa: {path.name.removesuffix(SUFFIX): path for path in shipped(isa)} for isa in isas}
    if not names:
        yield from (read(path) for isa in isas for path in stems[isa].values())
        return
    for name in names:
        if os.sep in name or name.endswith(SUFFIX) or Path(name).is_file():
            test = read(name)
            if test.isa in isas:
                yield test
            continue
        found = [stems[isa][name] for isa in isas if name in stems[isa]]
        if not found:
            raise NoSuchTest(name, [stem for isa in isas for stem in stems[isa]])
        yield from map(read, found)
