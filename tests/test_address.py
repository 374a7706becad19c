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

from aether_emu.address import GuestPhysAddr, PhysAddr, PhysRange, RemoteAddr, VirtAddr, VirtRange
from aether_emu.errors import AddressError, AetherError

LOWER_END, UPPER_START = 0x0000_8000_0000_0000, 0xFFFF_8000_0000_0000
KINDS: list[Callable[[int], Any]] = [VirtAddr, PhysAddr, GuestPhysAddr, lambda value: RemoteAddr(3, value)]

widths = st.sampled_from([25, 39, 48, 49, 57, 64])
words = st.integers(0, 2**64 - 1)
alignments = st.integers(0, 30).map(lambda bits: 1 << bits)


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


@pytest.mark.parametrize("kind", [PhysAddr, GuestPhysAddr])
def test_physical_addresses_have_up_to_52_bits(kind: type[PhysAddr | GuestPhysAddr]) -> None:
    assert kind(0) == 0
    assert kind(2**52 - 1) == 2**52 - 1
    for wrong in (-1, 2**52, 2**64):
        with pytest.raises(AddressError, match="not within 52 bits"):
            kind(wrong)
    assert kind.new_truncate(2**63 | 0x1234) == 0x1234
    assert kind.new_truncate(-1) == 2**52 - 1


@given(st.integers(0, 4095), st.integers(0, 2**52 - 1))
def test_a_remote_address_is_a_node_and_an_address_there(node: int, addr: int) -> None:
    remote = RemoteAddr(node, addr)
    assert (remote.node, remote.addr) == (node, addr)
    assert int(remote) == node << 52 | addr
    assert remote.page_offset() == addr % 4096


def test_a_remote_address_never_leaves_its_node() -> None:
    assert (RemoteAddr(7, 0x1000) + 0x234).addr == 0x1234
    assert (RemoteAddr(7, 0x1000) + 0x234).node == 7
    with pytest.raises(AddressError):
        RemoteAddr(7, 2**52 - 1) + 1
    with pytest.raises(AddressError):
        RemoteAddr(7, 0) - 1
    for node, addr in ((-1, 0), (4096, 0), (0, -1), (0, 2**52)):
        with pytest.raises(AddressError):
            RemoteAddr(node, addr)


def test_no_distance_leads_from_node_to_node() -> None:
    assert RemoteAddr(1, 0x3000) - RemoteAddr(1, 0x1000) == 0x2000
    with pytest.raises(AddressError, match="node 2"):
        RemoteAddr(1, 0x3000) - RemoteAddr(2, 0x1000)


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
        if make is not KINDS[3]:
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
        lambda: VirtAddr(LOWER_END - 1).align_up(4096),
    ):
        with pytest.raises(AddressError):
            leave()


def test_arithmetic_keeps_the_width() -> None:
    wide = VirtAddr(LOWER_END - 0x1000, bits=57)
    assert wide + 0x1000 == LOWER_END
    assert (wide + 0x1000).bits == 57
    assert (wide + 1).align_up(4096).bits == 57
    assert VirtAddr(0).bits == 48


@given(st.integers(0, 2**51), alignments)
def test_alignment(value: int, alignment: int) -> None:
    address = PhysAddr(value)
    down, up = address.align_down(alignment), address.align_up(alignment)
    assert type(down) is type(up) is PhysAddr
    assert down % alignment == up % alignment == 0
    assert down <= address <= up
    assert up - down == (0 if address.is_aligned(alignment) else alignment)
    assert address.is_aligned(alignment) == (value % alignment == 0)
    assert address.page_offset(alignment) == value % alignment == address - down


@pytest.mark.parametrize("alignment", [0, -4096, 3, 4097])
def test_an_alignment_is_a_power_of_two(alignment: int) -> None:
    for ask in (
        VirtAddr(0).align_down,
        VirtAddr(0).align_up,
        VirtAddr(0).is_aligned,
        VirtAddr(0).page_offset,
    ):
        with pytest.raises(ValueError, match="power of two"):
            ask(alignment)


def test_addresses_show_themselves_in_hexadecimal() -> None:
    assert repr(VirtAddr(0x40_0000)) == "VirtAddr(0x400000)"
    assert repr(VirtAddr(0x40_0000, bits=57)) == "VirtAddr(0x400000, bits=57)"
    assert repr(GuestPhysAddr(0x1000)) == "GuestPhysAddr(0x1000)"
    assert repr(RemoteAddr(2, 0x1000)) == "RemoteAddr(node=2, addr=0x1000)"
    assert f"{PhysAddr(0x1000)} {PhysAddr(0x1000):#018x}" == "0x1000 0x0000000000001000"


