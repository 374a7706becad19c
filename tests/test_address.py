"""Addresses validate, keep their kind through arithmetic, and refuse each other's company."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_emu.address import PhysAddr, VirtAddr
from aether_emu.errors import AddressError, AetherError

LOWER_END, UPPER_START = 0x0000_8000_0000_0000, 0xFFFF_8000_0000_0000
KINDS: list[Callable[[int], Any]] = [VirtAddr, PhysAddr]

widths = st.sampled_from([25, 39, 48, 49, 57, 64])
words = st.integers(0, 2**64 - 1)


def is_canonical(value: int, bits: int) -> bool:
    """Intel SDM 1 3.3.7.1: bits 63 down to the most significant implemented bit are all equal."""
    return len({value >> bit & 1 for bit in range(bits - 1, 64)}) == 1


@given(words, widths)
def test_a_virtual_address_is_valid_exactly_if_it_is_canonical(value: int, bits: int) -> None:
    if is_canonical(value, bits):
        assert int(VirtAddr(value, bits)) == value
    else:
        with pytest.raises(AddressError):
            VirtAddr(value, bits)


@pytest.mark.parametrize("value", [0, 1, LOWER_END - 1, UPPER_START, 2**64 - 1])
def test_the_edges_of_both_halves_are_addresses(value: int) -> None:
    assert VirtAddr(value) == value


@pytest.mark.parametrize("value", [-1, LOWER_END, UPPER_START - 1, 2**64, 2**64 + 5, -(2**64)])
def test_what_lies_in_the_hole_or_beyond_64_bits_is_no_address(value: int) -> None:
    with pytest.raises(AddressError, match="no VirtAddr: bits 63 to 47 must be equal") as caught:
        VirtAddr(value)
    assert caught.value.value == value
    assert isinstance(caught.value, AetherError)


def test_a_region_of_48_bits_on_arm64_has_49_bits_here() -> None:
    assert VirtAddr(0x0000_FFFF_FFFF_FFFF, bits=49) + 0 == 2**48 - 1
    assert VirtAddr(0xFFFF_0000_0000_0000, bits=49).bits == 49
    with pytest.raises(AddressError):
        VirtAddr(0x0001_0000_0000_0000, bits=49)


@pytest.mark.parametrize("bits", [0, 1, 65])
def test_an_impossible_width_is_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="2 to 64 bits"):
        VirtAddr(0, bits)


@given(st.integers(-(2**70), 2**70), widths)
def test_truncation_keeps_the_low_bits_and_always_gives_an_address(value: int, bits: int) -> None:
    address = VirtAddr.new_truncate(value, bits)
    assert is_canonical(address, bits)
    assert address % 2**bits == value % 2**bits
    assert VirtAddr.new_truncate(address, bits) == address


def test_physical_addresses_have_up_to_52_bits() -> None:
    assert PhysAddr(0) == 0
    assert PhysAddr(2**52 - 1) == 2**52 - 1
    for wrong in (-1, 2**52, 2**64):
        with pytest.raises(AddressError, match="not within 52 bits"):
            PhysAddr(wrong)
    assert PhysAddr.new_truncate(2**63 | 0x1234) == 0x1234
    assert PhysAddr.new_truncate(-1) == 2**52 - 1


@pytest.mark.parametrize("make", KINDS)
def test_arithmetic_keeps_the_kind(make: Callable[[int], Any]) -> None:
    address = make(0x5000)
    for result in (address + 0x10, 0x10 + address, address + np.int64(0x10), address - -0x10):
        assert type(result) is type(address)
        assert result == make(0x5010)
    distance = make(0x5010) - address
    assert type(distance) is int
    assert distance == 0x10


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_kinds_do_not_mix(make: Callable[[int], Any], other: Callable[[int], Any]) -> None:
    with pytest.raises(TypeError):
        make(0x1000) + other(0x1000)
    if make is not other:
        with pytest.raises(TypeError):
            make(0x1000) - other(0x1000)
        with pytest.raises(TypeError):
            make(other(0x1000))


@pytest.mark.parametrize("operation", [operator.add, operator.sub])
def test_only_whole_numbers_move_an_address(operation: Callable[[Any, Any], Any]) -> None:
    for wrong in (1.5, "1", None):
        with pytest.raises(TypeError):
            operation(VirtAddr(0x1000), wrong)
    with pytest.raises(TypeError):
        operator.sub(0x2000, VirtAddr(0x1000))
    for not_an_address in (1.5, "1", None):
        with pytest.raises(TypeError):
            PhysAddr(not_an_address)  # type: ignore[arg-type]  # the point of the test


def test_arithmetic_validates() -> None:
    for leave in (
        lambda: VirtAddr(LOWER_END - 1) + 1,
        lambda: VirtAddr(UPPER_START) - 1,
        lambda: VirtAddr(2**64 - 1) + 1,
        lambda: VirtAddr(0) - 1,
        lambda: PhysAddr(2**52 - 1) + 1,
        lambda: PhysAddr(0) - 1,
    ):
        with pytest.raises(AddressError):
            leave()


def test_arithmetic_keeps_the_width() -> None:
    wide = VirtAddr(LOWER_END - 0x1000, bits=57)
    assert wide + 0x1000 == LOWER_END
    assert (wide + 0x1000).bits == 57
    assert VirtAddr(0).bits == 48


def test_addresses_show_themselves_in_hexadecimal() -> None:
    assert repr(VirtAddr(0x40_0000)) == "VirtAddr(0x400000)"
    assert repr(VirtAddr(0x40_0000, bits=57)) == "VirtAddr(0x400000, bits=57)"
    assert repr(PhysAddr(0x1000)) == "PhysAddr(0x1000)"
    assert f"{PhysAddr(0x1000)} {PhysAddr(0x1000):#018x}" == "0x1000 0x0000000000001000"


@pytest.mark.parametrize(
    "value",
    [
        VirtAddr(5),
        VirtAddr(1 << 50, bits=57),
        PhysAddr(5),
    ],
)
def test_addresses_survive_copying(value: Any) -> None:
    for twin in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value)):
        assert type(twin) is type(value)
        assert repr(twin) == repr(value)
        assert twin == value
        assert hash(twin) == hash(value)
