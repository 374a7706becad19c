"""Streams are repeatable to the byte, independent of each other, unbiased and restorable."""

from __future__ import annotations

import pickle
from collections import Counter
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_emu.random import Stream, Streams


def test_the_bytes_are_these_on_every_host_and_python() -> None:
    assert Streams(0).stream("aslr").bytes(16).hex() == "0a3f795fa21af9692112f413e1ed6abb"
    assert Streams(2**64 - 1).stream("höhe").bytes(8).hex() == "f2b1a58a1c1a3d28"
    assert Streams(7).stream("aslr").u64() == 0x24B892E7BDF854F8
    stream = Streams(7).stream("scheduler")
    assert [stream.below(10) for _ in range(12)] == [9, 4, 0, 5, 3, 1, 2, 6, 3, 8, 2, 5]


def test_the_bytes_are_what_the_docstring_says() -> None:
    blocks = (blake2b(bytes([i]) + bytes(7) + b"name", key=b"\x05" + bytes(7)).digest() for i in range(3))
    assert Streams(5).stream("name").bytes(192) == b"".join(blocks)


@given(st.lists(st.integers(0, 200), max_size=8))
def test_how_the_bytes_are_drawn_does_not_matter(counts: list[int]) -> None:
    piecewise = Stream(1, "x")
    pieces = b"".join(piecewise.bytes(count) for count in counts)
    assert pieces == Stream(1, "x").bytes(sum(counts))
    assert piecewise.position == len(pieces) == sum(counts)


def test_other_seeds_and_other_names_give_other_bytes() -> None:
    drawn = {
        Streams(seed).stream(name).bytes(16) for seed in (0, 1, 256) for name in ("", "a", "b", "a\0", "ab")
    }
    assert len(drawn) == 15


def test_a_stream_does_not_notice_the_others() -> None:
    alone, among = Streams(3), Streams(3)
    among.stream("another").bytes(100)
    first = among.stream("mine").bytes(10)
    among.stream("a third").u64()
    assert first + among.stream("mine").bytes(10) == alone.stream("mine").bytes(20)


def test_the_same_name_is_the_same_stream() -> None:
    streams = Streams(3)
    assert streams.stream("a") is streams.stream("a")


def test_u64_is_eight_bytes_little_endian() -> None:
    assert Stream(1, "x").u64() == int.from_bytes(Stream(1, "x").bytes(8), "little")


@given(st.integers(1, 2**130), st.integers(0, 2**64 - 1))
def test_below_stays_below(bound: int, seed: int) -> None:
    assert 0 <= Stream(seed, "x").below(bound) < bound


def test_below_is_not_biased() -> None:
    # Without rejection, the two bits drawn for bound 3 would give 0 half the time.
    stream, bound, draws = Stream(0, "fair"), 3, 6000
    counts = Counter(stream.below(bound) for _ in range(draws))
    expected = draws / bound
    assert (
        sum((counts[value] - expected) ** 2 / expected for value in range(bound)) < 13.8
    )  # chi-square, p = 0.001


def test_below_reaches_every_number() -> None:
    stream = Stream(0, "all")
    assert {stream.below(300) for _ in range(6000)} == set(range(300))


def test_a_choice_of_one_draws_nothing() -> None:
    stream = Stream(0, "x")
    assert stream.below(1) == 0
    assert stream.position == 0


def test_impossible_requests_are_refused() -> None:
    for bound in (0, -5):
        with pytest.raises(ValueError, match="below"):
            Stream(0, "x").below(bound)
    with pytest.raises(ValueError, match="cannot draw -1 bytes"):
        Stream(0, "x").bytes(-1)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="seed"):
            Streams(seed)


def test_restoring_replays() -> None:
    streams = Streams(9)
    held = streams.stream("b")
    held.bytes(70)
    streams.stream("a").bytes(3)
    captured = streams.capture()
    assert list(captured.items()) == [("a", 3), ("b", 70)]
    continued = [streams.stream("c").u64(), held.u64(), streams.stream("a").u64()]

    streams.restore(captured)
    assert [streams.stream("c").u64(), held.u64(), streams.stream("a").u64()] == continued

    elsewhere = Streams(9)
    elsewhere.restore(captured)
    assert [elsewhere.stream(name).u64() for name in "cba"] == continued


def test_streams_survive_pickling() -> None:
    streams = Streams(9)
    streams.stream("a").bytes(5)
    twin = pickle.loads(pickle.dumps(streams))
    assert twin.capture() == streams.capture()
    assert twin.stream("a").u64() == streams.stream("a").u64()
