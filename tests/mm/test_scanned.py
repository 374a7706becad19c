"""What the scan for equal pages keeps in mind, in columns, beside plain dicts that keep the same."""

from __future__ import annotations

from random import Random

import pytest

from aether_emu.mm.scanned import PageSet, Place, Scanned

MERGED = -1


class Plain:
    """The same as dicts: what was asked of it, and what it answers."""

    def __init__(self) -> None:
        self.before: dict[Place, int] = {}
        self.now: dict[Place, int] = {}
        self.alone: dict[int, Place] = {}
        self.zeros: set[Place] = set()

    def known(self, space: int) -> int:
        return sum(place[0] == space for place in self.before.keys() | self.now.keys())

    def end_pass(self, spaces: set[int]) -> None:
        self.before, self.now, self.alone = self.now, {}, {}
        self.zeros = {place for place in self.zeros if place[0] in spaces and place not in self.before}


def look_at(scanned: Scanned, plain: Plain, place: Place, checksum: int, chance: float) -> None:
    """One page, as the scan looks at it; pages that wait for the same checksum pair now and then."""
    if checksum == MERGED:
        scanned.note_merged(*place)
        plain.now[place] = MERGED
        return
    if checksum == 0 and chance < 0.7:
        scanned.note_zero(*place)
        plain.zeros.add(place)
        return
    same = scanned.note(*place, checksum)
    plain.now[place] = checksum
    assert same == (plain.before.get(place) == checksum)
    if not same:
        return
    waits = plain.alone.get(checksum)
    assert scanned.waits_for(checksum) == waits
    if waits is None or chance < 0.1:  # who waits may be gone
        scanned.let_wait(place[1], checksum)
        plain.alone[checksum] = place
    elif chance < 0.8:
        scanned.found(checksum)
        del plain.alone[checksum]


def a_pass(
    random: Random, spaces: dict[int, list[int]], bytes_of: dict[Place, int]
) -> list[tuple[Place, int]]:
    """The pages of a pass in order, with their checksums. Some have changed, some are not there."""
    seen = []
    for space, pages in sorted(spaces.items()):
        for page in pages:
            if random.random() < 0.15:
                bytes_of[space, page] = random.choice([MERGED, 0, *range(1, 40), random.getrandbits(32)])
            if random.random() < 0.95:
                seen.append(((space, page), bytes_of.setdefault((space, page), random.randrange(40))))
    return seen


@pytest.mark.parametrize("seed", range(8))
def test_passes_answer_as_dicts_do(seed: int) -> None:
    random = Random(seed)
    spaces = {
        number: sorted(random.sample(range(first, first + 3000), random.randrange(1, 900)))
        for number, first in ((1, 0), (4, 1 << 39), (9, 77), (12, 1 << 44))
    }
    scanned, plain, bytes_of = Scanned(), Plain(), dict[Place, int]()
    for number in range(8):
        seen = a_pass(random, spaces, bytes_of)
        middle = random.randrange(len(seen))
        for at, (place, checksum) in enumerate(seen):
            if at == middle:
                state, scanned = scanned.capture(), Scanned()
                scanned.restore(state)
                assert scanned.capture() == state
            look_at(scanned, plain, place, checksum, random.random())
            if at % 97 == 0:
                assert [scanned.known(space) for space in spaces] == [plain.known(space) for space in spaces]
        assert scanned.alone == len(plain.alone)
        if number == 5:
            del spaces[4]
        scanned.end_pass(spaces)
        plain.end_pass(set(spaces))
        for space in (*spaces, 4):
            zeros = {page for owner, page in plain.zeros if owner == space}
            assert set(scanned.zeros_of(space)) == zeros
            assert scanned.known(space) == plain.known(space)


def test_a_page_in_a_row_takes_four_bytes_and_a_half() -> None:
    scanned = Scanned()
    for _ in range(3):
        for page in range(100_000):
            if scanned.note(1, page, page * 7919 & 0xFFFF_FFFF):
                scanned.let_wait(page, page * 7919 & 0xFFFF_FFFF)
            if page == 50_000:
                half = sum(column.nbytes for column in scanned.kept())
                assert half < 5 * 100_000, "what is behind is thrown away"
        scanned.end_pass({1})
    assert sum(column.nbytes for column in scanned.kept()) < 4.5 * 100_000


def test_a_set_of_pages_finds_them() -> None:
    places = [(2, 5), (2, 63), (2, 64), (2, 1 << 44), (7, 0), (7, 5)]
    pages = PageSet()
    for place in places:
        assert pages.add(*place)
        assert pages.place(pages.number(place[1])) == place
    assert not pages.add(7, 5), "what comes twice counts once"
    assert pages.count == len(places)
    assert [
        place for place in places if pages.find(place[0], place[1] >> 6)[0] >> (place[1] & 63) & 1
    ] == places
    assert pages.find(2, 0) == (1 << 5 | 1 << 63, 0)
    assert pages.find(7, 0) == (1 << 5 | 1, 4)
    assert pages.find(3, 0) == pages.find(2, 2) == (0, 0)
    assert PageSet(pages.words()).capture() == pages.capture()
