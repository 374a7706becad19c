"""Outcomes as one HTML page: a matrix for each task, green and red, and a case behind each cell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from aether_emu.verify.cases.comparison import Case
from aether_emu.verify.cases.known import KNOWN, NOT_ASKED
from aether_emu.verify.cases.suites import FORMATS, Outcome, verdict
from aether_emu.verify.cases.tlb import TlbTally
from aether_emu.verify.spec.fields import decode

_PAGE = Path(__file__).with_name("report.html")


def as_html(outcomes: Sequence[Outcome]) -> str:
    """The whole page: it needs nothing from elsewhere."""
    details: dict[str, object] = {}
    body = "".join(_section(number, outcome, details) for number, outcome in enumerate(outcomes))
    clean = all(map(verdict, outcomes))
    total = sum(outcome.tally.cases for outcome in outcomes)
    summary = f"{total:,} cases; " + ("nothing is left to explain" if clean else "there are differences")
    data = json.dumps(details, sort_keys=True).replace("<", "\\u003c")
    page = _PAGE.read_text(encoding="utf-8")
    for place, content in (
        ("{{summary}}", escape(summary)),
        ("{{state}}", "green" if clean else "red"),
        ("{{known}}", _rows(KNOWN)),
        ("{{not-asked}}", "".join(f"<li>{escape(text)}</li>" for text in NOT_ASKED)),
        ("{{body}}", body),
        ("{{data}}", data),
    ):
        page = page.replace(place, content)
    return page


def _rows(table: dict[str, str]) -> str:
    return "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in table.items())


def _section(number: int, outcome: Outcome, details: dict[str, object]) -> str:
    task, tally = outcome.task, outcome.tally
    parts = [f"<section><h2>{escape(task.format)}: {escape(task.suite)}</h2><p>{tally.cases:,} cases"]
    if tally.set_aside:
        parts.append(f", {tally.set_aside:,} set aside")
    parts.append(f", {tally.different:,} differences")
    parts += [f"; {escape(name)}: {count:,}" for name, count in tally.known.items() if count]
    parts.append("</p>")
    parts += [f"<p>{escape(line)}</p>" for line in outcome.lines]
    features = list(dict.fromkeys(feature for feature, _access in tally.cells))
    accesses = list(dict.fromkeys(access for _feature, access in tally.cells))
    if features:
        parts.append("<table class=matrix><tr><th></th>")
        parts += [f"<th>{escape(access)}</th>" for access in accesses]
        parts.append("</tr>")
        for row, feature in enumerate(features):
            parts.append(f"<tr><th>{escape(feature)}</th>")
            for column, access in enumerate(accesses):
                cell, key = (feature, access), f"{number}.{row}.{column}"
                count, red = tally.cells[cell], tally.red[cell]
                if not count:
                    parts.append("<td></td>")
                    continue
                details[key] = _detail(outcome, tally.examples[cell], red)
                state, text = ("red", f"{red:,} of {count:,}") if red else ("green", f"{count:,}")
                parts.append(f'<td class={state}><button data-key="{key}">{text}</button></td>')
            parts.append("</tr>")
        parts.append("</table>")
    if isinstance(tally, TlbTally):
        parts.append(_findings(tally))
    return "".join(parts) + "<div class=detail hidden></div></section>"


def _findings(tally: TlbTally) -> str:
    rows = "".join(
        f"<tr><th>{escape(edit)}</th><td>{found.histories:,}</td><td>{found.owed:,}</td>"
        f"<td>{found.missing:,}</td><td>{found.needless:,}</td></tr>"
        for edit, found in tally.findings.items()
    )
    names = ("edit", "histories", "owe a flush", "flush missing", "needless")
    head = "".join(f"<th>{name}</th>" for name in names)
    return f"<table class=matrix><tr>{head}</tr>{rows}</table>"


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
