"""Pseudo-terminals beside the real kernel's: the same calls on both, many of them at random."""

from __future__ import annotations

import os
import random
import struct

import pytest

from aether_emu.linux.tty import modes as m
from tests.linux.calls.twin import BASE, A, F, Twin

TCGETS, TCSETS, TCSETSF, TCXONC, TCFLSH = 0x5401, 0x5402, 0x5404, 0x540A, 0x540B
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
