"""Measured figures as a table for people, and as JSON from which two commits can be compared."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from aether_emu.observe.bench.figure import Figure, Result

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = 2


def versions(package: str) -> dict[str, str]:
    """Versions of everything that decides a figure; `package` is this package's."""
    return {
        "aether_emu": package,
        "python": platform.python_version(),
        "unicorn": version("unicorn"),
        "numpy": version("numpy"),
    }


def as_data(
    results: Sequence[Result], used: Mapping[str, str], left_out: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Everything measured as plain data, and why the rest was not. All times are CPU seconds per `unit`."""
    return {
        "schema": SCHEMA,
        "versions": dict(used),
        "host": {"system": platform.system(), "release": platform.release(), "machine": platform.machine()},
        "figures": [
            {
                "name": result.figure.name,
                "isa": result.figure.isa,
                "what": result.figure.what,
                "program": result.figure.program,
                "floor_is": result.figure.floor_is,
                "unit": result.figure.unit,
                "ours": result.ours,
                "floor": result.floor,
                "ratio": {
                    "median": result.ratio,
                    "min": min(result.ratios),
                    "max": max(result.ratios),
                },
                "goal": result.figure.goal,
                "met": result.met,
                "pairs": [list(pair) for pair in result.pairs],
                "shares": dict(result.figure.shares()),
            }
            for result in results
        ],
        "not_measured": dict(left_out),
    }


def as_json(data: Mapping[str, Any]) -> str:
    """The data as indented JSON with a final newline."""
    return json.dumps(data, indent=2) + "\n"


def as_table(results: Sequence[Result]) -> Table:
    """The figures for people: medians; below a ratio the range of the pairs' ratios."""
    from rich.table import Table  # heavy, and only needed when somebody looks

    table = Table(title="CPU time beside its floor; ratio: median of alternating pairs", show_lines=True)
    table.add_column("name", no_wrap=True)
    table.add_column("what")
    for name in ("ours", "floor", "ratio", "target"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        figure = result.figure
        table.add_row(
            figure.label,
            "\n".join(_description(figure)),
            duration(result.ours),
            duration(result.floor),
            f"{result.ratio:.2f}\n{min(result.ratios):.2f}..{max(result.ratios):.2f}",
            f"<= {figure.goal:g}\n{'met' if result.met else 'MISSED'}",
        )
    return table


def _description(figure: Figure) -> Iterator[str]:
    yield from (figure.what, figure.program, f"floor: {figure.floor_is}")
    shares = figure.shares()
    if shares:
        yield ", ".join(f"{kind} {duration(seconds)}" for kind, seconds in shares.items())


def duration(seconds: float) -> str:
    """Seconds in the unit that keeps one to three digits before the point."""
    if not seconds:
        return "0"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
