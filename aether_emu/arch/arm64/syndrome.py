"""ESR_ELx as declared tables, and its neutral meaning (Arm ARM D19.2.37)."""

from __future__ import annotations

from aether_emu.arch.paging import Access, BitField

ESR: tuple[BitField, ...] = (
    BitField("FSC", 0, 6, "fault status code of an abort"),
    BitField("WNR", 6, 1, "write, not read"),
    BitField("S1PTW", 7, 1, "the walk itself aborted in stage 2"),
    BitField("CM", 8, 1, "cache maintenance"),
    BitField("IL", 25, 1, "a 32-bit instruction"),
    BitField("EC", 26, 6, "exception class"),
)

WNR, CM, IL = 1 << 6, 1 << 8, 1 << 25
EC_UNKNOWN, EC_WFX, EC_SVC, EC_SYSREG = 0x00, 0x01, 0x15, 0x18
EC_FETCH_LOWER, EC_FETCH_SAME, EC_DATA_LOWER, EC_DATA_SAME = 0x20, 0x21, 0x24, 0x25
EC_PC_ALIGNMENT, EC_SP_ALIGNMENT, EC_BREAKPOINT = 0x22, 0x26, 0x3C

FSC_ADDRESS_SIZE, FSC_TRANSLATION, FSC_ACCESS_FLAG, FSC_PERMISSION = 0x00, 0x04, 0x08, 0x0C
FSC_ALIGNMENT = 0x21


def access_of(syndrome: int) -> Access:
    """The neutral access that an abort's syndrome reports. Cache maintenance is a read, though WnR is set."""
    kind, status = syndrome >> 26, syndrome & 0x3C
    if kind in (EC_FETCH_LOWER, EC_FETCH_SAME):
        access = Access.EXECUTE
    else:
        access = Access.WRITE if syndrome & (WNR | CM) == WNR else Access.READ
    if kind in (EC_FETCH_LOWER, EC_DATA_LOWER):
        access |= Access.USER
    if status in (FSC_PERMISSION, FSC_ACCESS_FLAG):
        access |= Access.PRESENT
    if status == FSC_ADDRESS_SIZE and syndrome & 0x3F < 4:
        access |= Access.MALFORMED
    return access


def maintenance_abort(status: int) -> int:
    """The syndrome of cache maintenance at EL0 that met the fault status `status`."""
    return EC_DATA_LOWER << 26 | IL | CM | WNR | status


def abort_of(access: int) -> int:
    """The syndrome of a user's access to a page that level 3 does not map."""
    kind = EC_FETCH_LOWER if access & Access.EXECUTE else EC_DATA_LOWER
    return kind << 26 | IL | (WNR if access & Access.WRITE else 0) | FSC_TRANSLATION | 3


def hidden(syndrome: int) -> int:
    """An abort's syndrome as Linux shows it for the kernel's half: nothing of what is mapped there."""
    return syndrome & ~0x3F | FSC_TRANSLATION


def is_translation_abort(syndrome: int) -> bool:
    """Whether the fault is one that page tables decide (not alignment, not an external abort)."""
    return (
        syndrome >> 26 in (EC_FETCH_LOWER, EC_FETCH_SAME, EC_DATA_LOWER, EC_DATA_SAME)
        and (syndrome & 0x3F) < 0x10
    )
