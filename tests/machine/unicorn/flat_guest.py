"""A bare x86_64 engine without paging, for tests of what lies below the page tables."""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

from aether_emu.machine.memory.aperture import Aperture

# The wrappers carry no types: as modules of type Any they need no suppressions.
unicorn: Any = importlib.import_module("unicorn")
uclib: Any = importlib.import_module("unicorn.unicorn_py3.unicorn").uclib
registers: Any = importlib.import_module("unicorn.x86_const")
keystone: Any = importlib.import_module("keystone")

CODE = 0x1000
STACK = 0x4000


def assemble(source: str, address: int = 0) -> bytes:
    """x86_64 machine code of Intel-syntax source; `#` begins a comment."""
    lines = (line.split("#")[0] for line in source.splitlines())
    return bytes(keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64).asm("\n".join(lines), address)[0])


def emu_stop_address() -> int:
    """Address of the engine library's `uc_emu_stop`."""
    return ctypes.cast(uclib.uc_emu_stop, ctypes.c_void_p).value or 0


class FlatGuest:
    """One engine with a page of code, a page of stack and, if given, an aperture."""

    def __init__(self, source: str, aperture: Aperture | None = None) -> None:
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.code = assemble(source, CODE)
        self.uc.mem_map(CODE, 0x1000)
        self.uc.mem_write(CODE, self.code)
        self.uc.mem_map(STACK - 0x1000, 0x1000)
        self["rsp"] = STACK
        if aperture is not None:
            protection = unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE
            self.uc.mem_map_ptr(aperture.base, aperture.size, protection, aperture.host_address)

    @property
    def handle(self) -> int:
        """The engine's C pointer: the argument of `uc_emu_stop`."""
        return int(self.uc._uch.value)

    @property
    def end(self) -> int:
        """Address behind the last instruction."""
        return CODE + len(self.code)

    def run(self, begin: int = CODE) -> None:
        """Execute from `begin` to the end or a stop."""
        self.uc.emu_start(begin, self.end)

    def __getitem__(self, register: str) -> int:
        return int(self.uc.reg_read(getattr(registers, f"UC_X86_REG_{register.upper()}")))

    def __setitem__(self, register: str, value: int) -> None:
        self.uc.reg_write(getattr(registers, f"UC_X86_REG_{register.upper()}"), value)
