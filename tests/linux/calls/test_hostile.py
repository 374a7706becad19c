"""Any call with any arguments is answered: no exception gets out, whatever a guest passes."""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from aether_emu.linux.calls import attributes, descriptors, epolling, paths, polling, transfer
from tests.linux.calls.twin import ARGUMENTS, BASE, BLOCKED, PAGE, PROT_NONE, Served
from tests.linux.files.conftest import guest_in

FAMILIES = (transfer, descriptors, paths, attributes, polling, epolling)
NAMES = sorted(name.removeprefix("sys_") for f in FAMILIES for name in vars(f) if name.startswith("sys_"))
LAST = (1 << 64) - 1
PATHS = (b"f", b"d", b"l", b"", b"/", b"..", b"/proc/self/fd/3", b"/dev/zero", b"x" * 300, b"\xff", b"/r/f")
TEXTS = [BASE + ARGUMENTS + 320 * index for index in range(len(PATHS))]

numbers = st.one_of(
    st.integers(0, 12),
    st.sampled_from([0o100, 0o1000, 0o2000, 0o4000, 0x100, 0x1000, 1024, 1025, 1030, 1033, 4096]),
    st.sampled_from([1 << 31, (1 << 31) - 1, 1 << 32, 1 << 62, 1 << 63, (1 << 63) - 1, LAST, LAST - 99]),
    st.integers(0, LAST),
)
addresses = st.one_of(
    st.sampled_from([*TEXTS, BASE, BASE + 64, BASE + 5 * PAGE - 8, BASE + 5 * PAGE, 0, LAST, LAST - 7]),
    st.integers(BASE, BASE + 7 * PAGE),
)
calls = st.tuples(st.sampled_from(NAMES), st.lists(st.one_of(numbers, addresses), min_size=6, max_size=6))


def prepare(served: Served) -> None:
    """Paths, structures, and one descriptor of each kind."""
    for address, path in zip(TEXTS, PATHS, strict=True):
        served.text(path, address - BASE)
    served.put(0, struct.pack("<8Q", BASE + 100, 50, BASE + 5 * PAGE - 20, 100, 0, 1, LAST, 1 << 63))
    served.put(64, struct.pack("<qqqq", 0, 999, 5, 1 << 40))
    served.memory.protect(5, PROT_NONE)
    served("mkdir", TEXTS[1], 0o700)
    served("symlink", TEXTS[0], TEXTS[2])
    served("open", TEXTS[0], os.O_RDWR | os.O_CREAT, 0o600)
    served("open", TEXTS[1], 0, 0)
    served("pipe2", BASE + 6 * PAGE, 0)
    served("eventfd", 3)
    served("epoll_create", 1)
    served("memfd_create", TEXTS[0], 2)


@settings(max_examples=100)
@given(st.lists(calls, min_size=5, max_size=25))
def test_everything_is_answered(sequence: list[tuple[str, list[int]]]) -> None:
    with (
        tempfile.TemporaryDirectory() as base,
        guest_in(Path(base)) as guest,
        contextlib.closing(Served(guest.files)) as served,
    ):
        prepare(served)
        for name, arguments in sequence:
            answer = served(name, *arguments)
            assert answer == BLOCKED or (isinstance(answer, int) and answer > -4096), (name, arguments)
