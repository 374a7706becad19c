"""The fields of page-table entries, named as the manuals name them, for printing.

x86_64: Intel SDM 3A, tables 4-15 to 4-20. ARM64 stage 1: Arm ARM D8.3.1 and D8.3.2.
"""

from __future__ import annotations

from typing import NamedTuple


class Field(NamedTuple):
    """`width` bits from `low` on. A field of one bit is shown by its name when it is 1."""

    name: str
    low: int
    width: int = 1


_X86_TABLE = (
    Field("P", 0), Field("RW", 1), Field("US", 2), Field("PWT", 3), Field("PCD", 4), Field("A", 5),
    Field("PS", 7), Field("R", 11), Field("XD", 63),
)  # fmt: skip
_X86_LEAF = (
    Field("P", 0), Field("RW", 1), Field("US", 2), Field("PWT", 3), Field("PCD", 4), Field("A", 5),
    Field("D", 6), Field("G", 8), Field("R", 11), Field("key", 59, 4), Field("XD", 63),
)  # fmt: skip
_ARM_TABLE = (
    Field("valid", 0), Field("table", 1), Field("PXNTable", 59), Field("UXNTable", 60),
    Field("APTable", 61, 2), Field("NSTable", 63),
)  # fmt: skip
_ARM_LEAF = (
    Field("valid", 0), Field("AttrIndx", 2, 3), Field("NS", 5), Field("AP", 6, 2), Field("SH", 8, 2),
    Field("AF", 10), Field("nG", 11), Field("GP", 50), Field("DBM", 51), Field("contiguous", 52),
    Field("PXN", 53), Field("UXN", 54), Field("software", 55, 4), Field("PBHA", 59, 4),
)  # fmt: skip


def fields(isa: str, level: int, *, leaf: bool, shareable: bool = True) -> tuple[Field, ...]:
    """The fields of a present entry. Levels count from the page's own, 1, up.

    Not `shareable`: Arm's descriptors with TCR_EL1.DS, where bits 9 and 8 belong to the address.
    """
    if isa == "x86_64":
        if not leaf:
            return _X86_TABLE
        return (*_X86_LEAF, *((Field("PAT", 7),) if level == 1 else (Field("PS", 7), Field("PAT", 12))))
    if not leaf:
        return _ARM_TABLE
    leaf_fields = _ARM_LEAF if shareable else tuple(one for one in _ARM_LEAF if one.name != "SH")
    return (*leaf_fields, Field("page", 1) if level == 1 else Field("nT", 16))


def decode(isa: str, entry: int, level: int, *, leaf: bool, shareable: bool = True) -> str:
    """The fields of an entry that are not 0, lowest first: "P RW US A D", "AP=1 SH=3". Not its address."""
    if not entry & 1:
        return "0" if not entry else "not present"
    words = []
    for field in sorted(fields(isa, level, leaf=leaf, shareable=shareable), key=lambda field: field.low):
        value = entry >> field.low & (1 << field.width) - 1
        if value:
            words.append(field.name if field.width == 1 else f"{field.name}={value}")
    return " ".join(words)
