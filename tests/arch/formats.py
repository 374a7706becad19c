"""Every page-table format there is, for the tests that hold for all of them."""

from __future__ import annotations

from aether_emu.arch.arm64.stage1 import ArmFormat
from aether_emu.arch.paging import PageTableFormat
from aether_emu.arch.x86_64.stage1 import X86Format
from tests.mm.invented_format import InventedFormat

_K = 1 << 10

EVERY_FORMAT: tuple[PageTableFormat, ...] = (
    X86Format(4),
    X86Format(5),
    ArmFormat(4 * _K, 48),
    ArmFormat(4 * _K, 39),
    ArmFormat(16 * _K, 48),
    ArmFormat(16 * _K, 47),
    ArmFormat(16 * _K, 36),
    ArmFormat(64 * _K, 48),
    ArmFormat(64 * _K, 42),
    InventedFormat(),
)
