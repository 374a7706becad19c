"""How single values are written; right answers are strace's own."""

from __future__ import annotations

import pytest

from aether_emu.observe.strace import names
from aether_emu.observe.strace.kinds import file_mode, octal, signal_name, signal_set
from aether_emu.observe.strace.words import clipped, error_text, quoted


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"", '""'),
        (b'a"b\\', r'"a\"b\\"'),
        (b"\t\n\v\f\r", r'"\t\n\v\f\r"'),
        (b"\x01\x012\x018\xff", r'"\1\0012\18\377"'),
        (b"\0\x007", r'"\0\0007"'),
    ],
)
def test_bytes_that_are_no_text_are_as_short_as_they_can_be(data: bytes, shown: str) -> None:
    assert quoted(data) == shown


def test_a_long_buffer_is_clipped() -> None:
    assert clipped(b"x" * 32) == f'"{"x" * 32}"'
    assert clipped(b"x" * 33) == f'"{"x" * 32}"...'


def test_bits_without_a_name_are_kept() -> None:
    assert names.PROTECTION.bits(0) == "PROT_NONE"
    assert names.PROTECTION.bits(3) == "PROT_READ|PROT_WRITE"
    assert names.PROTECTION.bits(0x103) == "PROT_READ|PROT_WRITE|0x100"
    assert names.PROTECTION.bits(0x100) == "0x100 /* PROT_??? */"
    assert names.ADVICE.one(777) == "0x309 /* MADV_??? */"


def test_sets_of_signals_are_named_by_the_shorter_half() -> None:
    assert signal_set(0) == "[]"
    assert signal_set(1 << 9 | 1 << 16) == "[USR1 CHLD]"
    assert signal_set((1 << 64) - 1) == "~[]"
    assert signal_set(~(1 << 8 | 1 << 18) & (1 << 64) - 1) == "~[KILL STOP]"
    assert [signal_name(number) for number in (11, 32, 33, 64)] == [
        "SIGSEGV",
        "SIGRTMIN",
        "SIGRT_1",
        "SIGRT_32",
    ]


def test_modes_have_three_digits_at_least() -> None:
    assert [octal(mode) for mode in (0, 0o7, 0o22, 0o644, 0o100644)] == [
        "000",
        "007",
        "022",
        "0644",
        "0100644",
    ]
    assert file_mode(0o100644) == "S_IFREG|0644"
    assert file_mode(0o41777) == "S_IFDIR|S_ISVTX|0777"


def test_errors_have_their_name_and_their_words() -> None:
    assert error_text(2) == "-1 ENOENT (No such file or directory)"
