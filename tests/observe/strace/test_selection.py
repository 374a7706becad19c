"""What --strace-only selects."""

from __future__ import annotations

import pytest

from aether_emu.errors import ConfigError
from aether_emu.observe.strace.selection import FAMILIES, select


def test_names_and_kinds() -> None:
    chosen = select(["mmap", "page-fault"])
    assert chosen.shows("mmap")
    assert not chosen.shows("munmap")
    assert (chosen.faults, chosen.signals) == (True, False)


def test_families_with_and_without_the_mark() -> None:
    assert select(["%memory"]) == select(["memory"])
    assert select(["memory"]).shows("mprotect")
    assert select(["%file"]).shows("openat")
    assert not select(["%file"]).shows("read")
    assert select(["desc"]).shows("read")


def test_signal_alone_are_the_signals_that_arrive() -> None:
    assert select(["signal"]).signals
    assert not select(["signal"]).shows("rt_sigaction")
    assert select(["%signal"]).shows("rt_sigaction")
    assert not select(["%signal"]).signals


def test_all_calls() -> None:
    for word in ("syscall", "syscalls"):
        assert select([word]).shows("getpid")
        assert not select([word]).faults
    everything = select(["all"])
    assert everything.shows("getpid")
    assert everything.faults
    assert everything.signals


@pytest.mark.parametrize(
    ("word", "nearest"), [("munmapp", "munmap"), ("pagefault", "page-fault"), ("%memry", "%memory")]
)
def test_an_unknown_word_is_refused_with_the_nearest(word: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {nearest}"):
        select(["mmap", word])


def test_a_word_that_is_near_to_none_is_told_what_there_is() -> None:
    with pytest.raises(ConfigError, match="page-fault signal syscall"):
        select(["qqqqqqqq"])


def test_every_family_has_calls() -> None:
    assert all(FAMILIES.values())
