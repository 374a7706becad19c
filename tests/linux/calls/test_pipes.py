"""How pipes fill, slot by slot: random walks beside the real kernel."""

from __future__ import annotations

import errno
import os
import random
import struct

import pytest

from tests.linux.calls.twin import ARGUMENTS, PAGE, A, F, Twin

_SET_SIZE, _GET_SIZE, _SET_FLAGS, _READABLE = 1031, 1032, 4, 0x541B
_OUT, _NO_WAIT = 4, 2
_GIVEN = 0x8000  # pages that vmsplice gives away, which nobody changes
_COUNTS = (1, 3, 100, 1000, 2000, 3000, 4000, 4095, 4096, 4097, 5000, 8192, 12000, 20000)


def _state(twin: Twin, name: str) -> None:
    """How many bytes, and whether a slot is free, on both sides."""
    twin.call("ioctl", F(f"r{name}"), _READABLE, A(ARGUMENTS))
    twin.put(ARGUMENTS, bytes(64))
    for side, memory in enumerate(twin.memories):
        struct.pack_into("<iHH", memory, ARGUMENTS, twin.pair(f"w{name}")[side], _OUT, 0)
        struct.pack_into("<qq", memory, ARGUMENTS + 16, 0, 0)
    twin.call("ppoll", A(ARGUMENTS), 1, A(ARGUMENTS + 16), 0, 8)
    twin.put(ARGUMENTS, bytes(64))


def _pattern(step: int) -> bytes:
    return bytes((step * 7 + n * n) & 0xFF for n in range(0x5000))


def _step(twin: Twin, chance: random.Random) -> None:
    name, other = chance.choice(("12", "21"))
    count, start = chance.choice(_COUNTS), chance.choice((0, 0, 5, 4000))
    match chance.randrange(16):
        case 0 | 1 | 2 | 3:
            twin.call("write", F(f"w{name}"), A(start), count)
        case 4 | 5 | 6:
            twin.call("read", F(f"r{name}"), A(0x5000 + chance.randrange(100)), min(count, 0x2E00))
        case 7:
            twin.call("fcntl", F(f"w{name}"), _SET_SIZE, chance.choice((4096, 8192, 16384, 32768)))
        case 8:
            twin.call("fcntl", F(f"w{name}"), _SET_FLAGS, os.O_NONBLOCK | chance.choice((0, 0, os.O_DIRECT)))
        case 9 | 10:
            twin.call("splice", F(f"r{name}"), 0, F(f"w{other}"), 0, count, _NO_WAIT)
        case 11:
            twin.call("tee", F(f"r{name}"), F(f"w{other}"), count, _NO_WAIT)
        case 12 | 13:
            twin.put(ARGUMENTS + 64, struct.pack("<q", chance.choice((0, 10, 4000, 4096, 9000))))
            twin.call("splice", F("f"), A(ARGUMENTS + 64), F(f"w{name}"), 0, count, _NO_WAIT)
            twin.put(ARGUMENTS + 64, bytes(8))
        case 14:
            pieces = [(A(_GIVEN + chance.randrange(2000)), chance.choice((1, 10, 2000))) for _ in range(2)]
            vector = twin.vector(pieces, ARGUMENTS + 128)
            twin.call("vmsplice", F(f"w{name}"), vector, 2, _NO_WAIT)
            twin.put(ARGUMENTS + 128, bytes(32))
        case 15:
            pieces = [(A(chance.randrange(0x2000)), chance.choice((1, 10, 4096, 5000))) for _ in range(3)]
            vector = twin.vector(pieces, ARGUMENTS + 128)
            twin.call("writev", F(f"w{name}"), vector, 3)
            twin.put(ARGUMENTS + 128, bytes(48))
    _state(twin, name)
    _state(twin, other)


@pytest.mark.parametrize("seed", range(8))
def test_pipes_fill_as_those_of_the_kernel(twin: Twin, seed: int) -> None:
    chance = random.Random(seed)
    twin.put(0, bytes(n * 31 & 0xFF for n in range(20000)))
    twin.open("f", "openat", F("dir"), twin.text(b"f"), os.O_RDWR | os.O_CREAT, 0o600)
    assert twin.call("write", F("f"), A(0), 20000) == 20000
    for name in "12":
        twin.pipe(f"r{name}", f"w{name}")
    for step in range(120):
        if step % 20 == 0:
            twin.put(0, _pattern(step))
        _step(twin, chance)


@pytest.mark.parametrize("before", [0, 1, 904, 4096, 5000, 7999])
def test_a_read_takes_no_page_that_cannot_be_delivered(twin: Twin, before: int) -> None:
    bad = 5
    twin.put(0, _pattern(1)[:8000])
    twin.pipe("r", "w")
    assert twin.call("write", F("w"), A(0), 8000) == 8000
    twin.forbid(bad)
    done = twin.call("read", F("r"), A(bad * PAGE - before), 8000)
    assert done == (before // PAGE * PAGE or -errno.EFAULT)
    twin.call("read", F("r"), A(0), 8000)


def test_many_small_writes_share_a_slot_and_odd_ones_waste_it(twin: Twin) -> None:
    twin.pipe("r", "w")
    assert twin.call("fcntl", F("w"), _SET_SIZE, 8192) == 8192
    answers = [twin.call("write", F("w"), A(0), 3000) for _ in range(3)]
    assert answers == [3000, 3000, -errno.EAGAIN], "two slots of a page hold two such writes"
    assert twin.call("write", F("w"), A(0), 1000) == 1000, "which fills up the last"
    assert twin.call("write", F("w"), A(0), 97) == -errno.EAGAIN
    assert twin.call("fcntl", F("w"), _SET_SIZE, 4096) == -errno.EBUSY
    assert twin.call("read", F("r"), A(0), 3000) == 3000
    assert twin.call("fcntl", F("w"), _SET_SIZE, 4096) == 4096
