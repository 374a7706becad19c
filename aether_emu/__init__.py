"""aether_emu: a virtual memory manager whose page tables a real MMU walks and real programs run on.

It writes genuine x86_64 and ARM64 page-table bytes into emulated RAM; Unicorn executes unmodified
guest ELF programs through them; each fault comes back to Python, where the memory manager decides.
The folders are described in CONTRIBUTING.md, in the order in which they may import each other.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aether_emu.config import Config as Config
    from aether_emu.errors import Refused as Refused
    from aether_emu.mm.protection import Protection as Protection
    from aether_emu.system import Grants as Grants
    from aether_emu.system import Machine as Machine

    __version__: str

_PUBLIC = {
    "Config": "aether_emu.config",
    "Grants": "aether_emu.system",
    "Machine": "aether_emu.system",
    "Protection": "aether_emu.mm.protection",
    "Refused": "aether_emu.errors",
}


def __getattr__(name: str) -> object:
    """The public face, imported when it is first asked for: `import aether_emu` stays cheap."""
    if name == "__version__":
        return import_module("aether_emu.version").version()
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
