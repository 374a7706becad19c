"""What is suspicious in page tables: findings, each with an address, an entry, and why it matters.

The rules are in `lint_rules`; docs/verify.md lists them. Findings that say the same about many entries
are one, with a count. An error is something that breaks isolation or that the architecture leaves
undefined, a warning something that is rarely meant, a note something to know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict

from aether_emu.verify.tables.lint_rules import RULES, Finding, Severity, oddities
from aether_emu.verify.tables.survey import LIMIT, Survey, survey
from aether_emu.verify.tables.walking import Source, Tables, open_tables

_ORDER = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.NOTE: 2}


def lint(
    source: Source | Tables | Survey, *, root: int | None = None, root1: int | None = None,
    format: str | None = None, limit: int = LIMIT,
) -> list[Finding]:  # fmt: skip
    """All findings, errors first, then by rule and address. Options and errors are those of `open_tables`."""
    if isinstance(source, Survey):
        found = source
    else:
        given = (
            source
            if isinstance(source, Tables)
            else open_tables(source, root=root, root1=root1, format=format)
        )
        found = survey(given, limit=limit)
    findings = [finding for rule in (oddities, *RULES) for finding in rule(found)]
    return sorted(findings, key=lambda finding: (_ORDER[finding.severity], finding.rule, finding.address))


def lines(findings: Iterable[Finding]) -> Iterator[str]:
    """Findings for people, two lines each."""
    for one in findings:
        many = f", {one.count:,} entries up to {one.last:#x}" if one.count > 1 else ""
        entry = "" if one.at is None else f": entry {one.entry:#018x} at {one.at:#x}"
        yield f"{one.severity.value}: {one.rule} at {one.address:#018x}{many}{entry}"
        yield f"    {one.what}; {one.why}"


def as_data(findings: Iterable[Finding]) -> list[dict[str, object]]:
    """Findings for machines: what `Finding` has, addresses as "0x…" text."""
    rows = []
    for one in findings:
        data = asdict(one) | {"severity": one.severity.value}
        for name in ("address", "last", "entry", "at"):
            value = data[name]
            data[name] = None if value is None else f"{value:#x}"
        rows.append(data)
    return rows


def counted(findings: Iterable[Finding]) -> str:
    """One line: how many of each severity."""
    counts = dict.fromkeys(Severity, 0)
    for one in findings:
        counts[one.severity] += 1
    return ", ".join(f"{count} {kind.value}{'' if count == 1 else 's'}" for kind, count in counts.items())
