"""The specification walkers against answers taken from the manuals by hand, and a second, scalar reading."""

from __future__ import annotations

import random

import numpy as np
import pytest

from aether_emu.verify.spec import arm64, x86_64

ONES = (1 << 64) - 1
X86, Arm = x86_64.Controls, arm64.Controls
X86_MODE, X86_CONTROLS = x86_64.Mode(4, 52), X86()
ARM_MODE, ARM_CONTROLS = arm64.Mode(), Arm()


def array(*values: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(values, np.uint64)


# ---- x86_64: one path, entries given from the page table up


def x86_walk(entries: list[int], va: int, mode: x86_64.Mode = X86_MODE) -> x86_64.Translation:
    return x86_64.translate(lambda level, at, cases: array(entries[level - 1]), 0x1000, array(va), mode)


def x86_ends(
    entries: list[int],
    access: x86_64.Access,
    *,
    user: bool = True,
    va: int = 0x1234,
    mode: x86_64.Mode = X86_MODE,
    controls: x86_64.Controls = X86_CONTROLS,
) -> int | None:
    """The error code, or None where the access goes through."""
    found = x86_walk(entries, va, mode)
    verdict = x86_64.judge(found, np.array([access]), np.array([user]), controls, mode)
    return int(verdict.error[0]) if verdict.fault[0] else None


P, W, U, PS, NX = 1, 2, 4, 1 << 7, 1 << 63
ALL = P | W | U
KEY3 = [ALL | 3 << 59, ALL, ALL, ALL]
READ, WRITE, FETCH = x86_64.Access.READ, x86_64.Access.WRITE, x86_64.Access.FETCH


@pytest.mark.parametrize(
    ("entries", "physical", "size"),
    [
        ([0x5000 | ALL, ALL, ALL, ALL], 0x5234, 12),  # 4.5.4: a 4K page
        ([0, 0x60_0000 | ALL | PS, ALL, ALL], 0x60_0000 | 0x1234, 21),  # a 2M page
        ([0, 0, 0x8000_0000 | ALL | PS, ALL], 0x8000_1234, 30),  # a 1G page
    ],
)
def test_a_page_of_each_size_is_where_its_entry_says(entries: list[int], physical: int, size: int) -> None:
    found = x86_walk(entries, 0x1234)
    assert (found.ended[0], found.physical[0], found.shift[0]) == (x86_64.Ended.MAPPED, physical, size)


@pytest.mark.parametrize(
    ("what", "code"),
    [
        # 4.7: P 0, W/R 1, U/S 2, RSVD 3, I/D 4, PK 5
        (x86_ends([0, ALL, ALL, ALL], READ), 0b00100),
        (x86_ends([0, ALL, ALL, ALL], WRITE, user=False), 0b00010),
        (x86_ends([0, ALL, ALL, ALL], FETCH), 0b10100),
        (x86_ends([P | U, ALL, ALL, ALL], WRITE), 0b00111),
        (x86_ends([ALL, P | U, ALL, ALL], WRITE), 0b00111),
        (x86_ends([ALL, ALL, ALL, P | W], READ), 0b00101),
        (x86_ends([ALL | NX, ALL, ALL, ALL], FETCH), 0b10101),
        (x86_ends([ALL, ALL | NX, ALL, ALL], FETCH, user=False), 0b10001),
        (x86_ends([ALL | 1 << 51, ALL, ALL, ALL], READ, mode=x86_64.Mode(4, 40)), 0b01101),
        (x86_ends([ALL, ALL, ALL, ALL | PS], READ), 0b01101),  # PS is reserved in a PML4 entry
        (x86_ends([ALL, ALL | PS | 1 << 13, ALL, ALL], WRITE), 0b01111),
        (x86_ends([ALL | NX, ALL, ALL, ALL], READ, mode=x86_64.Mode(4, 52, nxe=False)), 0b01101),
        (x86_ends([0, ALL, ALL, ALL], FETCH, mode=x86_64.Mode(4, 52, nxe=False)), 0b00100),  # I/D needs NXE
        (x86_ends([ALL] * 4, READ), None),
        (x86_ends([P | U, ALL, ALL, ALL], WRITE, user=False), 0b00011),  # CR0.WP
        (x86_ends([P | U, ALL, ALL, ALL], WRITE, user=False, controls=X86(wp=False)), None),
        (x86_ends([ALL] * 4, FETCH, user=False, controls=X86(smep=True)), 0b10001),
        (x86_ends([ALL] * 4, READ, user=False, controls=X86(smap=True)), 0b00001),
        (x86_ends([ALL] * 4, READ, user=False, controls=X86(smap=True, ac=True)), None),
        (
            x86_ends(KEY3, READ, controls=X86(pke=True, pkru=1 << 6)),
            0b100101,
        ),
        (
            x86_ends(KEY3, WRITE, controls=X86(pke=True, pkru=2 << 6)),
            0b100111,
        ),
        (x86_ends(KEY3, READ, controls=X86(pke=True, pkru=2 << 6)), None),
        (x86_ends(KEY3, FETCH, controls=X86(pke=True, pkru=3 << 6)), None),
        (x86_ends([ALL] * 4, READ, va=1 << 47), 0),  # not canonical: #GP, no error code
    ],
)
def test_an_error_code_is_the_manuals(what: int | None, code: int | None) -> None:
    assert what == code


def test_five_levels_translate_57_bits() -> None:
    mode = x86_64.Mode(5, 52)
    entries = [0x5000 | ALL, ALL, ALL, ALL, ALL]
    assert x86_walk(entries, (1 << 56) - 0x1000, mode).ended[0] == x86_64.Ended.MAPPED
    assert x86_walk(entries, 1 << 56, mode).ended[0] == x86_64.Ended.NON_CANONICAL
    assert x86_walk(entries, ONES - 0xFFF, mode).ended[0] == x86_64.Ended.MAPPED


def test_flags_are_left_as_the_manual_says() -> None:
    """4.8: accessed at every level, dirty in the leaf by a write; nothing by an access that faults."""
    entries = [ALL, ALL, ALL, ALL]
    found = x86_walk(entries, 0)
    for access, leaf in ((READ, ALL | 0x20), (WRITE, ALL | 0x60)):
        verdict = x86_64.judge(found, np.array([access]), np.array([True]), X86(), x86_64.Mode())
        assert [int(words[0]) for words in verdict.after] == [leaf, ALL | 0x20, ALL | 0x20, ALL | 0x20]
    found = x86_walk([P | U, ALL, ALL, ALL], 0)
    verdict = x86_64.judge(found, np.array([WRITE]), np.array([True]), X86(), x86_64.Mode())
    assert [int(words[0]) for words in verdict.after] == [P | U, ALL, ALL, ALL]


def x86_naively(entries: list[int], access: int, user: bool, on: dict[str, int], bits: int) -> int | None:
    """Success (None) or the error code, read straight from chapter 4 for one path and a 4K, 2M or 1G page."""
    may_user, may_write, may_execute, leaf = True, True, True, 0
    code = (2 if access == WRITE else 0) | (4 if user else 0)
    code |= 16 if access == FETCH and (on["nxe"] or on["smep"]) else 0
    for level in (4, 3, 2, 1):
        entry = entries[level - 1]
        if not entry & 1:
            return code
        reserved = [bit for bit in range(bits, 52)] + ([] if on["nxe"] else [63])
        if level == 4:
            reserved.append(7)
        large = level in (2, 3) and bool(entry & PS)
        if large:
            reserved += list(range(13, 21 if level == 2 else 30))
        if any(entry >> bit & 1 for bit in reserved):
            return code | 8 | 1
        may_user &= bool(entry & U)
        may_write &= bool(entry & W)
        may_execute &= not entry >> 63
        if large or level == 1:
            leaf = entry
            break
    denied = False
    if user:
        denied = not may_user or (access == WRITE and not may_write)
    elif access == WRITE and not may_write and on["wp"]:
        denied = True
    if not user and may_user:
        denied |= bool(access == FETCH and on["smep"])
        denied |= bool(access != FETCH and on["smap"] and not on["ac"])
    denied |= bool(access == FETCH and on["nxe"] and not may_execute)
    if on["pke"] and may_user and access != FETCH:
        rights = on["pkru"] >> (2 * (leaf >> 59 & 15)) & 3
        if rights & 1 or (rights & 2 and access == WRITE and (user or on["wp"])):
            return code | 1 | 32
    return code | 1 if denied else None


def test_x86_64_agrees_with_a_naive_reading() -> None:
    """Seeded cases: most have a wrong bit in an entry, half each control on. Many are marked slow."""
    compare_with_a_naive_reading(1_000, 5)


@pytest.mark.slow
def test_x86_64_agrees_with_a_naive_reading_of_many_cases() -> None:
    compare_with_a_naive_reading(20_000, 6)


def compare_with_a_naive_reading(cases: int, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(cases):
        entries = [
            rng.choice([ALL, P | U, P | W, ALL | NX, W | U]) | rng.choice([0, 0, PS]) for _ in range(4)
        ]
        entries = [entry ^ rng.choice([0, 0, 0, 1 << rng.randrange(64)]) for entry in entries]
        entries[3] &= ~PS if rng.random() < 0.9 else ONES
        on = {name: rng.randrange(2) for name in ("nxe", "smep", "smap", "ac", "wp", "pke")}
        on["pkru"] = rng.getrandbits(32)
        access, user = rng.choice(list(x86_64.Access)), rng.random() < 0.5
        mode = x86_64.Mode(4, 40, bool(on["nxe"]))
        controls = X86(
            bool(on["wp"]), bool(on["smep"]), bool(on["smap"]), bool(on["pke"]), bool(on["ac"]), on["pkru"]
        )
        told = x86_ends(entries, access, user=user, va=0, mode=mode, controls=controls)
        assert told == x86_naively(entries, access, user, on, 40), (list(map(hex, entries)), on, access, user)


# ---- ARM64: descriptors by Arm's level


def arm_ends(
    descriptors: dict[int, int],
    access: arm64.Access = arm64.Access.READ,
    *,
    user: bool = True,
    va: int = 0x1234,
    mode: arm64.Mode = ARM_MODE,
    controls: arm64.Controls = ARM_CONTROLS,
    unprivileged: bool = False,
) -> int | None:
    """The fault status, or None where the access goes through."""
    found = arm64.translate(
        lambda level, at, cases: array(descriptors[level]), (0x1000, 0x2000), array(va), mode
    )
    verdict = arm64.judge(found, np.array([access]), np.array([user]), controls, unprivileged)
    return int(verdict.status[0]) if verdict.fault[0] else None


TABLE, PAGE, BLOCK = 3, 0x443, 0x441  # AF and AP[1] set
ABOVE = {0: TABLE, 1: TABLE, 2: TABLE}
USER, KERNEL = ABOVE | {3: PAGE}, ABOVE | {3: PAGE & ~(1 << 6)}
GRANULES = {12: arm64.Mode(12), 14: arm64.Mode(14, (47, 47)), 16: arm64.Mode(16)}


@pytest.mark.parametrize(
    ("what", "status"),
    [
        # D19.2.37, DFSC: 0000LL address size, 0001LL translation, 0010LL access flag, 0011LL permission
        (arm_ends(USER), None),
        (arm_ends({0: 0}), 0b000100),
        (arm_ends({0: TABLE, 1: TABLE, 2: 0}), 0b000110),
        (arm_ends(ABOVE | {3: 0}), 0b000111),
        (arm_ends(ABOVE | {3: PAGE & ~2}), 0b000111),  # bit 1 clear is reserved at level 3
        (arm_ends({0: BLOCK}), 0b000100),  # no block at level 0 with pages of 4K
        (arm_ends({0: TABLE, 1: BLOCK}), None),
        (arm_ends(ABOVE | {3: PAGE & ~(1 << 10)}), 0b001011),
        (arm_ends(ABOVE | {3: PAGE | 1 << 7}, arm64.Access.WRITE), 0b001111),
        (arm_ends(KERNEL), 0b001111),
        (arm_ends(KERNEL, user=False), None),
        (arm_ends(ABOVE | {3: PAGE | 1 << 54}, arm64.Access.FETCH), 0b001111),
        (arm_ends(ABOVE | {3: PAGE | 1 << 53 | 1 << 7}, arm64.Access.FETCH, user=False), 0b001111),
        (arm_ends(USER, arm64.Access.FETCH, user=False), 0b001111),  # writable at EL0: implied PXN
        (arm_ends(ABOVE | {3: PAGE | 1 << 7}, arm64.Access.FETCH, user=False), None),
        (arm_ends(KERNEL, arm64.Access.FETCH), None),  # execute-only at EL0
        (arm_ends(USER, user=False, controls=Arm(pan=True)), 0b001111),
        (arm_ends(USER, user=False, controls=Arm(pan=True), unprivileged=True), None),
        (arm_ends(KERNEL, user=False, unprivileged=True), 0b001111),
        (arm_ends(KERNEL, user=False, controls=Arm(uao=True), unprivileged=True), None),
        (arm_ends(USER, arm64.Access.FETCH, controls=Arm(wxn=True)), 0b001111),
        (arm_ends(ABOVE | {2: TABLE | 1 << 61, 3: PAGE}), 0b001111),  # APTable[0]
        (arm_ends(ABOVE | {1: TABLE | 1 << 62, 3: PAGE}, arm64.Access.WRITE), 0b001111),  # APTable[1]
        (arm_ends(ABOVE | {0: TABLE | 1 << 60, 3: PAGE}, arm64.Access.FETCH), 0b001111),  # UXNTable
        (arm_ends(ABOVE | {0: TABLE | 1 << 60, 3: PAGE}, arm64.Access.FETCH,
                  mode=arm64.Mode(hierarchy_disabled=(True, False))), None),
        (arm_ends(ABOVE | {3: PAGE | 1 << 47}, mode=arm64.Mode(physical_bits=40)), 0b000011),
        (arm_ends({0: TABLE | 1 << 44}, mode=arm64.Mode(physical_bits=44)), 0b000000),
        (arm_ends(USER, va=1 << 48), 0b000100),
        (arm_ends(USER, va=0x5A << 56), 0b000100),
        (arm_ends(USER, va=0x5A << 56, mode=arm64.Mode(top_byte_ignored=(True, True))), None),
        (arm_ends(USER, mode=arm64.Mode(walk_disabled=(True, False))), 0b000100),
        (arm_ends(USER, va=ONES - 0xFFF), None),
    ],
)  # fmt: skip
def test_a_fault_status_is_the_manuals(what: int | None, status: int | None) -> None:
    assert what == status


@pytest.mark.parametrize(
    ("shift", "level", "size"),
    [(12, 3, 12), (12, 2, 21), (12, 1, 30), (14, 3, 14), (14, 2, 25), (16, 3, 16), (16, 2, 29)],
)
def test_a_page_and_block_of_each_granule_is_where_its_descriptor_says(
    shift: int, level: int, size: int
) -> None:
    leaf = (PAGE if level == 3 else BLOCK) | 5 << size
    descriptors = {number: TABLE for number in range(level)} | {level: leaf}
    va = (1 << 46) | 0x1234
    found = arm64.translate(
        lambda at, addresses, cases: array(descriptors[at]), (0x10000, 0), array(va), GRANULES[shift]
    )
    inside = va & (1 << size) - 1
    assert (found.ended[0], found.shift[0]) == (arm64.Ended.MAPPED, size)
    assert found.physical[0] == 5 << size | inside


def test_which_root_an_address_takes_and_what_index() -> None:
    seen: list[int] = []

    def fetch(level: int, at: np.ndarray, cases: np.ndarray) -> np.ndarray:
        seen.append(int(at[0]))
        return array(0)

    for va in (0x0000_8000_0000_0000 - 0x1000, ONES << 48 & ONES | 0x10_0000_0000_0):
        arm64.translate(fetch, (0x1000, 0x2000), array(va), arm64.Mode())
    assert seen == [0x1000 + 255 * 8, 0x2000 + 2 * 8]


def test_a_branch_loses_its_tag_where_the_top_byte_is_ignored() -> None:
    low, high = 0x5A00_1234_5678_9ABC, 0x5AFF_FFFF_FFFF_F000
    both = arm64.Mode(top_byte_ignored=(True, True))
    assert arm64.branch_target(array(low, high), both).tolist() == [low & ~(0xFF << 56), high | 0xFF << 56]
    assert arm64.branch_target(array(low, high), arm64.Mode()).tolist() == [low, high]


def test_many_cases_are_walked_at_once() -> None:
    """One call for each level, however many cases there are."""
    calls = []

    def fetch(level: int, at: np.ndarray, cases: np.ndarray) -> np.ndarray:
        calls.append((level, at.size))
        return np.full(at.size, ALL, np.uint64)

    count = 200_000
    found = x86_64.translate(fetch, 0x1000, np.arange(count, dtype=np.uint64), x86_64.Mode())
    assert (found.ended == x86_64.Ended.MAPPED).all()
    assert calls == [(level, count) for level in (4, 3, 2, 1)]
