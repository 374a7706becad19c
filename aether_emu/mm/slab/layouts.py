"""What the memory manager's own kernel objects say."""

from __future__ import annotations

from aether_emu.mm.slab.layout import Layout

MM = Layout("mm_struct", ("pgd", "Q"), ("number", "I"), ("page_shift", "I"), ("task_size", "Q"))
"""An address space: the physical address of its root, its number, and where its addresses end."""
CACHED = Layout("swap_cache", ("slot", "Q"), ("frame", "Q"))
"""A slot of the swap area whose bytes a frame shows, by the frame's number."""
