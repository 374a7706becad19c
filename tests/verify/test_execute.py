"""Other people's tables on the emulated CPU: the same answers, and the image left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aether_emu.errors import ConfigError
from aether_emu.machine.probe.prober import Operation
from aether_emu.verify import open_image, open_tables, survey
from aether_emu.verify.tables.execute import Agreement, execute
from aether_emu.verify.tables.notes import Registers
from tests.guests.running import TARGETS, Target
from tests.verify.crafted_images import CODE, KERNEL, PAGE, Crafted
from tests.verify.guest_cores import stopped_core

UPPER = 0xFFFF_FFFF_8000_0000


def tried(crafted: Crafted, registers: Registers | None = None, **options: int) -> Agreement:
    return execute(survey(open_tables(crafted.image, **crafted.options, registers=registers)), **options)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_the_engine_agrees_about_a_running_program(tmp_path: Path, target: Target) -> None:
    path = stopped_core(tmp_path, target, "maps")
    before = path.read_bytes()
    agreement = execute(survey(open_tables(open_image(path))))
    assert (agreement.differences, agreement.examples) == (0, [])
    assert agreement.pages > 40
    assert agreement.accesses == 6 * agreement.pages
    assert 0 < agreement.faults < agreement.accesses
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "name",
    ["x86_64-4level", "x86_64-5level", "arm64-4K", "arm64-4K-39bit", "arm64-16K-47bit", "arm64-64K-42bit"],
)
def test_every_kind_of_entry_is_tried(name: str) -> None:
    crafted = Crafted(name)
    page, isa = crafted.format.page, crafted.isa
    crafted.leaf(page * 4, page * 40)
    crafted.leaf(page * 6, page * 41, CODE[isa])
    crafted.leaf(UPPER, page * 42, KERNEL[isa])
    crafted.leaf(UPPER + page, page * 4000, KERNEL[isa])  # no memory there
    crafted.leaf(1 << crafted.format.shifts[1], 0, PAGE[isa], level=2)
    crafted.put(page * 9, page * 40 | PAGE[isa] | 1 << 45 if isa == "x86_64" else page * 40 | PAGE[isa] & ~2)
    before = crafted.words.copy()
    agreement = tried(crafted, Registers(physical_bits=40 if isa == "x86_64" else 48))
    assert (agreement.differences, agreement.examples) == (0, [])
    assert agreement.pages >= 7
    assert (crafted.words == before).all()


def test_a_known_difference_of_the_engine_is_reported() -> None:
    # It takes a block where the architecture has none with this granule.
    crafted = Crafted("arm64-64K")
    crafted.put(0, PAGE["arm64"] & ~2, level=3)
    agreement = tried(crafted)
    assert agreement.differences > 0
    first = agreement.examples[0]
    assert (first.operation, first.user) == (Operation.READ, False)
    assert first.expected.startswith("a fault with code")
    text = list(agreement.lines())
    assert f"{agreement.differences} differences" in text[0]
    assert "kernel read at" in text[1]


def test_a_frame_that_is_not_the_specified_one_is_reported() -> None:
    # It lays bits of a block's address that the architecture has as zero over the address.
    crafted = Crafted("arm64-4K", 64)
    crafted.leaf(0, 0x1_2000, level=2)
    agreement = tried(crafted)
    assert agreement.differences > 0
    assert {one.operation for one in agreement.examples} == {Operation.READ, Operation.WRITE}
    assert all("specified frame" in line for line in list(agreement.lines())[1:])


def test_controls_that_the_image_tells_are_used() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0x1000, 0x35000)
    for registers in (Registers(nxe=False), Registers(nxe=True)):
        assert tried(crafted, registers).differences == 0
    arm = Crafted("arm64-4K")
    arm.leaf(UPPER, 0x35000, 0x703)
    for registers in (Registers(wxn=False), Registers(wxn=True)):
        assert tried(arm, registers).differences == 0
    assert tried(arm, Registers(wxn=True)).faults == tried(arm, Registers(wxn=False)).faults + 1


def test_no_more_pages_than_the_sample_are_tried() -> None:
    crafted = Crafted("x86_64-4level", 600)
    for number in range(512):
        crafted.leaf(0x1000 * number, 0x40_000 + 0x1000 * number % 0x10_0000)
    assert tried(crafted, sample=50).pages in range(50, 102)
    assert tried(crafted).pages > 500


def test_an_access_to_the_tables_that_it_needs_is_set_aside() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0x2000, crafted.table_of(0x2000, 1))  # entry 2 of that table is at its own 0x10
    agreement = tried(crafted)
    assert (agreement.set_aside, agreement.differences) == (1, 0)


def test_a_root_without_a_free_slot_is_tried_without_two_slots() -> None:
    crafted = Crafted("x86_64-4level", 600)
    for slot in range(512):
        crafted.put(slot << 39, crafted.next | 0x27, level=4)
    table = crafted.next
    crafted.words[table // 8] = (table + 0x1000) | 0x27
    crafted.words[table // 8 + 512] = (table + 0x2000) | 0x27
    crafted.words[table // 8 + 1024] = 0x5_0000 | PAGE["x86_64"]
    agreement = tried(crafted)
    assert agreement.differences == 0
    assert agreement.pages >= 510


def test_pages_marked_by_an_encryption_bit_are_tried_without_it() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0x1000, 0x35000 | 1 << 47)
    crafted.leaf(0x2000, 0x36000)
    agreement = tried(crafted, Registers(encryption_bit=47))
    assert agreement.differences == 0
    assert agreement.accesses - agreement.faults >= 8, "both pages are reached"
    assert tried(crafted).faults > agreement.faults, "without a name the bit is an address bit the CPU lacks"


@pytest.mark.parametrize("name", ["arm64-64K-lpa", "arm64-4K-lpa2", "arm64-64K-52bit"])
def test_a_cpu_without_wide_addresses_is_not_asked_about_them(name: str) -> None:
    crafted = Crafted(name)
    crafted.leaf(0, 7 * crafted.format.page)
    with pytest.raises(ConfigError, match=f"execute='{name}' is not possible with {name}"):
        tried(crafted)


def test_nothing_mapped_is_nothing_to_try() -> None:
    assert tried(Crafted("x86_64-4level")) == Agreement()
    assert np.count_nonzero(Crafted("x86_64-4level").words) == 0
