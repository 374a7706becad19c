"""Advice that areas keep: where it holds, what a fork makes of it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu.errors import OutOfFrames
from aether_emu.mm import ageing, mapping
from aether_emu.mm.allocation import LOCKED, Area, AreaFlags
from aether_emu.mm.capture import capture
from aether_emu.mm.guards import guarded
from aether_emu.mm.mapping import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, Request
from aether_emu.mm.space import AddressSpace
from tests.mm.board import FORMATS, Board, GrantedFile
from tests.mm.calls import ANONYMOUS, RW, Make, areas, mmap, refusal

AT = 0x4000_0000
F = AreaFlags


def advise(space: AddressSpace, first: int, pages: int, advice: int) -> None:
    page = space.page_size
    mapping.advise_memory(space, AT + first * page, pages * page, advice)


def flags(space: AddressSpace, pages: int) -> list[int]:
    found = [space.areas.find(AT + number * space.page_size) for number in range(pages)]
    return [-1 if area is None else area.flags for area in found]


def fixed(space: AddressSpace, pages: int) -> None:
    mmap(space, AT, pages, RW, ANONYMOUS | MAP_FIXED)


@pytest.mark.parametrize(
    ("given", "taken", "flag"),
    [
        (mapping.MADV_RANDOM, mapping.MADV_NORMAL, F.RANDOM),
        (mapping.MADV_SEQUENTIAL, mapping.MADV_NORMAL, F.SEQUENTIAL),
        (mapping.MADV_DONTFORK, mapping.MADV_DOFORK, F.NO_FORK),
        (mapping.MADV_MERGEABLE, mapping.MADV_UNMERGEABLE, F.MERGEABLE),
        (mapping.MADV_HUGEPAGE, mapping.MADV_NOHUGEPAGE, F.HUGE),
        (mapping.MADV_DONTDUMP, mapping.MADV_DODUMP, F.NO_DUMP),
        (mapping.MADV_WIPEONFORK, mapping.MADV_KEEPONFORK, F.WIPE_ON_FORK),
    ],
    ids=lambda value: str(int(value)),
)
def test_a_part_keeps_what_it_was_advised(make: Make, given: int, taken: int, flag: AreaFlags) -> None:
    space = make()
    fixed(space, 4)
    advise(space, 1, 2, given)
    assert flags(space, 4) == [0, flag, flag, 0]
    advise(space, 0, 4, given)
    assert areas(space) == [(AT, 4)]
    advise(space, 2, 1, taken)
    assert [value & flag for value in flags(space, 4)] == [flag, flag, 0, flag]


def test_advice_that_contradicts_takes_the_place_of_the_other(make: Make) -> None:
    space = make()
    fixed(space, 1)
    for advice, wanted in (
        (mapping.MADV_HUGEPAGE, F.HUGE),
        (mapping.MADV_NOHUGEPAGE, F.NO_HUGE),
        (mapping.MADV_RANDOM, F.NO_HUGE | F.RANDOM),
        (mapping.MADV_SEQUENTIAL, F.NO_HUGE | F.SEQUENTIAL),
    ):
        advise(space, 0, 1, advice)
        assert flags(space, 1) == [wanted]


def test_a_hole_is_told_after_everything_else_was_advised(make: Make, page: int) -> None:
    space = make()
    fixed(space, 3)
    space.unmap(AT + page, AT + 2 * page)
    assert refusal(lambda: advise(space, 0, 3, mapping.MADV_DONTDUMP)) == "ENOMEM"
    assert flags(space, 3) == [F.NO_DUMP, -1, F.NO_DUMP]


def test_no_room_for_one_more_area_is_told_by_another_errno(make: Make) -> None:
    space = make(areas=2)
    fixed(space, 3)
    assert refusal(lambda: advise(space, 1, 1, mapping.MADV_DONTDUMP)) == "EAGAIN"
    assert areas(space) == [(AT, 3)]


def test_only_private_anonymous_memory_is_wiped_by_fork(
    make: Make, page: int, plain: Board, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(bytes(page))
    space, file = make(), GrantedFile(plain, tmp_path / "f")
    for kind, of in ((MAP_SHARED, file), (MAP_PRIVATE, file), (MAP_SHARED | MAP_ANONYMOUS, None)):
        mapping.map_memory(space, Request(AT, page, RW, kind | MAP_FIXED, of, 0))
        assert refusal(lambda: advise(space, 0, 1, mapping.MADV_WIPEONFORK)) == "EINVAL"
    advise(space, 0, 1, mapping.MADV_MERGEABLE)  # ignored where memory is shared
    assert flags(space, 1) == [0]


def test_huge_pages_cannot_be_had_at_once(make: Make) -> None:
    space = make()
    fixed(space, 1)
    assert refusal(lambda: advise(space, 0, 1, mapping.MADV_COLLAPSE)) == "EINVAL"
    advise(space, 0, 0, mapping.MADV_COLLAPSE)


@pytest.mark.parametrize("advice", [mapping.MADV_COLD, mapping.MADV_PAGEOUT])
def test_cold_pages_count_as_not_accessed(make: Make, page: int, plain: Board, advice: int) -> None:
    space = make()
    fixed(space, 2)
    plain.cpu.copy_to_user(AT, b"x" * 2 * page)
    advise(space, 1, 1, advice)
    assert ageing.survey(space, AT, AT + 2 * page).accessed == 1
    assert plain.cpu.copy_from_user(AT + page, 1) == b"x"
    assert ageing.survey(space, AT, AT + 2 * page).accessed == 2


# ---- fork


def test_a_fork_leaves_out_what_it_was_told_to(make: Make, page: int, plain: Board) -> None:
    space = make()
    fixed(space, 6)
    plain.cpu.copy_to_user(AT, b"".join(bytes([97 + n]) * page for n in range(6)))
    advise(space, 1, 2, mapping.MADV_DONTFORK)
    advise(space, 3, 2, mapping.MADV_WIPEONFORK)
    space.mark(_area(space, 5), AT + 5 * page, AT + 6 * page, LOCKED)
    child = space.fork()
    assert flags(child, 6) == [0, -1, -1, F.WIPE_ON_FORK, F.WIPE_ON_FORK, 0]
    assert (child.account.reserved, child.account.data, child.account.locked) == (4 * page, 4 * page, 0)
    plain.run_on(child)
    shown = [plain.cpu.copy_from_user(AT + n * page, 1) for n in (0, 3, 4, 5)]
    assert shown == [b"a", b"\0", b"\0", b"f"]
    plain.cpu.copy_to_user(AT + 3 * page, b"z")
    plain.run_on(space)
    assert [plain.cpu.copy_from_user(AT + n * page, 1) for n in (1, 3)] == [b"b", b"d"]
    grandchild = child.fork()
    assert flags(grandchild, 6) == flags(child, 6)
    grandchild.destroy()
    child.destroy()


def _area(space: AddressSpace, number: int) -> Area:
    area = space.areas.find(AT + number * space.page_size)
    assert area is not None
    return area


def test_advice_survives_capture(make: Make, plain: Board) -> None:
    space = make()
    fixed(space, 2)
    advise(space, 0, 1, mapping.MADV_DONTDUMP)
    space.mark(_area(space, 1), AT + space.page_size, AT + 2 * space.page_size, LOCKED)
    space.new_flags, space.program_data = LOCKED, 5
    described = [area["flags"] for area in capture(space)["areas"]]
    assert described == [F.NO_DUMP, LOCKED]
    assert (capture(space)["new_flags"], capture(space)["program_data"]) == (LOCKED, 5)


def test_guarding_without_a_frame_for_a_table_is_no_hole_behind_which_a_call_goes_on() -> None:
    board = Board(FORMATS["x86_64"])
    space = board.space()
    at, count = 0x4000_0000, 4 * 512
    mmap(space, at, count, RW, ANONYMOUS | MAP_FIXED)
    held = [board.buddy.alloc() for _ in range(board.buddy.free_frames)]
    with pytest.raises(OutOfFrames):
        mapping.advise_memory(space, at, count * 4096, mapping.MADV_GUARD_INSTALL)
    assert not guarded(space, at, at + count * 4096).size
    for frame in held:
        board.buddy.free(frame)
    mapping.advise_memory(space, at, count * 4096, mapping.MADV_GUARD_INSTALL)
    assert guarded(space, at, at + count * 4096).size == count
    board.close()
