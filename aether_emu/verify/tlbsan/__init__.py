"""TLBSan: an independent checker of what CPUs may still hold of page tables that have changed.

    rules       what an entry is, and what an edit of it takes away: by `verify`'s walkers
    roots       what is known of one root: its tables, who walks it, who has left it
    shadow      a copy of every table that a CPU walks: comparing it with RAM shows the edits
    stale       what edits have left behind in TLBs and paging-structure caches, by CPU
    taken       what the edits of one table take away, and from whom
    kept        what CPUs keep under the tags of address spaces that they have left
    breaks      rule (d), ARM64's break before make: what an edit skips
    finding     a rule that was broken, with both places
    evidence    what a finding says of the entry, table or root that a CPU may hold
    sanitizer   the events: edits, flushes, frames given back, CPUs that go on with their programs
    attach      where the events of a machine come from

`attach` is what a machine with the parameter `tlbsan` asks for (`ports.checker`).
"""

from __future__ import annotations

from aether_emu.verify.tlbsan.attach import attach
from aether_emu.verify.tlbsan.finding import Finding
from aether_emu.verify.tlbsan.sanitizer import Sanitizer

__all__ = ["Finding", "Sanitizer", "attach"]
