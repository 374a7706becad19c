"""RAM: three views of the same bytes, cheap zeroes, exact capture, and nothing that dangles after its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aether_emu.errors import AddressError, ConfigError
from aether_emu.machine.memory import host
from aether_emu.machine.memory.ram import Ram

pytestmark = pytest.mark.usefixtures("exact_pages")

BASE = 0x8000_0000
SIZE = 16 << 20


@pytest.fixture(params=[4096, 16384, 65536])
def ram(request: pytest.FixtureRequest) -> Iterator[Ram]:
    memory = Ram(BASE, SIZE, request.param)
    yield memory
    memory.close()


def is_mapped(address: int) -> bool:
    ranges = (line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    return any(int(start, 16) <= address < int(end, 16) for start, end in ranges)


@pytest.mark.parametrize(
    ("base", "size", "page_size", "culprit"),
    [
        (0, 1 << 20, 8192, "ram.page_size"),
        (0, 1 << 20, 0, "ram.page_size"),
        (2048, 1 << 20, 4096, "ram.base"),
        (-4096, 1 << 20, 4096, "ram.base"),
        (0, 0, 4096, "ram.size"),
        (0, -4096, 4096, "ram.size"),
        (0, 20480, 16384, "ram.size"),
    ],
)
def test_a_range_that_is_not_pages_is_refused_by_name(
    base: int, size: int, page_size: int, culprit: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        Ram(base, size, page_size)
    assert refusal.value.name == culprit


def test_the_views_and_the_host_address_are_the_same_bytes(ram: Ram) -> None:
    ram.words[0x2000 >> 3] = 0x1122334455667788
    assert ram.bytes[0x2000] == 0x88 and ram.bytes[0x2007] == 0x11
    assert int(ram.array[0x2000 >> 3]) == 0x1122334455667788
    ram.array[1] = 5
    assert ram.words[1] == 5
    assert len(ram.bytes) == SIZE and len(ram.words) == len(ram.array) == SIZE // 8
    assert (ram.bytes.format, ram.words.format, ram.array.dtype) == ("B", "Q", np.dtype("<u8"))
    assert ram.array.ctypes.data == ram.host_address
    assert ram.host_address % (2 << 20) == 0


def test_a_large_ram_costs_nothing_until_touched() -> None:
    ram = Ram(0, 64 << 30, 4096)
    ram.bytes[40 << 30] = 1
    assert host.resident_pages(ram.host_address + (40 << 30) - (1 << 20), 2 << 20) == 1
    ram.close()


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, 65536),
        (4096, 4096),
        (0, 3 * 65536),
        (2 << 20, 2 << 20),
        (4096, 4 << 20),
        (5, 17),
        (64, 2 << 20),
        (8, 0),
    ],
)
def test_zero_clears_its_range_and_nothing_else(ram: Ram, offset: int, length: int) -> None:
    ram.array[:] = 0xFFFF_FFFF_FFFF_FFFF
    ram.zero(BASE + offset, length)
    content = np.frombuffer(ram.bytes, np.uint8)
    assert not content[offset : offset + length].any()
    assert int(np.count_nonzero(content == 0xFF)) == SIZE - length


@pytest.mark.parametrize(
    ("pa", "length"),
    [
        (BASE - 65536, 65536),
        (BASE - 65536, 2 << 20),
        (BASE + SIZE, 65536),
        (BASE + SIZE - 65536, 131072),
        (BASE, -1),
    ],
)
def test_nothing_outside_ram_can_be_zeroed_or_released(ram: Ram, pa: int, length: int) -> None:
    ram.array[:] = 7
    with pytest.raises(AddressError):
        ram.zero(pa, length)
    with pytest.raises(AddressError):
        ram.release(pa, length)
    assert bool((ram.array == 7).all())


def test_only_whole_pages_can_be_released(ram: Ram) -> None:
    with pytest.raises(AddressError, match="whole pages"):
        ram.release(BASE + 2048, ram.page_size)
    with pytest.raises(AddressError, match="whole pages"):
        ram.release(BASE, ram.page_size - 2048)


def test_released_pages_read_zero_and_leave_host_memory(ram: Ram) -> None:
    assert ram.resident_bytes() == 0
    ram.array[: (4 << 20) // 8] = 7
    full = ram.resident_bytes()
    assert full >= 4 << 20
    ram.release(BASE + ram.page_size, ram.page_size)
    assert ram.resident_bytes() == full - ram.page_size
    assert not any(ram.bytes[ram.page_size : 2 * ram.page_size])
    assert (ram.bytes[ram.page_size - 8], ram.bytes[2 * ram.page_size]) == (7, 7)


def test_zeroing_a_large_range_gives_it_back_to_the_host(ram: Ram) -> None:
    ram.array[:] = 7
    ram.zero(BASE, 2 << 20)
    assert ram.resident_bytes() == SIZE - (2 << 20)


def test_save_holds_the_pages_that_are_not_zero_in_order(ram: Ram) -> None:
    page, first = ram.page_size, BASE // ram.page_size
    for number in (200, 3, 17):
        ram.bytes[number * page + page - 1] = number
    ram.bytes[5 * page] = 1
    ram.bytes[5 * page] = 0
    saved = ram.save()
    assert list(saved) == [first + 3, first + 17, first + 200]
    assert saved[first + 17] == bytes(page - 1) + b"\x11"


def test_save_reads_no_page_that_was_not_touched(ram: Ram) -> None:
    ram.bytes[SIZE // 2] = 1
    assert ram.resident_bytes() == host.PAGE_SIZE
    ram.save()
    assert ram.resident_bytes() == ram.page_size


def test_save_is_complete_on_a_host_that_hides_its_page_tables(
    ram: Ram, monkeypatch: pytest.MonkeyPatch
) -> None:
    ram.bytes[0], ram.bytes[SIZE - 1] = 1, 2
    expected = ram.save()
    monkeypatch.setattr(
        host, "held_pages", lambda _address, length: np.ones(length // host.PAGE_SIZE, np.bool_)
    )
    assert ram.save() == expected and len(expected) == 2


def test_load_restores_exactly_and_drops_what_came_later(ram: Ram) -> None:
    random = np.random.default_rng(1)
    for start in random.integers(0, SIZE // 8 - 64, 100).tolist():
        ram.array[start : start + 64] = random.integers(0, 1 << 63, 64, np.uint64)
    saved, content = ram.save(), bytes(ram.bytes)
    ram.array[:] = 9
    ram.load(saved)
    assert bytes(ram.bytes) == content
    assert ram.save() == saved
    ram.load({})
    assert ram.resident_bytes() == 0


@pytest.mark.parametrize("number_from_end", [0, 1000])
def test_load_refuses_a_page_outside_before_it_changes_anything(ram: Ram, number_from_end: int) -> None:
    ram.array[:] = 7
    outside = (BASE + SIZE) // ram.page_size + number_from_end
    with pytest.raises(AddressError):
        ram.load({BASE // ram.page_size: bytes(ram.page_size), outside: bytes(ram.page_size)})
    with pytest.raises(AddressError):
        ram.load({BASE // ram.page_size: bytes(100)})
    assert bool((ram.array == 7).all())


def test_close_gives_everything_back_and_can_be_repeated() -> None:
    ram = Ram(BASE, SIZE, 4096)
    ram.array[:] = 1
    address = ram.host_address
    assert is_mapped(address)
    ram.close()
    ram.close()
    assert not is_mapped(address)
    with pytest.raises(ValueError, match="released"):
        ram.bytes[0]
    with pytest.raises(ValueError, match="released"):
        ram.words[0] = 1
    with pytest.raises(AssertionError, match="closed"):
        _ = ram.array


def test_a_slice_that_outlives_ram_reads_zero_and_never_dangles() -> None:
    ram = Ram(BASE, SIZE, 4096)
    address, slice_of_bytes, array = ram.host_address, ram.bytes[:8], ram.array
    array[:] = 0xFFFF
    ram.close()
    assert bytes(slice_of_bytes) == bytes(8) and int(array[1]) == 0
    array[1] = 3
    del array
    assert is_mapped(address)
    del slice_of_bytes
    assert not is_mapped(address)


def test_a_dropped_ram_is_unmapped() -> None:
    ram = Ram(BASE, SIZE, 4096)
    address = ram.host_address
    del ram
    assert not is_mapped(address)
