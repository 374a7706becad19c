"""aether_emu: a virtual memory manager whose page tables a real MMU walks and real programs run on.

It writes genuine x86_64 and ARM64 page-table bytes into emulated RAM; Unicorn executes unmodified
guest ELF programs through them; each fault comes back to Python, where the memory manager decides.
The folders are described in CONTRIBUTING.md, in the order in which they may import each other.
"""

from __future__ import annotations

__version__ = "0.1.0"
