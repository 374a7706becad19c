"""Runs that are cut: captured at some moments, each time restored into a new machine that goes on."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aether_emu import state
from aether_emu.linux.files.streams import BufferStream
from aether_emu.observe import stats
from aether_emu.records import dataclass
from aether_emu.system import Machine

PROGRAMS = Path(__file__).parent / "programs" / "bin"


@dataclass(frozen=True)
class Told:
    """What a run left behind. The statistics have its virtual time, and its blocks."""

    status: int
    output: str
    statistics: dict[str, object]

    @property
    def blocks(self) -> int:
        """How many were executed."""
        blocks = self.statistics["blocks_executed"]
        assert isinstance(blocks, int)
        return blocks


def run(
    isa: str,
    words: list[str],
    moments: Iterable[int] = (),
    *,
    block: int = 2,
    captured: bool = True,
    switches: bool = False,
    **options: Any,
) -> Told:
    """Run a program of tests/programs; from each of `moments`, counts of blocks, by another machine.

    A block takes `block` ns; `options` as of a Machine. Where it is not `captured`, the same machine goes on.
    With `switches` the statistics tell of those too, and of what follows from them: after a pause other turns
    may be drawn, which these programs notice in nothing else.
    """
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    machine = Machine(isa, ram="32M", aperture="8M", seed=5, clock={"block": block}, **options)
    try:
        ended = None
        machine.load(PROGRAMS / isa / words[0], words, streams=streams)
        stats.prepare(machine)
        for moment in moments:
            left = moment - machine.kernel.blocks
            if left <= 0:
                continue
            ended = machine.run_for(left)
            if ended is not None:
                break
            if machine.process is None or machine.process.is_over:
                break  # it has ended, and is not let go yet
            if not captured:
                continue
            described = state.capture(machine)
            machine.close()
            machine = state.restore(described, streams=streams)
        if ended is None:
            ended = machine.run()
        told = stats.collect(machine, 0)
    finally:
        machine.close()
    if not switches:
        told.pop("tags", None)
        told.pop("zeroed_pages")  # who ends before another begins leaves it a kernel stack that was used
    written = streams["stdout"].written + streams["stderr"].written
    return Told(ended.status, bytes(written).decode(), told)


def seeded(blocks: int, count: int, *about: object) -> list[int]:
    """So many moments of a run of `blocks`."""
    chance = random.Random(repr(about))
    return sorted(chance.randrange(1, blocks) for _ in range(count))
