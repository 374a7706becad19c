"""Litmus verdicts, ours beside the published ones, as lines and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from aether_emu.litmus.explore import Explored
from aether_emu.litmus.program import Litmus
from aether_emu.litmus.suite import verdict

_NAME = 37


def heading() -> str:
    """What stands above the rows."""
    return f"{'isa':<7} {'test':<{_NAME}} {'published':<10} {'ours':<12} {'states':>7} {'executed':>9}  shape"


def row(explored: Explored) -> str:
    """One test: its name, what is published of its condition, what was reached, how much was tried."""
    test, ours = explored.test, verdict(explored)
    return (
        f"{test.isa:<7} {test.name:<{_NAME}} {published(test):<10} {ours.value:<12} {explored.states:>7,} "
        f"{explored.executed:>9,}  {test.summary}"
    ).rstrip()


def published(test: Litmus) -> str:
    """The verdict in a word."""
    return "allowed" if test.allowed else "forbidden"


def listed(test: Litmus) -> str:
    """One line of the list: what a test asks, and who answered."""
    return f"{test.isa:<7} {test.name:<{_NAME}} {published(test):<10} {test.source}"


def steps(explored: Explored) -> list[str]:
    """How the end came about of which the condition holds."""
    if explored.witness is None:
        return []
    return [f"  {explored.test.name}: {explored.test.text}", *(f"    {step}" for step in explored.witness)]


def total(all_of_them: Sequence[Explored]) -> str:
    """The last line."""
    verdicts = [verdict(one) for one in all_of_them]
    findings = sum(one.finding for one in verdicts)
    executed, planted = sum(one.executed for one in all_of_them), sum(one.planted for one in all_of_them)
    away = sum(bool(one.test.out_of_reach) for one in all_of_them)
    words = [
        _counted(len(verdicts), "test"),
        _counted(findings, "finding") if findings else "each end as published",
        f"{away:,} out of reach" if away else "",
        f"{executed:,} instructions executed, {planted:,} by a stale translation",
    ]
    return ", ".join(filter(None, words))


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + "s" * (number != 1)


def as_json(all_of_them: Sequence[Explored]) -> bytes:
    """Everything, for programs."""
    tests = [
        {
            "name": one.test.name,
            "isa": one.test.isa,
            "manual": one.test.manual.value,
            "summary": one.test.summary,
            "condition": one.test.text,
            "published": published(one.test),
            "source": one.test.source,
            "like": one.test.like,
            "out_of_reach": one.test.out_of_reach,
            "reached": one.reached,
            "verdict": verdict(one).value.lower(),
            "finding": verdict(one).finding,
            "states": one.states,
            "executed": one.executed,
            "stale": one.planted,
            "ends": sorted(one.ends),
            "steps": one.witness or [],
        }
        for one in all_of_them
    ]
    findings = sum(verdict(one).finding for one in all_of_them)
    return (json.dumps({"tests": tests, "findings": findings}, indent=1) + "\n").encode()
