"""x87 and SSE state in an x86_64 signal frame: an XSAVE area in standard form (Intel SDM 1 13.4).

512 bytes as FXSAVE writes them, a header of 64, and a mark of four bytes that tells Linux that nobody copied
the first part alone. What FXSAVE leaves to software says how large all of it is (struct _fpx_sw_bytes). No
state beyond x87 and SSE exists here but PKRU, which stands behind the header where it is not as at the start.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from aether_emu.arch.x86_64 import registers as regs

LEGACY, HEADER, RIGHTS, MARK = 512, 64, 8, 4
AREA = LEGACY + HEADER
SIZE = AREA + RIGHTS + MARK
"""The most bytes of all of it."""
INITIAL_RIGHTS = 0x5555_5554
"""PKRU of a new program: no access by any key but 0 (Linux: init_pkru)."""
ALIGNMENT = 64
_MAGIC_1, _MAGIC_2 = 0x4650_5853, 0x4650_5845
_SOFTWARE_AT = 464
_X87, _SSE, _PKRU = 1, 2, 1 << 9
_MXCSR_VALID = 0xFFFF

_INITIAL = {
    **{f"xmm{i}": 0 for i in range(16)},
    **{f"fp{i}": 0 for i in range(8)},
    **{"fpcw": regs.FPU_CONTROL, "fpsw": 0, "fptag": regs.FPU_TAGS, "mxcsr": regs.MXCSR},
    "pkru": INITIAL_RIGHTS,
}

Read = Callable[[int, int], bytes]
"""Bytes of user memory at an address. Raises UserFault."""


class BadState(Exception):
    """XRSTOR or FXRSTOR takes such an area for a #GP."""


def initial_state() -> dict[str, int]:
    """What a new program and a handler begin with."""
    return dict(_INITIAL)


def size_of(state: dict[str, int]) -> int:
    """Bytes of the area that `encode_state` makes."""
    return AREA + MARK + (RIGHTS if state["pkru"] != INITIAL_RIGHTS else 0)


def encode_state(state: dict[str, int]) -> bytes:
    """The whole area for the register names used here."""
    rights = struct.pack("<Q", state["pkru"]) if state["pkru"] != INITIAL_RIGHTS else b""
    features = _X87 | _SSE | (_PKRU if rights else 0)
    tags, top = state["fptag"], state["fpsw"] >> 11 & 7
    abridged = sum(1 << i for i in range(8) if tags >> 2 * i & 3 != 3)
    head = struct.pack(
        "<HHBBHQQII", state["fpcw"], state["fpsw"], abridged, 0, 0, 0, 0, state["mxcsr"], _MXCSR_VALID
    )
    x87 = b"".join(state[f"fp{top + i & 7}"].to_bytes(10, "little") + bytes(6) for i in range(8))
    xmm = b"".join(state[f"xmm{i}"].to_bytes(16, "little") for i in range(16))
    software = struct.pack("<IIQI28x", _MAGIC_1, size_of(state), features, AREA + len(rights))
    header = struct.pack("<Q56x", features)
    legacy = (head + x87 + xmm).ljust(_SOFTWARE_AT, b"\0") + software
    return legacy + header + rights + struct.pack("<I", _MAGIC_2)


def read_state(read: Read, at: int) -> dict[str, int]:
    """The registers of the area at `at`. Raises BadState and UserFault."""
    image = read(at, LEGACY)
    wanted = _wanted(read, at, image)
    if wanted is None:  # FXRSTOR: the mark is missing or the size is odd
        present = wanted = _X87 | _SSE
        if at % 16:
            raise BadState("misaligned")
    else:
        header = read(at + LEGACY, HEADER)
        (present,) = struct.unpack_from("<Q", header)
        if at % ALIGNMENT or present & ~(_X87 | _SSE | _PKRU) or any(header[8:24]):
            raise BadState("misaligned, or a header that names other state or another form")
    values = initial_state()
    if wanted & present & _PKRU:
        (values["pkru"],) = struct.unpack("<I", read(at + AREA, 4))
    if wanted & present & _X87:
        values |= _decode_x87(image)
    if wanted & _SSE:
        (values["mxcsr"],) = struct.unpack_from("<I", image, 24)
        if values["mxcsr"] & ~_MXCSR_VALID:
            raise BadState("reserved bits of MXCSR")
    if wanted & present & _SSE:
        for i in range(16):
            values[f"xmm{i}"] = int.from_bytes(image[160 + 16 * i : 176 + 16 * i], "little")
    return values


def _wanted(read: Read, at: int, image: bytes) -> int | None:
    """Which state the area is said to have; None: it is the first part alone (check_xstate_in_sigframe)."""
    magic, extended, features, size = struct.unpack_from("<IIQI", image, _SOFTWARE_AT)
    if magic != _MAGIC_1 or not AREA <= size <= min(AREA + RIGHTS, extended):
        return None
    (mark,) = struct.unpack("<I", read(at + size, MARK))
    return features if mark == _MAGIC_2 else None


def _decode_x87(image: bytes) -> dict[str, int]:
    fpcw, fpsw, abridged = struct.unpack_from("<HHB", image)
    top = fpsw >> 11 & 7
    values = {"fpcw": fpcw, "fpsw": fpsw}
    values["fptag"] = sum(3 << 2 * i for i in range(8) if not abridged >> i & 1)
    for i in range(8):
        values[f"fp{top + i & 7}"] = int.from_bytes(image[32 + 16 * i : 42 + 16 * i], "little")
    return values
