"""aether_emu: a virtual memory manager whose page tables a real MMU walks and real programs run on.

It writes genuine x86_64 and ARM64 page-table bytes into emulated RAM; Unicorn executes unmodified
guest ELF programs through them; each fault comes back to Python, where the memory manager decides.

    from aether_emu import Machine

    with Machine("x86_64", seed=7) as machine:
        process = machine.load("guest/bin/x86_64/tour", ["tour"])
        print(machine.run())
        print(process.areas)
        print(process.mm.walk(process.program.entry))

    Machine          an emulated computer that runs one Linux program: load, run, look, decide
    Config, Grants   what it is made of; what of the host its program sees
    Protection, PageFlags, Access       rights of areas, of entries, of an access
    MemoryType                          how caches treat what an entry shows (`mm.map_device`)
    Ended, Stopped                      how a program ended; why a run stopped before
    Resolved, AccessError, BusError     what a fault can end in, for handlers (`Machine.on_fault`)
    AetherError                         the root of every error that is raised on purpose
    tables           page tables alone, without any program: build, walk, execute an access
    computer, state, verify, observe    CPUs without Linux; capture and restore; judging tables; statistics

The folders are described in CONTRIBUTING.md, in the order in which they may import each other.
"""

from __future__ import annotations

TYPE_CHECKING = False  # without `typing`: importing the package takes no time
if TYPE_CHECKING:
    from aether_emu import tables as tables
    from aether_emu.arch.paging import Access as Access
    from aether_emu.arch.paging import MemoryType as MemoryType
    from aether_emu.arch.paging import PageFlags as PageFlags
    from aether_emu.config import Config as Config
    from aether_emu.errors import AetherError as AetherError
    from aether_emu.errors import ConfigError as ConfigError
    from aether_emu.errors import MachineError as MachineError
    from aether_emu.errors import ProgramError as ProgramError
    from aether_emu.errors import Refused as Refused
    from aether_emu.errors import TimedOut as TimedOut
    from aether_emu.grants import Grants as Grants
    from aether_emu.linux.debugging import Stopped as Stopped
    from aether_emu.linux.files.mounts import Bind as Bind
    from aether_emu.linux.handlers import Call as Call
    from aether_emu.linux.handlers import Fault as Fault
    from aether_emu.linux.task.ended import Ended as Ended
    from aether_emu.linux.task.process import Process as Process
    from aether_emu.mm.fault import AccessError as AccessError
    from aether_emu.mm.fault import BusError as BusError
    from aether_emu.mm.fault import Resolved as Resolved
    from aether_emu.mm.protection import Protection as Protection
    from aether_emu.system import Machine as Machine

    __version__: str

_PUBLIC = {
    "Access": "aether_emu.arch.paging",
    "AccessError": "aether_emu.mm.fault",
    "AetherError": "aether_emu.errors",
    "Bind": "aether_emu.linux.files.mounts",
    "BusError": "aether_emu.mm.fault",
    "Call": "aether_emu.linux.handlers",
    "Config": "aether_emu.config",
    "ConfigError": "aether_emu.errors",
    "Ended": "aether_emu.linux.task.ended",
    "Fault": "aether_emu.linux.handlers",
    "Grants": "aether_emu.grants",
    "Machine": "aether_emu.system",
    "MachineError": "aether_emu.errors",
    "MemoryType": "aether_emu.arch.paging",
    "PageFlags": "aether_emu.arch.paging",
    "Process": "aether_emu.linux.task.process",
    "ProgramError": "aether_emu.errors",
    "Protection": "aether_emu.mm.protection",
    "Refused": "aether_emu.errors",
    "Resolved": "aether_emu.mm.fault",
    "Stopped": "aether_emu.linux.debugging",
    "TimedOut": "aether_emu.errors",
}
_MODULES = ("computer", "observe", "state", "tables", "verify")

__all__ = [*_PUBLIC, *_MODULES]  # noqa: PLE0604  # names, all of them: the dict's keys and the tuple's


def __getattr__(name: str) -> object:
    """The public face, imported when it is first asked for: `import aether_emu` stays cheap."""
    if name not in (*__all__, "__version__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415  # as said above

    if name == "__version__":
        return import_module(f"{__name__}.version").version()
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
