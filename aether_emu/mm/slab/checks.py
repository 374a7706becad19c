"""What is checked of a cache's objects, where `slab_debug` asks for it. The bytes are Linux's (poison.h).

    in use   red zones 0xcc                     free   red zones 0xbb, the object 0x6b ... 0x6b 0xa5

An object is looked at when it is allocated, when it is freed, and when everything is looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterable
from typing import Generic, NoReturn, Protocol, TypeVar

from aether_emu.mm.slab.finding import NOBODY_KNOWS, Track, sides
from aether_emu.mm.slab.geometry import TRACK, WORD, Debug, Geometry

IN_USE, FREE, POISON, POISON_END = 0xCC, 0xBB, 0x6B, 0xA5
_TRACK = struct.Struct("<ihhQ16s")
assert _TRACK.size == TRACK


class Home(Protocol):
    """What they need of the machine: see `cache.Home`. `who` tells task, CPU, call, time, name."""

    memory: memoryview
    bias: int

    @property
    def who(self) -> Callable[[], tuple[int, int, int, int, bytes]]: ...
    @property
    def call_name(self) -> Callable[[int], str]: ...


S = TypeVar("S")


class Checked(Protocol[S]):
    """A cache whose slabs are `S`, as far as it is asked here: see `cache.Cache`."""

    size: int
    shape: Geometry
    debug: Debug

    @property
    def magazines(self) -> Container[int]: ...
    def slab_of(self, address: int) -> S: ...
    def is_object(self, slab: S, address: int) -> bool: ...
    def free_objects(self, slab: S) -> Iterable[int]: ...
    def find(self, kind: str, address: int, what: str, *more: str) -> NoReturn: ...


class Checks(Generic[S]):
    """Those of one cache."""

    def __init__(self, cache: Checked[S], home: Home) -> None:
        self._cache, self._home, self._shape = cache, home, cache.shape
        self._flags = cache.debug
        self._poison = bytes([POISON]) * (cache.size - 1) + bytes([POISON_END])

    # ---- what happens to an object

    def fresh(self, address: int) -> None:
        """It is one of a new slab."""
        self._mark(address, FREE)
        self._fill(address)
        if self._flags & Debug.U:
            self._write(self._tracks_at(address), bytes(2 * TRACK))

    def taken(self, address: int) -> None:
        """Somebody gets it."""
        self.look(address, free=True)
        self._mark(address, IN_USE)
        self._note(address, 0)

    def given(self, slab: S, address: int) -> None:
        """Somebody gives it back."""
        cache = self._cache
        if self._flags & Debug.F:
            if not cache.is_object(slab, address):
                cache.find("wild pointer", address, "somebody frees it, and no object begins there")
            if address in cache.magazines or address in list(cache.free_objects(slab)):
                cache.find("double free", address, "it is free already, and freed again")
        self.look(address, free=False)
        self._mark(address, FREE)
        self._fill(address)
        self._note(address, 1)

    def look(self, address: int, *, free: bool) -> None:
        """Whether its bytes are those of a free object, or of one in use. Raises SlabCorruption."""
        if self._flags & Debug.Z:
            self._look_around(address, free=free)
        if free and self._flags & Debug.P:
            found = self._read(address, self._cache.size)
            if found != self._poison:
                where, word = _difference(found, self._poison)
                self._cache.find("use after free", address, f"{where} were stored to while it was free{word}")

    def _look_around(self, address: int, *, free: bool) -> None:
        cache, end = self._cache, self._end(address)
        own, other = (FREE, IN_USE) if free else (IN_USE, FREE)
        left = self._read(address - self._shape.left, self._shape.left)
        right = self._read(address + cache.size, end - address - cache.size)
        if not free and set(left + right) == {other}:
            cache.find("double free", address, "its red zones are those of a free object")
        for zone, side, neighbour in ((right, "beyond its end", 1), (left, "before its beginning", -1)):
            if zone == bytes([own]) * len(zone):
                continue
            where, word = _difference(zone, bytes([own]) * len(zone))
            what = f"{where} of the red zone {side} were stored to{word}"
            cache.find("overrun", address, what, *self._neighbour(address, neighbour))

    def _neighbour(self, address: int, step: int) -> list[str]:
        """Lines about the object beside it, whose user may have gone too far, or is hit next."""
        slab, beside = self._cache.slab_of(address), address + step * self._shape.stride
        if not self._cache.is_object(slab, beside):
            return []
        side = "behind it" if step > 0 else "before it"
        return [f"the object {side}, {beside:#x}:", *(f"  {line}" for line in self.sides(beside))]

    # ---- who had it

    def sides(self, address: int) -> list[str]:
        """Lines about who had an object, and who freed it."""
        return sides(*self.tracks(address)) if self._flags & Debug.U else NOBODY_KNOWS

    def tracks(self, address: int) -> tuple[Track | None, Track | None]:
        """Who allocated it, and who freed it, last; None for what nobody did. Where that is noted."""
        raw = self._read(self._tracks_at(address), 2 * TRACK)
        return self._track(raw[:TRACK]), self._track(raw[TRACK:])

    def now(self) -> Track:
        """Who is at work now."""
        tid, cpu, call, time, name = self._home.who()
        return Track(tid, name, self._home.call_name(call), cpu, time)

    def _track(self, raw: bytes) -> Track | None:
        tid, cpu, call, time, name = _TRACK.unpack(raw)
        if not any(raw):
            return None
        return Track(tid, name.rstrip(b"\0"), self._home.call_name(call), cpu, time)

    def _note(self, address: int, which: int) -> None:
        if self._flags & Debug.U:
            tid, cpu, call, time, name = self._home.who()
            self._write(self._tracks_at(address) + which * TRACK, _TRACK.pack(tid, cpu, call, time, name))

    # ---- bytes

    def _tracks_at(self, address: int) -> int:
        return address - self._shape.left + self._shape.tracks

    def _end(self, address: int) -> int:
        return address - self._shape.left + self._shape.right

    def _mark(self, address: int, byte: int) -> None:
        if self._flags & Debug.Z:
            self._write(address - self._shape.left, bytes([byte]) * self._shape.left)
            behind = address + self._cache.size
            self._write(behind, bytes([byte]) * (self._end(address) - behind))

    def _fill(self, address: int) -> None:
        if self._flags & Debug.P:
            self._write(address, self._poison)

    def _read(self, address: int, length: int) -> bytes:
        at = address - self._home.bias
        return bytes(self._home.memory[at : at + length])

    def _write(self, address: int, data: bytes) -> None:
        at = address - self._home.bias
        self._home.memory[at : at + len(data)] = data


def _difference(found: bytes, wanted: bytes) -> tuple[str, str]:
    """Which bytes differ, and what stands there."""
    places = [at for at, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b]
    first, last = places[0], places[-1]
    shown = found[first : last + 1][: 2 * WORD].hex(" ")
    which = f"byte {first}" if first == last else f"bytes {first} to {last}"
    return which, f": {shown} in place of {wanted[first]:02x}"
