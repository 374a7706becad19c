"""Pseudo-terminals beside the real kernel's: the same calls on both, many of them at random."""

from __future__ import annotations

import errno
import os
import random
import struct

import pytest

from aether_emu.linux.tty import modes as m
from tests.linux.calls.twin import BASE, A, F, Twin

TCGETS, TCSETS, TCSETSF, TCXONC, TCFLSH, TIOCSTI = 0x5401, 0x5402, 0x5404, 0x540A, 0x540B, 0x5412
TIOCOUTQ, TIOCGWINSZ, TIOCSWINSZ, FIONREAD, TIOCPKT = 0x5411, 0x5413, 0x5414, 0x541B, 0x5420
TIOCSPTLCK, TIOCGPTN, TIOCGPTPEER, TIOCGPTLCK = 0x40045431, 0x80045430, 0x5441, 0x80045439
TCGETS2, TCSETS2, TCGETA, TCSETA = 0x802C542A, 0x402C542B, 0x5405, 0x5406
TYPED, READ, ARGUMENT = 0, 8192, 20000
OPEN = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK


@pytest.fixture
def pty(twin: Twin) -> Twin:
    """A pair of "master" and "terminal", neither of which waits."""
    twin.open("master", "openat", -100, twin.text(b"/dev/ptmx"), OPEN, 0)
    twin.put(ARGUMENT, struct.pack("<i", 0))
    assert twin.call("ioctl", F("master"), TIOCSPTLCK, A(ARGUMENT)) == 0
    twin.open("terminal", "ioctl", F("master"), TIOCGPTPEER, OPEN)
    return twin