@pytest.mark.parametrize(
    "value",
    [
        VirtAddr(5),
        VirtAddr(1 << 50, bits=57),
        PhysAddr(5),
        RemoteAddr(2, 5),
        VirtRange(4, 5),
        PhysRange(4, 5),
    ],
)
def test_addresses_and_ranges_survive_copying(value: Any) -> None:
    for twin in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value)):
        assert type(twin) is type(value)
        assert repr(twin) == repr(value)
        assert twin == value
        assert hash(twin) == hash(value)


def test_a_range_is_half_open() -> None:
    area = VirtRange(0x1000, 0x2000)
    assert area == VirtRange.between(0x1000, 0x3000)
    assert (area.start, area.length, area.end) == (0x1000, 0x2000, 0x3000)
    assert isinstance(area.start, VirtAddr)
    assert [at in area for at in (0xFFF, 0x1000, 0x2FFF, 0x3000)] == [False, True, True, False]
    assert (str(area), repr(area)) == ("0x1000-0x3000", "VirtRange(0x1000, 0x2000)")


def test_a_range_may_end_where_the_addresses_do() -> None:
    assert VirtRange(LOWER_END - 0x1000, 0x1000).end == LOWER_END
    assert VirtRange(UPPER_START, 2**47).end == 2**64
    assert VirtRange.between(2**64 - 4096, 2**64).length == 4096
    assert PhysRange(0, 2**52).end == 2**52
    assert VirtRange(VirtAddr(0, bits=57), 2**56).end == 2**56


@pytest.mark.parametrize(
    ("start", "length"),
    [
        (LOWER_END - 0x1000, 0x1001),
        (
            LOWER_END - 0x1000,
            UPPER_START - LOWER_END + 0x2000,
        ),  # both ends are canonical, the hole between is not
        (LOWER_END, 0),
        (2**64 - 1, 2),
    ],
)
def test_a_range_is_made_of_addresses_only(start: int, length: int) -> None:
    with pytest.raises(AddressError):
        VirtRange(start, length)
    with pytest.raises(AddressError):
        PhysRange(2**52 - 1, 2)


def test_a_range_has_no_negative_length() -> None:
    with pytest.raises(ValueError, match="cannot have -1 bytes"):
        VirtRange(0x1000, -1)
    with pytest.raises(ValueError, match="cannot have -4096 bytes"):
        PhysRange.between(0x2000, 0x1000)


def test_ranges_of_different_kinds_do_not_mix() -> None:
    virtual: Any = VirtRange(0x1000, 0x1000)
    physical: Any = PhysRange(0x1000, 0x1000)
    for mix in (
        lambda: virtual.overlaps(physical),
        lambda: virtual.intersection(physical),
        lambda: virtual.contains(physical),
        lambda: PhysAddr(0x1000) in virtual,
        lambda: VirtRange(PhysAddr(0), 1),
        lambda: VirtRange.between(0, PhysAddr(1)),
        lambda: virtual.split(PhysAddr(0x1000)),
    ):
        with pytest.raises(TypeError):
            mix()
    assert virtual != physical


def test_a_range_cannot_be_changed() -> None:
    area: Any = VirtRange(0x1000, 0x1000)
    with pytest.raises(AttributeError):
        area.start = VirtAddr(0)


spans = st.builds(PhysRange, st.integers(0, 40), st.integers(0, 20))


@given(spans, spans)
def test_set_operations_agree_with_sets_of_bytes(one: PhysRange, two: PhysRange) -> None:
    bytes_of_one, bytes_of_two = set(range(one.start, one.end)), set(range(two.start, two.end))
    common = one.intersection(two)
    assert (set(range(common.start, common.end)) if common else set()) == bytes_of_one & bytes_of_two
    assert one.overlaps(two) == bool(bytes_of_one & bytes_of_two)
    if two.length:
        assert one.contains(two) == (bytes_of_two <= bytes_of_one)


@given(spans, st.sampled_from([1, 2, 4, 8]))
def test_pages_are_those_with_a_byte_in_the_range(span: PhysRange, page_size: int) -> None:
    touched = sorted({byte // page_size * page_size for byte in range(span.start, span.end)})
    assert list(span.pages(page_size)) == touched
    assert all(type(page) is PhysAddr for page in span.pages(page_size))


@given(spans, st.integers(0, 60))
def test_splitting_loses_and_adds_nothing(span: PhysRange, at: int) -> None:
    if at not in span:
        with pytest.raises(ValueError, match="is not in"):
            span.split(at)
        return
    before, after = span.split(at)
    assert (before.start, before.end, after.start, after.end) == (span.start, at, at, span.end)


def test_ranges_keep_the_width_of_their_start() -> None:
    area = VirtRange(VirtAddr(LOWER_END - 0x1000, bits=57), 0x3000)
    assert {page.bits for page in area.pages()} == {57}
    before, after = area.split(LOWER_END)
    assert before.start.bits == after.start.bits == 57
    common = area.intersection(VirtRange(VirtAddr(LOWER_END, bits=57), 0x1000))
    assert common is not None
    assert common.start.bits == 57
