"""splice(2), tee(2), vmsplice(2) and pipes with packets, beside the real kernel's."""

from __future__ import annotations

import errno
import os
import random
import struct

import pytest

from tests.linux.calls.twin import A, F, Twin

O_DIRECT, PIPE_SIZE = os.O_DIRECT, 65536
BUFFER, OFFSET = 8192, 64


@pytest.fixture
def pipes(twin: Twin) -> Twin:
    """Pipes "r" to "w" and "s" to "x" that don't wait, and a file "f" of 3000 bytes."""
    twin.put(BUFFER, bytes(i % 253 for i in range(8192)))
    twin.pipe("r", "w")
    twin.pipe("s", "x")
    twin.open("f", "openat", F("dir"), twin.text(b"f"), os.O_RDWR | os.O_CREAT, 0o600)
    assert twin.call("write", F("f"), A(BUFFER), 3000) == 3000
    return twin


def test_bytes_go_from_a_file_into_a_pipe_and_out_again(pipes: Twin) -> None:
    pipes.put(OFFSET, struct.pack("<q", 100))
    assert pipes.call("splice", F("f"), A(OFFSET), F("w"), 0, 1000, 0) == 1000
    assert pipes.call("splice", F("f"), 0, F("w"), 0, 1000, 0) == 0  # its position is at the end
    assert pipes.call("tee", F("r"), F("x"), 400, 0) == 400
    assert pipes.call("splice", F("r"), 0, F("x"), 0, 100, 0) == 100
    assert pipes.call("read", F("r"), A(20000), 5000) == 900
    assert pipes.call("read", F("s"), A(20000), 5000) == 500
    assert pipes.call("splice", F("r"), 0, F("x"), 0, 100, 0) == -errno.EAGAIN
    assert pipes.call("write", F("w"), A(BUFFER), 50) == 50
    assert pipes.call("splice", F("r"), 0, F("f"), A(OFFSET), 100, 0) == 50
    assert pipes.call("pread64", F("f"), A(20000), 5000, 0) == 3000


def test_a_pipe_takes_from_memory_and_gives_to_it(pipes: Twin) -> None:
    assert (
        pipes.call_apart("vmsplice", F("w"), pipes.vector([(A(BUFFER), 10), (A(BUFFER + 50), 5)]), 2, 0) == 15
    )
    assert pipes.call_apart("vmsplice", F("r"), pipes.vector([(A(20000), 100)]), 1, 0) == 15
    assert pipes.call("read", F("r"), A(20000), 100) == -errno.EAGAIN
    assert pipes.call_apart("vmsplice", F("f"), pipes.vector([(A(BUFFER), 10)]), 1, 0) == -errno.EBADF


def test_what_cannot_be_spliced_is_refused_as_the_kernel_does(pipes: Twin) -> None:
    pipes.put(OFFSET, struct.pack("<q", 0))
    pipes.open("append", "openat", F("dir"), pipes.text(b"f"), os.O_WRONLY | os.O_APPEND, 0)
    assert pipes.call("write", F("w"), A(BUFFER), 10) == 10
    for arguments in (
        (F("f"), 0, F("f"), 0, 10, 0), (F("r"), 0, F("w"), 0, 10, 0), (F("r"), A(OFFSET), F("x"), 0, 10, 0),
        (F("r"), 0, F("append"), 0, 10, 0), (F("w"), 0, F("x"), 0, 10, 0), (F("r"), 0, F("x"), 0, 10, 99),
        (F("r"), 0, F("s"), 0, 10, 0), (F("f"), 0, F("f"), 0, 0, 99),
    ):  # fmt: skip
        pipes.call("splice", *arguments)
    for source, target, count, flags in (
        ("f", "w", 10, 0),
        ("r", "w", 10, 0),
        ("r", "x", 0, 0),
        ("r", "x", 1, 64),
    ):
        pipes.call("tee", F(source), F(target), count, flags)
    pipes.close_descriptor("s")
    assert pipes.call("splice", F("r"), 0, F("x"), 0, 10, 0) == -errno.EPIPE


def test_packets_are_read_one_by_one(twin: Twin) -> None:
    twin.put(BUFFER, bytes(i % 253 for i in range(8192)))
    twin.pipe("r", "w", os.O_NONBLOCK | O_DIRECT)
    for size in (5, 5000, 1):
        assert twin.call("write", F("w"), A(BUFFER), size) == size
    assert twin.call("ioctl", F("r"), 0x541B, A(0)) == 0
    assert [twin.call("read", F("r"), A(20000), 8000) for _ in range(3)] == [5, 4096, 904]
    assert twin.call("fcntl", F("w"), 4, os.O_NONBLOCK) == 0
    assert twin.call("write", F("w"), A(BUFFER), 3) == 3
    assert twin.call("write", F("w"), A(BUFFER), 2) == 2
    assert twin.call("read", F("r"), A(20000), 8000) == 1
    assert twin.call("read", F("r"), A(20000), 8000) == 5


@pytest.mark.parametrize("seed", range(3))
def test_pieces_of_any_size_go_through_a_pipe(pipes: Twin, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(60):
        size = chance.choice([1, 100, 4095, 4096, 4097, 8000])
        if chance.random() < 0.5:  # in whole pages or small parts of one: the kernel counts pages
            pipes.call("write", F("w"), A(BUFFER), 4096 if size > 100 else 64)
        else:
            pipes.call("read", F("r"), A(20000), size)
        pipes.call("ioctl", F("r"), 0x541B, A(0))
