"""The formats by name."""

from __future__ import annotations

import re

from aether_emu.errors import ConfigError
from aether_emu.verify.tables.formats import Format
from aether_emu.verify.tables.formats_arm64 import Arm
from aether_emu.verify.tables.formats_x86_64 import X86
from aether_emu.verify.tables.notes import Registers

NAMES = (
    "x86_64-4level", "x86_64-5level",
    "arm64-4K", "arm64-4K-39bit", "arm64-4K-lpa2", "arm64-4K-52bit-lpa2",
    "arm64-16K", "arm64-16K-36bit", "arm64-16K-47bit", "arm64-16K-lpa2", "arm64-16K-52bit-lpa2",
    "arm64-64K", "arm64-64K-42bit", "arm64-64K-52bit", "arm64-64K-lpa", "arm64-64K-52bit-lpa",
)  # fmt: skip
_ARM_NAME = re.compile(r"arm64-(4|16|64)K(?:-(\d+)bit)?(-lpa2?)?")


def format_of(name: str, registers: Registers | None = None) -> Format:
    """The format of that name under what is known of the registers. ConfigError for a name there is not."""
    registers = Registers() if registers is None else registers
    if name in ("x86_64-4level", "x86_64-5level"):
        return X86(name, int(name[7]), registers)
    parts = _ARM_NAME.fullmatch(name)
    if parts is None or parts[3] not in (None, "-lpa" if parts[1] == "64" else "-lpa2"):
        raise ConfigError("format", name, "one of " + ", ".join(NAMES))
    return Arm(name, int(parts[1]), int(parts[2] or 48), registers, wide=parts[3] is not None)
