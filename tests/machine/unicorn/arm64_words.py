"""ARM64 instructions that keystone does not know, from their encodings (Arm ARM C6.2 and C7.2).

Every word made here is disassembled by capstone and must read as the line it came from.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import capstone

from tests.machine.unicorn.flat_guest import keystone

_THREE, _TWO, _FOUR = (0, 5, 16), (0, 5), (0, 5, 16, 10)
_ATOMIC = (16, 0, 5)
# The word with all operands 0, and where the line's numbers go, in the order of the line.
WORDS: dict[str, tuple[int, tuple[int, ...]]] = {
    "aese": (0x4E28_4800, _TWO),
    "aesd": (0x4E28_5800, _TWO),
    "aesmc": (0x4E28_6800, _TWO),
    "aesimc": (0x4E28_7800, _TWO),
    "pmull": (0x0EE0_E000, _THREE),
    "pmull2": (0x4EE0_E000, _THREE),
    "sha1c": (0x5E00_0000, _THREE),
    "sha1p": (0x5E00_1000, _THREE),
    "sha1m": (0x5E00_2000, _THREE),
    "sha1h": (0x5E28_0800, _TWO),
    "sha1su0": (0x5E00_3000, _THREE),
    "sha1su1": (0x5E28_1800, _TWO),
    "sha256h": (0x5E00_4000, _THREE),
    "sha256h2": (0x5E00_5000, _THREE),
    "sha256su0": (0x5E28_2800, _TWO),
    "sha256su1": (0x5E00_6000, _THREE),
    "sha512h": (0xCE60_8000, _THREE),
    "sha512h2": (0xCE60_8400, _THREE),
    "sha512su0": (0xCEC0_8000, _TWO),
    "sha512su1": (0xCE60_8800, _THREE),
    "eor3": (0xCE00_0000, _FOUR),
    "bcax": (0xCE20_0000, _FOUR),
    "rax1": (0xCE60_8C00, _THREE),
    "xar": (0xCE80_0000, _FOUR),
    "sm3ss1": (0xCE40_0000, _FOUR),
    "sm3tt1a": (0xCE40_8000, (0, 5, 16, 12)),
    "sm3tt1b": (0xCE40_8400, (0, 5, 16, 12)),
    "sm3tt2a": (0xCE40_8800, (0, 5, 16, 12)),
    "sm3tt2b": (0xCE40_8C00, (0, 5, 16, 12)),
    "sm3partw1": (0xCE60_C000, _THREE),
    "sm3partw2": (0xCE60_C400, _THREE),
    "sm4e": (0xCEC0_8400, _TWO),
    "sm4ekey": (0xCE60_C800, _THREE),
    "ldaddal": (0xF8E0_0000, _ATOMIC),
    "ldsetal": (0xF8E0_3000, _ATOMIC),
    "swpal": (0xF8E0_8000, _ATOMIC),
    "casal": (0xC8E0_FC00, _ATOMIC),
    "fadd h": (0x1EE0_2800, _THREE),
    "fadd .8h": (0x4E40_1400, _THREE),
    "sqrdmlah": (0x2E40_8400, _THREE),
    "fjcvtzs": (0x1E7E_0000, _TWO),
    "fcmla": (0x6E80_C400, (0, 5, 16, 11)),
    "ldapr": (0xF8BF_C000, _TWO),
    "ldapur": (0xD940_0000, _TWO),
    "stlur": (0xD900_0000, _TWO),
    "dc": (0xD50B_7C20, (0,)),  # cvap
    "sys": (0xD508_0020, (16, 12, 8, 5, 0)),
    "udot": (0x6E80_9400, _THREE),
    "sdot": (0x4E80_9400, _THREE),
    "fmlal": (0x4E20_EC00, _THREE),
    "cfinv": (0xD500_401F, ()),
    "rmif": (0xBA00_0400, (5, 15, 0)),
    "setf8": (0x3A00_080D, (5,)),
    "axflag": (0xD500_405F, ()),
    "xaflag": (0xD500_403F, ()),
    "sb": (0xD503_30FF, ()),
    "frint32z": (0x1E68_4000, _TWO),
    "frint64x": (0x1E69_C000, _TWO),
    "crc32x": (0x9AC0_4C00, _THREE),
    "crc32b": (0x1AC0_4000, _THREE),
    "crc32cx": (0x9AC0_5C00, _THREE),
    "crc32cb": (0x1AC0_5000, _THREE),
    "rdvl": (0x04BF_5000, (0, 5)),
}
_NUMBER = re.compile(r"(?<![\w.#])[vqdshwxc](\d+)|(?<=s\[)(\d+)|#(0x[0-9a-f]+|\d+)")


@cache
def _tools() -> tuple[Any, Any]:
    return (
        capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_LITTLE_ENDIAN),
        keystone.Ks(keystone.KS_ARCH_ARM64, keystone.KS_MODE_LITTLE_ENDIAN),
    )


def _encode(line: str) -> bytes:
    mnemonic = line.split(maxsplit=1)[0]
    half = " .8h" if ".8h" in line else " h" if " h" in line else ""
    key = mnemonic + half if mnemonic + half in WORDS else mnemonic
    if key not in WORDS:
        return bytes(_tools()[1].asm(line)[0])
    word, places = WORDS[key]
    numbers = [int("".join(found), 0) for found in _NUMBER.findall(line)]
    assert len(numbers) == len(places), line
    if mnemonic == "fcmla":
        numbers[3] //= 90
    for number, place in zip(numbers, places, strict=True):
        word |= number << place
    code = word.to_bytes(4, "little")
    ((_address, _size, name, operands),) = _tools()[0].disasm_lite(code, 0)
    assert f"{name} {operands}".strip() == line
    return code


def words(source: str) -> bytes:
    """Machine code of straight lines, without labels."""
    return b"".join(_encode(line.strip()) for line in source.splitlines() if line.strip())
