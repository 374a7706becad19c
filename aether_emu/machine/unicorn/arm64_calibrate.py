"""Where the engine keeps an ARM64 CPU's program counter and its last syndrome, found by behaviour.

Unicorn delivers no exception to the vector table and leaves ESR_EL1 and FAR_EL1 zero; the syndrome
is in the CPU state alone. As on x86_64, a scratch CPU runs known faults, a field is the one place
that did what it must do, and the live state of another CPU is then found by its registers.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from unicorn import UC_ARCH_ARM64, UC_HOOK_INTR, UC_MODE_ARM, UC_PROT_ALL, arm64_const

from aether_emu.arch.arm64 import registers as regs
from aether_emu.arch.arm64.stage1 import (
    ACCESSED,
    INNER_SHAREABLE,
    NOT_GLOBAL,
    PXN,
    READ_ONLY,
    TABLE,
    USER,
    VALID,
)
from aether_emu.errors import EngineError
from aether_emu.interruption import Undisturbed
from aether_emu.machine import native
from aether_emu.machine.unicorn import engine
from aether_emu.machine.unicorn.locate import SENTINELS, locate, only, places, still
from aether_emu.records import dataclass

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODEL = arm64_const.UC_CPU_ARM64_MAX
_GRANULE, _VIRTUAL_BITS = 4096, 48  # of the scratch CPU
GENERAL = tuple(arm64_const.UC_ARM64_REG_X0 + i for i in range(16))


@dataclass(frozen=True, slots=True)
class Layout:
    """Byte offsets from x0. `context` is x0's own offset inside a saved context.

    `exclusive` is the address that the program has reserved for an exclusive store.
    """

    context: int
    pc: int
    syndrome: int
    address: int
    exclusive: int


def enable_paging(uc: Any, root: int, translation: int) -> None:
    """Bring a fresh engine up with our system registers, in an order that works (unicorn 2.1.4).

    `translation` is the value of TCR_EL1; `root` serves both halves.
    """
    for register, value in (
        (regs.SCR_EL3.encoding, regs.SCR_VALUE),
        (regs.HCR_EL2.encoding, regs.HCR_VALUE),
        (regs.MAIR_EL1.encoding, regs.MAIR_VALUE),
        (regs.TCR_EL1.encoding, translation),
        (regs.TTBR0_EL1, root),
        (regs.TTBR1_EL1, root),
        (regs.CNTKCTL_EL1, 0),  # EL0 reads of the host's counter trap and answer from virtual time
        (regs.SCTLR_EL1.encoding, regs.SCTLR_VALUE),
    ):
        uc.cpr_write(*register, value)
    engine.flush_tlb(uc)


def enter_el(uc: Any, pstate: int) -> None:
    """Change the exception level: only a system-register write makes the engine look at PSTATE."""
    uc.reg_write(arm64_const.UC_ARM64_REG_PSTATE, pstate)
    uc.cpr_write(*regs.CPACR_EL1.encoding, regs.CPACR_VALUE)


def open_cpu(page_size: int) -> Any:
    """A CPU of our model whose TLB entries hold `page_size` bytes: the granule.

    With a smaller size (the default is 1 KiB) a page counts as a large one, and every TLBI near one is a
    full flush. All sizes of Arm's granules work; memory is then mapped in multiples of that size.
    """
    uc = engine.open_engine(UC_ARCH_ARM64, UC_MODE_ARM, MODEL)
    uc.ctl_set_page_size(page_size)
    return uc


@lru_cache(maxsize=1)
def measure() -> Layout:
    """Find every field on a scratch CPU. Raises EngineError when one cannot be told apart."""
    code = 0x10_0000
    memory = mmap.mmap(-1, 0x10000)
    uc = open_cpu(_GRANULE)
    handle = engine.handle_of(uc)
    uc.mem_map_ptr(0, 0x10000, UC_PROT_ALL, ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    for at, entry in ((0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000)):
        struct.pack_into("<Q", memory, at, entry | TABLE | VALID)
    leaf = TABLE | VALID | ACCESSED | INNER_SHAREABLE | USER | READ_ONLY | NOT_GLOBAL | PXN
    struct.pack_into("<Q", memory, 0x4000 + (code >> 12 & 511) * 8, 0x8000 | leaf)
    enable_paging(uc, 0x1000, regs.tcr_value(_GRANULE, _VIRTUAL_BITS))
    context = uc.context_save()
    address = native.address_of(context.context)

    def dump() -> bytes:
        engine.context_save(handle, context.context)
        return ctypes.string_at(address, context.size)

    for number, value in zip(GENERAL, SENTINELS, strict=True):
        uc.reg_write(number, value)
    base = dump().find(struct.pack("<16Q", *SENTINELS))
    if base < 0:
        raise EngineError("calibration: no general registers in a saved context")
    stop = engine.INTERRUPT(lambda _uc, _number, _data: engine.emu_stop(handle) and None)
    engine.hook_add(handle, UC_HOOK_INTR, stop)
    enter_el(uc, regs.PSTATE_EL0)
    load, store = 0xF9400820, 0xF9000820  # ldr x0, [x1, #16] and str x0, [x1, #16]
    pcs = syndromes = addresses = None
    for offset, instruction, target, syndrome in (
        (0x100, load, 0x1234_5000, 0x9200_0007),
        (0x210, store, 0x2345_6008, 0x9200_0047),
        (0x324, load, 0x7F00_1234_5000, 0x9200_0004),
    ):
        struct.pack_into("<I", memory, 0x8000 + offset, instruction)
        uc.reg_write(arm64_const.UC_ARM64_REG_X1, target)
        with Undisturbed():
            engine.emu_start(handle, code + offset, 0, 0, 0)
        after = dump()
        mask = 0xFE00_007C if syndrome & 3 else 0xFE00_007F  # the level depends on tables near the target
        pcs = still(pcs, after, "Q", code + offset)
        addresses = still(addresses, after, "Q", target + 16)
        alike = places(after, "I", partial(_alike, syndrome, mask))
        syndromes = alike if syndromes is None else syndromes & alike
    at = only("the fault address", addresses or set())
    syndrome_at = only("the syndrome", {place for place in syndromes or set() if 0 < at - place <= 16})
    exclusives = None
    for target in (code + 0x440, code + 0x580):
        struct.pack_into(
            "<3I", memory, 0x8600, 0xC85F7C20, 0xD2800001, 0xD4000001
        )  # ldxr x0, [x1]; no x1; svc
        uc.reg_write(arm64_const.UC_ARM64_REG_X1, target)
        with Undisturbed():
            engine.emu_start(handle, code + 0x600, 0, 0, 0)
        exclusives = still(exclusives, dump(), "Q", target)
    reserved = only("the reserved address", exclusives or set())
    return Layout(base, only("pc", pcs or set()) - base, syndrome_at - base, at - base, reserved - base)


def _alike(wanted: int, mask: int, values: NDArray[np.uint32]) -> NDArray[np.bool_]:
    alike: NDArray[np.bool_] = values & mask == wanted & mask
    return alike


def find_state(uc: Any) -> int | None:
    """Host address of x0 in the live CPU state of `uc`, or None."""
    return locate(uc, GENERAL)
