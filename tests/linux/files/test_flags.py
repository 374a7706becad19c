"""Open flags: the ARM64 numbering, and what the host is told."""

from __future__ import annotations

import os

import pytest

from aether_emu.linux.files import flags as fl

# (ours, ARM64's), by hand from arch/arm64/include/uapi/asm/fcntl.h and asm-generic/fcntl.h
_PAIRS = [
    (fl.O_DIRECTORY, 0o40000),
    (fl.O_NOFOLLOW, 0o100000),
    (fl.O_DIRECT, 0o200000),
    (fl.O_LARGEFILE, 0o400000),
    (fl.O_CLOEXEC, 0o2000000),
    (fl.O_CREAT | fl.O_RDWR, 0o102),
    (fl.O_PATH | fl.O_DIRECTORY | fl.O_NOFOLLOW, 0o10000000 | 0o140000),
]


@pytest.mark.parametrize(("ours", "theirs"), _PAIRS)
def test_arm64_numbers_translate_both_ways(ours: int, theirs: int) -> None:
    assert fl.from_arm64(theirs) == ours
    assert fl.to_arm64(ours) == theirs


def test_the_host_never_creates_truncates_or_appends_by_these_flags() -> None:
    everything = fl.O_RDWR | fl.O_CREAT | fl.O_TRUNC | fl.O_APPEND | fl.O_DIRECT | fl.O_SYNC
    host = fl.to_host(everything)
    assert host & os.O_ACCMODE == os.O_RDWR
    assert not host & (os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_DIRECT)
    assert host & os.O_SYNC == os.O_SYNC
    assert fl.to_host(fl.O_DSYNC) & os.O_SYNC == os.O_DSYNC
