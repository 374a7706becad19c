"""Chance without surprise: named, independent streams of random bytes, all from one seed.

Each consumer of chance (ASLR, getrandom, AT_RANDOM, the scheduler, the injector, each policy) draws
from a stream of its own name, so a new consumer, or one that draws more, never shifts what another
sees. The bytes are defined here and nowhere else, so they are the same on every host and every
Python version:

    block i of stream `name` = BLAKE2b-512(key = seed as 8 bytes, message = i as 8 bytes + name)

with little-endian numbers, i counting from 0 and `name` in UTF-8 (RFC 7693). Nothing is cached:
`(seed, name, position)` is the whole state. This is repeatable, not secret.
"""

from __future__ import annotations

from _blake2 import blake2b  # what hashlib has under this name; that loads OpenSSL first, in 3 ms
from collections.abc import Mapping

from aether_emu.records import dataclass

_BLOCK = 64  # bytes of one BLAKE2b-512 digest
_WORD = 8


@dataclass(slots=True)
class Stream:
    """One endless sequence of bytes. `position` counts those drawn so far; setting it back replays them."""

    seed: int
    name: str
    position: int = 0

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes. Drawing 3 and then 5 gives the same bytes as drawing 8 at once.

        Raises ValueError if `count` is negative.
        """
        if count < 0:
            raise ValueError(f"cannot draw {count} bytes")
        first, skip = divmod(self.position, _BLOCK)
        last = (self.position + count + _BLOCK - 1) // _BLOCK
        key, name = self.seed.to_bytes(_WORD, "little"), self.name.encode()
        blocks = (blake2b(i.to_bytes(_WORD, "little") + name, key=key).digest() for i in range(first, last))
        self.position += count
        return b"".join(blocks)[skip : skip + count]

    def u64(self) -> int:
        """The next eight bytes as a little-endian number from 0 to 2**64 - 1."""
        return int.from_bytes(self.bytes(_WORD), "little")

    def below(self, bound: int) -> int:
        """A number from 0 to `bound - 1`, each exactly as likely as another.

        Raises ValueError unless `bound` >= 1. It draws the fewest whole bytes that hold `bound - 1`, keeps
        as many low bits as that number has, and draws again while the result is too large: at most twice
        on average, and never biased. `below(1)` draws nothing.
        """
        if bound < 1:
            raise ValueError(f"no number is at least 0 and below {bound}")
        bits = (bound - 1).bit_length()
        mask = (1 << bits) - 1
        while True:
            drawn = int.from_bytes(self.bytes((bits + 7) // 8), "little") & mask
            if drawn < bound:
                return drawn

    def one_in(self, count: int) -> bool:
        """True with a chance of one in `count`. Raises ValueError unless `count` >= 1."""
        return self.below(count) == 0


class Streams:
    """All streams of one seed (0 to 2**64 - 1). Asking twice for a name gives the one stream, not a copy."""

    __slots__ = ("_streams", "seed")

    def __init__(self, seed: int) -> None:
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed {seed} is not a number from 0 to 2**64 - 1")
        self.seed = seed
        self._streams: dict[str, Stream] = {}

    def stream(self, name: str) -> Stream:
        """The stream called `name`, at its start if nobody has drawn from it yet."""
        if name not in self._streams:
            self._streams[name] = Stream(self.seed, name)
        return self._streams[name]

    def capture(self) -> dict[str, int]:
        """How many bytes each stream has given, by name in sorted order: with the seed, the whole state."""
        return {name: self._streams[name].position for name in sorted(self._streams)}

    def restore(self, positions: Mapping[str, int]) -> None:
        """Put every stream where `capture` found it. Streams that it did not know start over.

        Stream objects handed out earlier stay valid and move too.
        """
        for stream in self._streams.values():
            stream.position = 0
        for name, position in positions.items():
            self.stream(name).position = position
