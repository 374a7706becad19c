"""`aether litmus`: page-table litmus tests, every verdict beside the published one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aether_emu.cli.app import settle, show_tracebacks
from aether_emu.cli.interrupts import interrupts
from aether_emu.cli.options import FILE, Command, debug_option, one_of, text, whole
from aether_emu.output import Output

if TYPE_CHECKING:
    from aether_emu.litmus.explore import Explored
    from aether_emu.litmus.program import Litmus

_STATES = 200_000


def _names() -> Sequence[str]:
    from aether_emu.litmus import suite

    return [path.name.removesuffix(suite.SUFFIX) for isa in suite.ISAS for path in suite.shipped(isa)]


@click.command(cls=Command)
@click.argument("tests", nargs=-1, type=text("FILE|NAME", _names), help="Tests; all that come with aether.")
@click.option(
    "--isa", type=one_of("ISA", ("x86_64", "arm64", "all")), default="all", help="x86_64, arm64 or all."
)
@click.option("--list", "only_list", is_flag=True, help="Say what there is, and who published each verdict.")
@click.option("--steps", is_flag=True, help="Print how each end came about that the test asks for.")
@click.option("--states", type=whole(1), default=_STATES, help="Give up on a test with more states.")
@click.option("--json", "json_file", type=FILE, help="The same as JSON, with all ends.")
@debug_option
def litmus(
    tests: Sequence[str],
    isa: str,
    only_list: bool,
    steps: bool,
    states: int,
    json_file: Path | None,
    debug: bool,
) -> None:
    """Run page-table litmus tests in every interleaving, with a TLB that keeps what it may.

    Accesses, entry writes and invalidations are executed by one CPU for each thread. Exit status 1 when
    an end is reached that is published as forbidden, or an allowed one is not.
    """
    show_tracebacks(debug)
    from aether_emu.litmus import report, suite

    wanted = list(suite.chosen(tests, suite.ISAS if isa == "all" else (isa,)))
    if only_list:
        for test in wanted:
            print(report.listed(test))
        return
    output = None if json_file is None else Output("json", json_file)
    settle()
    done: list[Explored] = []
    with interrupts.reporting():
        try:
            print(report.heading(), flush=True)
            for explored in _explored(wanted, states):
                done.append(explored)
                print(report.row(explored), flush=True)
                if steps or suite.verdict(explored).finding:
                    print("\n".join(report.steps(explored)) or f"  no end has {explored.test.text}")
        except KeyboardInterrupt:
            print(f"interrupted: {len(done)} of {len(wanted)} tests were run")
            raise
        if output is not None:
            output.write(report.as_json(done))
    print(report.total(done))
    raise click.exceptions.Exit(int(any(suite.verdict(one).finding for one in done)))


def _explored(wanted: Sequence[Litmus], states: int) -> Iterator[Explored]:
    from aether_emu.litmus.explore import explore
    from aether_emu.litmus.laboratory import Laboratory

    opened: dict[str, Laboratory] = {}
    try:
        for test in wanted:
            if test.isa not in opened:
                opened[test.isa] = Laboratory(test.isa)
            yield explore(test, opened[test.isa], most=states)
    finally:
        for laboratory in opened.values():
            laboratory.close()
