"""Outcomes as one HTML page: a matrix for each task, green and red, and a case behind each cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aether_emu.verify.cases.comparison import Case
from aether_emu.verify.cases.known import KNOWN, NOT_ASKED
from aether_emu.verify.cases.suites import FORMATS, Outcome, verdict
from aether_emu.verify.cases.tlb import TlbTally
from aether_emu.verify.spec.fields import decode

_PAGE = Path(__file__).with_name("report.html")


def as_html(outcomes: Sequence[Outcome]) -> str:
    """The whole page: it needs nothing from elsewhere. What it shows is escaped, wherever it comes from."""
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415  # nothing but a report needs it

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    details: dict[str, object] = {}
    clean = all(map(verdict, outcomes))
    total = sum(outcome.tally.cases for outcome in outcomes)
    return environment.from_string(_PAGE.read_text(encoding="utf-8")).render(
        sections=[_section(number, outcome, details) for number, outcome in enumerate(outcomes)],
        details=details,
        state="green" if clean else "red",
        summary=f"{total:,} cases; " + ("nothing is left to explain" if clean else "there are differences"),
        known=KNOWN.items(),
        not_asked=NOT_ASKED,
    )


def _section(number: int, outcome: Outcome, details: dict[str, object]) -> dict[str, object]:
    """What the page says of one task. The cases behind its cells go into `details`."""
    task, tally = outcome.task, outcome.tally
    summary = f"{tally.cases:,} cases"
    if tally.set_aside:
        summary += f", {tally.set_aside:,} set aside"
    summary += f", {tally.different:,} differences"
    summary += "".join(f"; {name}: {count:,}" for name, count in tally.known.items() if count)
    features = list(dict.fromkeys(feature for feature, _access in tally.cells))
    accesses = list(dict.fromkeys(access for _feature, access in tally.cells))
    rows = []
    for row, feature in enumerate(features):
        keys = [(f"{number}.{row}.{column}", access) for column, access in enumerate(accesses)]
        cells = [_cell(outcome, (feature, access), key, details) for key, access in keys]
        rows.append({"feature": feature, "cells": cells})
    findings = tally.findings.items() if isinstance(tally, TlbTally) else ()
    return {
        "format": task.format,
        "suite": task.suite,
        "summary": summary,
        "lines": outcome.lines,
        "accesses": accesses,
        "rows": rows,
        "findings": [
            (edit, (found.histories, found.owed, found.missing, found.needless)) for edit, found in findings
        ],
    }


def _cell(
    outcome: Outcome, cell: tuple[str, str], key: str, details: dict[str, object]
) -> dict[str, str] | None:
    """One cell of a matrix. None where no case fell into it."""
    tally = outcome.tally
    count, red = tally.cells[cell], tally.red[cell]
    if not count:
        return None
    details[key] = _detail(outcome, tally.examples[cell], red)
    text = f"{red:,} of {count:,}" if red else f"{count:,}"
    return {"key": key, "state": "red" if red else "green", "text": text}


def _detail(outcome: Outcome, case: Case, red: int) -> dict[str, object]:
    task = outcome.task
    isa = FORMATS[task.format].isa
    entries = [
        f"level {level}: {entry:#018x} {decode(isa, entry, level, leaf=level == case.leaf)}"
        for level, entry in reversed(list(enumerate(case.entries, 1)))
    ]
    count = "--full" if task.cases is None else f"--cases {task.asked}"
    name = case.feature.replace("'", "'\\''")
    command = f"aether verify {task.format} --suite {task.suite} {count} --seed {task.seed} --only '{name}'"
    return {
        "title": f"{case.feature}, {case.access}" + (" (differs)" if red else ""),
        "address": f"{case.address:#x}",
        "controls": " ".join(f"{key}={value}" for key, value in case.controls.items()) or "as by default",
        "entries": entries,
        "specification": case.expected,
        "seen": case.observed,
        "command": command,
    }
