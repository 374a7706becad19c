"""Setting the clock and reading the kernel's log: refused as Linux refuses a user, and the clock to root too.

None of it is tried on the host, where root would set the clock. What is expected was recorded on Linux 6.18
as a user without capabilities.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterator

import pytest

from aether_emu.linux.credentials import of_user
from tests.linux.calls.twin import BASE, BLOCKED, Served
from tests.linux.files.conftest import Guest

E = errno
_CALLS: list[tuple[int, str, tuple[int, ...], bytes]] = [
    (-E.EPERM, "settimeofday", (BASE, 0), struct.pack("<qq", 1, 0)),
    (-E.EPERM, "settimeofday", (0, 0), b""),
    *(
        (-E.EINVAL, "settimeofday", (BASE, 0), struct.pack("<qq", *one))
        for one in ((1, -1), (1, 10**6), (-1, 0))
    ),
    (-E.EPERM, "settimeofday", (0, BASE), struct.pack("<ii", 99999, 0)),
    (-E.EFAULT, "settimeofday", (8, 0), b""),
    (-E.EPERM, "clock_settime", (0, BASE), struct.pack("<qq", 1, 0)),
    *(
        (-E.EINVAL, "clock_settime", (clock, BASE), struct.pack("<qq", 1, 0))
        for clock in (1, 2, 3, 5, 7, 8, 11, 99)
    ),
    (-E.EINVAL, "clock_settime", (0, BASE), struct.pack("<qq", 1, -1)),
    (-E.EFAULT, "clock_settime", (0, 8), b""),
    (-E.EINVAL, "clock_settime", (1, 8), b""),
    (-E.EPERM, "clock_settime", (-2, BASE), struct.pack("<qq", 1, 0)),
    (5, "adjtimex", (BASE,), bytes(208)),
    (-E.EPERM, "adjtimex", (BASE,), struct.pack("<I", 1).ljust(208, b"\0")),
    (5, "adjtimex", (BASE,), struct.pack("<I", 0xA001).ljust(208, b"\0")),
    (-E.EPERM, "adjtimex", (BASE,), struct.pack("<I", 0x8001).ljust(208, b"\0")),
    (5, "clock_adjtime", (0, BASE), bytes(208)),
    (-E.EOPNOTSUPP, "clock_adjtime", (1, BASE), bytes(208)),
    (-E.EINVAL, "clock_adjtime", (99, BASE), bytes(208)),
]


@pytest.fixture(params=["x86_64", "arm64"])
def either(guest: Guest, request: pytest.FixtureRequest) -> Iterator[Served]:
    with contextlib.closing(Served(guest.files, request.param)) as made:
        yield made


@pytest.mark.parametrize("uid", [0, 1000])
def test_nobody_sets_the_clock_and_what_is_wrong_is_told_first(either: Served, uid: int) -> None:
    either.task.credentials = of_user(uid, uid)
    for expected, name, arguments, data in _CALLS:
        either.put(0, data)
        assert either(name, *arguments) == expected, (name, arguments, data)


def test_how_the_clock_is_disciplined_can_be_read(either: Served) -> None:
    either.put(0, bytes(208))
    assert either("adjtimex", BASE) == 5
    _modes, _offset, frequency, most, _estimated, status = either.unpack("I4xqqqqi", 0)
    assert (frequency, most, status) == (0, 16_000_000, 0x40)
    assert either.unpack("qqq", 48) == (2, 1, 32_768_000)
    told = either.unpack("qqq", 72)
    assert either("clock_gettime", 0, BASE) == 0
    assert told == (either.unpack("q", 0)[0], told[1], 10_000)


def test_the_kernels_log_is_for_those_with_the_capability_and_empty(either: Served) -> None:
    either.task.credentials = of_user(1000, 1000)
    for action in range(-1, 12):
        assert either("syslog", action, BASE, 256) == -E.EPERM
    either.task.credentials = of_user(0, 0)
    assert [either("syslog", action, BASE, 256) for action in (3, 9, 10)] == [0, 0, 1 << 18]
    assert either("syslog", 2, BASE, 256) == BLOCKED
    for action, address, length in ((3, 0, 5), (3, BASE, -1), (8, 0, 9), (8, 0, 0), (11, 0, 0), (-1, 0, 0)):
        assert either("syslog", action, address, length) == -E.EINVAL


def test_what_no_call_makes_is_told_before_the_path_is_looked_at(either: Served) -> None:
    expected = [(0o040666, b"no/n", E.EPERM), (0o120666, b"no/n", E.EINVAL), (0o170000, b"no/n", E.EINVAL)]
    expected += [(0o020666, b"no/n", E.ENOENT), (0o020666, b"n/", E.ENOENT), (0o020666, b".", E.EEXIST)]
    expected += [(0o020666, b"n", E.EPERM), (0o060666, b"/tmp/n", E.EPERM)]
    for mode, path, number in expected:
        answer = either("mknodat", -100, either.text(path), mode, os.makedev(1, 3))
        assert answer == -number, (oct(mode), path)