class Walk:
    """Calls at random on a pair.

    The real kernel brings bytes to the other side in a thread of its own. A read that finds nothing waits for
    that; so all is read at once, to the end, and a read that got less than ours is made again.
    """

    def __init__(self, twin: Twin, seed: int) -> None:
        self.twin, self.chance = twin, random.Random(seed)
        self.packets, self.canonical = False, True

    def side(self) -> F:
        return F(self.chance.choice(("master", "terminal")))

    def write(self, side: str, data: bytes) -> None:
        self.twin.put(TYPED, data)
        self.twin.call("write", F(side), A(TYPED), len(data))

    def one_read(self, name: str, which: int, count: int) -> bytes | int:
        start = (BASE, self.twin.native.start)[which]
        done = self.twin.one_side("read", which, self.twin.pair(name)[which], start + READ, count)
        data = bytes(self.twin.memories[which][READ : READ + max(done, 0)])
        self.twin.memories[which][READ : READ + max(done, 0)] = bytes(max(done, 0))
        return done if done < 0 else data

    def read(self, name: str, count: int) -> bytes | int:
        """What both read, or the errno."""
        ours, theirs = (self.one_read(name, which, count) for which in (0, 1))
        while isinstance(ours, bytes) and isinstance(theirs, bytes) and len(theirs) < len(ours):
            if name == "terminal" and self.canonical:
                break
            more = self.one_read(name, 1, len(ours) - len(theirs))
            if not isinstance(more, bytes) or not more:
                break
            theirs += more
        assert ours == theirs
        return ours

    def drain(self, name: str) -> None:
        """Read all that there is, in pieces."""
        while True:
            got = self.read(name, self.chance.choice((1, 2, 3, 10, 63, 64, 65, 200, 4096)))
            if isinstance(got, int) or (not got and not self.canonical):
                return

    def drain_packets(self) -> None:
        """The same in packet mode: what is sent, and what is told."""
        seen = []
        for which in (0, 1):
            told, sent = [], b""
            while isinstance(packet := self.one_read("master", which, 4096), bytes) and packet:
                told += [packet[0]] if packet[0] else []
                sent += packet[1:]
            seen.append((told, sent, packet))
        assert seen[0] == seen[1]

    def type(self) -> None:
        keys = b"ab_ 1\t\t\r\n\n\x01\x04\x04\x08\x0f\x11\x12\x13\x15\x16\x17\x7f\x7f\xc3\xa4\xff\0\x80Z"
        count = self.chance.choice((1, 1, 2, 3, 8, 30))
        first = self.chance.choice((b"\x1a", b"\x1c", b"\x03", *[b""] * 9))  # it forgets what is on its way
        self.write("master", first + bytes(self.chance.choices(keys, k=count)))
        self.drain("terminal")
        self.watch()

    def show(self) -> None:
        letters = b"abc \t\n\r\x08\x1b\xc3\xa4ZZ\xff"
        self.write("terminal", bytes(self.chance.choices(letters, k=self.chance.choice((0, 1, 5, 40)))))
        self.watch()

    def watch(self) -> None:
        if self.packets:
            self.drain_packets()
        else:
            self.drain("master")

    def ask(self) -> None:
        request = self.chance.choice((TIOCOUTQ, TIOCGWINSZ, TCGETS, TCGETS2, TCGETA))
        self.twin.call("ioctl", self.side(), request, A(ARGUMENT))
        self.twin.call("ioctl", F("terminal"), FIONREAD, A(ARGUMENT))

    def poll(self) -> None:
        fds = [self.twin.pair("master"), self.twin.pair("terminal")]
        results = []
        for number in (0, 1):
            entries = b"".join(struct.pack("<ihh", pair[number], 7, 0) for pair in fds)
            memory = self.twin.memories[number]
            memory[ARGUMENT : ARGUMENT + 16] = entries
            start = (BASE, self.twin.native.start)[number]
            self.twin.one_side("poll", number, start + ARGUMENT, 2, 0)
            results.append([struct.unpack_from("<ihh", memory, ARGUMENT + 8 * i)[2] for i in (0, 1)])
        self.twin.put(ARGUMENT, bytes(16))
        assert results[0] == results[1]

    def modes(self) -> None:
        chance = self.chance

        def some(always: int, bits: tuple[int, ...], share: float) -> int:
            return always | sum(bit for bit in bits if chance.random() < share)

        inputs = (m.ISTRIP, m.INLCR, m.IGNCR, m.IUCLC, m.IXANY, m.PARMRK, m.IUTF8)
        iflag = some(some(0, (m.ICRNL, m.IXON), 0.7), inputs, 0.15)
        oflag = some(some(0, (m.OPOST, m.ONLCR), 0.7), (m.OLCUC, m.OCRNL, m.ONOCR, m.ONLRET, m.TABDLY), 0.2)
        shown = (m.ECHO, m.ECHOE, m.ECHOK, m.ECHOCTL, m.ECHOKE, m.IEXTEN, m.ISIG)
        lflag = some(some(0, (m.ICANON, *shown), 0.75), (m.ECHONL, m.NOFLSH, m.ECHOPRT), 0.2)
        least, tenths = chance.choice(((1, 0), (1, 0), (0, 0), (3, 0), (70, 0), (2, 1)))
        keys = bytearray(m.Modes().characters)
        keys[m.VMIN], keys[m.VTIME] = least, tenths
        keys[m.VEOL] = chance.choice((0, 0, 0x5A))
        keys[m.VEOL2] = chance.choice((0, 0, 0xFF))
        data = struct.pack("<4IB19s", iflag, oflag, 0xBF, lflag, 0, bytes(keys))
        self.twin.put(ARGUMENT, data)
        self.twin.call("ioctl", self.side(), chance.choice((TCSETS, TCSETS, TCSETSF)), A(ARGUMENT))
        self.canonical = bool(lflag & m.ICANON)
        self.drain("terminal")
        self.watch()

    def disturb(self) -> None:
        what = self.chance.randrange(5)
        self.watch()
        if what == 0:
            self.twin.call("ioctl", self.side(), TCFLSH, self.chance.randrange(4))
        elif what == 1:
            self.twin.call("ioctl", F("terminal"), TCXONC, self.chance.randrange(5))
            self.watch()
        elif what == 2:
            self.twin.put(ARGUMENT, struct.pack("<i", self.chance.randrange(2)))
            self.twin.call("ioctl", F("master"), TIOCPKT, A(ARGUMENT))
            self.packets = bool(self.twin.memories[0][ARGUMENT])
        elif what == 3:
            self.twin.put(ARGUMENT, self.chance.randbytes(8))
            self.twin.call("ioctl", self.side(), TIOCSWINSZ, A(ARGUMENT))
        else:
            self.twin.close_descriptor("terminal")
            self.watch()
            self.twin.open("terminal", "ioctl", F("master"), TIOCGPTPEER, OPEN)

    def step(self) -> None:
        steps = (self.type, self.show, self.watch, self.ask, self.poll, self.modes, self.disturb)
        self.chance.choices(steps, (30, 10, 30, 10, 10, 4, 3))[0]()


@pytest.mark.parametrize("seed", range(4))
def test_a_walk_at_random_is_the_same_on_a_real_pair(pty: Twin, seed: int) -> None:
    walk = Walk(pty, seed)
    for _ in range(400):
        walk.step()


