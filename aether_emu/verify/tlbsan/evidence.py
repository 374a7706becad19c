"""What a finding says of the entry, table or root that a CPU may hold, in the manual's words."""

from __future__ import annotations

from aether_emu.verify.tlbsan.finding import Finding, Rule, Where
from aether_emu.verify.tlbsan.roots import Kept
from aether_emu.verify.tlbsan.rules import Rules
from aether_emu.verify.tlbsan.stale import Behind


def held(
    rules: Rules,
    frames: Behind,
    rule: Rule,
    va: int,
    old: int,
    level: int,
    cpu: int,
    edited: Where,
    relied: Where,
    *,
    table: int = 0,
    done: str = "edited",
) -> Finding:
    """That a CPU may hold an old entry, or know where the table at `table` lies."""
    fmt = rules.format
    if table:
        entry = f"the table at {table:#x} ({fmt.level_names[level - 1]} entry)" if level <= fmt.levels else ""
        frame = frames.frame(table)
    else:
        entry = rules.describe(old, level)
        frame = frames.frame(old & rules.address & -(1 << fmt.shifts[level - 1]))
    return Finding(
        rule, rules.isa, va=va, frame=frame, cpu=cpu, entry=entry, edited=edited, relied=relied, done=done
    )


def others(kept: Kept, isa: str, frames: Behind, cpu: int, relied: Where) -> Finding:
    """That a tag still has the translations of another root."""
    root = kept.root.address
    return Finding(
        Rule.TAG,
        isa,
        va=0,
        frame=frames.frame(root),
        cpu=cpu,
        entry=f"the root {root:#x} translates it",
        edited=kept.used,
        relied=relied,
        done="used",
    )