@pytest.mark.parametrize("side", ["master", "terminal"])
def test_every_request_is_answered_or_refused_as_on_a_real_pair(pty: Twin, side: str) -> None:
    """Of the terminal's own numbers; not those for root, and what a host may be configured to allow."""
    others = (0x4004_5431, 0x8004_5438, 0x8004_5439, 0x8004_5440, 0x4004_5436, 0x802C_542A)
    unlike = {
        TIOCSTI, 0x541D, 0x5437, 0x5457, *range(0x5441, 0x5450),  # descriptors, and newer ones
        0x540E, 0x540F, 0x5410, 0x5422, 0x5429, 0x8004_5432,  # whose it is, and its device
    }  # fmt: skip
    for request in (*range(0x5400, 0x5460), *others):
        if request not in unlike and request not in range(0x5450, 0x5453):
            pty.put(ARGUMENT, m.Modes().pack("termios2"))
            pty.call("ioctl", F(side), request, A(ARGUMENT))
    for request in (TCFLSH, TCXONC, 0x5409, 0x5425):
        for argument in range(6):
            pty.call("ioctl", F(side), request, argument)


@pytest.mark.parametrize("kind", ["termios", "termios2", "termio"])
def test_modes_are_set_and_read_back_as_on_a_real_pair(pty: Twin, kind: str) -> None:
    chance = random.Random(kind)
    get, put = {"termios": (TCGETS, TCSETS), "termios2": (TCGETS2, TCSETS2), "termio": (TCGETA, TCSETA)}[kind]
    for _ in range(60):
        data = bytearray(chance.randbytes(44))
        if kind == "termios2":
            data[36:] = struct.pack("<II", chance.randrange(1 << 24), chance.randrange(1 << 24))
        pty.put(ARGUMENT, bytes(data))
        pty.call("ioctl", F("terminal"), put, A(ARGUMENT))
        for request in (get, TCGETS, TCGETS2):
            pty.call("ioctl", F("master"), request, A(ARGUMENT))


def test_a_pair_is_opened_and_closed_as_a_real_one(twin: Twin) -> None:
    twin.open("master", "openat", -100, twin.text(b"/dev/ptmx"), OPEN, 0)
    assert twin.call("ioctl", F("master"), TIOCGPTPEER, OPEN) == -errno.EIO, "it is locked"
    assert twin.call("ioctl", F("master"), TIOCGPTLCK, A(ARGUMENT)) == 0
    twin.put(ARGUMENT, bytes(4))
    assert twin.call("ioctl", F("master"), TIOCSPTLCK, A(ARGUMENT)) == 0
    assert twin.call("read", F("master"), A(READ), 10) == -errno.EAGAIN, "nobody has had it open"
    twin.open("terminal", "ioctl", F("master"), TIOCGPTPEER, OPEN)
    assert twin.call("write", F("terminal"), A(TYPED), 10) == 10
    twin.close_descriptor("terminal")
    assert twin.call("read", F("master"), A(READ), 100) == 10
    assert twin.call("read", F("master"), A(READ), 100) == -errno.EIO, "nobody has it open any more"
    twin.open("terminal", "ioctl", F("master"), TIOCGPTPEER, OPEN)
    assert twin.call("read", F("master"), A(READ), 100) == -errno.EAGAIN
    assert twin.call("ioctl", F("master"), 0x540C, 0) == twin.call("ioctl", F("terminal"), 0x540C, 0) == 0
    twin.close_descriptor("master")
    assert twin.call("read", F("terminal"), A(READ), 100) == 0
    assert twin.call("write", F("terminal"), A(TYPED), 1) == -errno.EIO
    for request in (TCGETS, TIOCGWINSZ, FIONREAD, 0x5410, 0x540F):
        twin.call("ioctl", F("terminal"), request, A(ARGUMENT))
    for number in (0, 1):
        memory, start = twin.memories[number], (BASE, twin.native.start)[number]
        memory[ARGUMENT : ARGUMENT + 8] = struct.pack("<ihh", twin.pair("terminal")[number], 7, 0)
        twin.one_side("poll", number, start + ARGUMENT, 1, 0)
        memory[ARGUMENT : ARGUMENT + 4] = bytes(4)
    twin.call("fcntl", F("terminal"), 3, 0)


def test_a_full_pair_takes_no_more_until_it_is_read(pty: Twin) -> None:
    """How much it takes is a matter of the kernel's own buffers: here some 12 KiB."""
    pty.put(ARGUMENT, struct.pack("<4IB19s", 0, 0, 0xBF, 0, 0, m.Modes().characters))
    assert pty.call("ioctl", F("terminal"), TCSETS, A(ARGUMENT)) == 0
    for writer, reader in (("master", "terminal"), ("terminal", "master")):
        start, taken = BASE + TYPED, 0
        descriptor = pty.pair(writer)[0]
        while (done := pty.one_side("write", 0, descriptor, start, 4096)) > 0:
            taken += done
        assert done == -errno.EAGAIN
        assert 8192 <= taken <= 16384
        while (done := pty.one_side("read", 0, pty.pair(reader)[0], start, 4096)) > 0:
            taken -= done
        assert (done, taken) == (-errno.EAGAIN, 0)
        assert pty.one_side("write", 0, descriptor, start, 4096) == 4096
