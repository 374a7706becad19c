"""Where the bytes of pages in swap are: words that fill a page, a compressed pool, and behind it a file.

    put ──▶ the same word all over?  ──▶ words   (8 bytes, and never written to the file)
        └─▶ pool, compressed ── over its limit: the oldest ──▶ file

The pool is memory of the host, not of the machine. When the host takes no more pages (a full disk) they stay
in the pool beyond its limit; `refused` says why, and then no further slot is given out.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from aether_emu.errors import ConfigError
from aether_emu.mm.counters import Event
from aether_emu.mm.swap.codec import Codec
from aether_emu.mm.swap.file import SwapFile, SwapLost


class Store:
    """The bytes by slot. `limit` is the most bytes of the pool; `n` the machine's counters."""

    def __init__(self, file: SwapFile, codec: Codec, limit: int, page_size: int, n: list[int]) -> None:
        self.file, self.codec, self.limit = file, codec, limit
        self._page_size, self._n = page_size, n
        self._words: dict[int, bytes] = {}
        self._pool: dict[int, bytes] = {}  # the oldest first
        self.pooled = 0  # bytes that the pool has
        self.tell: Callable[[str], object] = lambda _line: None  # what the machine's owner should know
        self._told: set[str] = set()

    @property
    def refused(self) -> str:
        """Why the host took no page, once it did not; empty: it takes all."""
        return self.file.refused

    @property
    def same_filled(self) -> int:
        """How many pages are a word all over."""
        return len(self._words)

    @property
    def compressed(self) -> int:
        """How many pages are in the pool."""
        return len(self._pool)

    def put(self, slot: int, page: memoryview) -> None:
        """Keep the bytes of a page in a slot that has none."""
        data = bytes(page)  # Python compares those of a view one by one
        word = data[:8]
        self._n[Event.SWAP_OUT] += 1
        if word * (self._page_size >> 3) == data:
            self._words[slot] = word
            return
        packed = self.codec.compress(data)
        self._pool[slot] = packed
        self.pooled += len(packed)
        if self.pooled > self.limit:
            self._write_back()

    def get(self, slot: int) -> bytes:
        """The bytes of a page, which stay where they are. Raises SwapLost."""
        self._n[Event.SWAP_IN] += 1
        if slot in self.file:
            self._n[Event.SWAP_READ] += 1
        return self.look(slot)

    def look(self, slot: int) -> bytes:
        """As `get`, and nobody counts it."""
        word = self._words.get(slot)
        if word is not None:
            return word * (self._page_size >> 3)
        packed = self._pool.get(slot)
        if packed is not None:
            return self.codec.expand(packed)
        try:
            return self.file.read(slot)
        except SwapLost as lost:
            self._tell(f"{lost.why}: programs get SIGBUS where they touch pages that are lost")
            raise

    def forget(self, slot: int) -> None:
        """Nobody asks for the page any more."""
        if self._words.pop(slot, None) is not None:
            return
        packed = self._pool.pop(slot, None)
        if packed is not None:
            self.pooled -= len(packed)
        else:
            self.file.forget(slot)

    def _tell(self, line: str) -> None:
        """Say it, the first time."""
        if line not in self._told:
            self._told.add(line)
            self.tell(line)

    def has_room(self) -> bool:
        """Whether the host, which took no page before, takes some by now."""
        self._write_back()
        return self.pooled <= self.limit

    def _write_back(self) -> None:
        """Bring the oldest pages of the pool to the file, until it is within its limit."""
        while self.pooled > self.limit and self._pool:
            slot = next(iter(self._pool))
            if not self.file.write(slot, self.codec.expand(self._pool[slot])):
                self._tell(f"the swap file takes no more pages: {self.refused}")
                return
            self._n[Event.SWAP_WRITTEN] += 1
            self.pooled -= len(self._pool.pop(slot))

    # ---- state

    def capture(self) -> dict[str, Any]:
        """All bytes as plain data, whatever compresses them here. A page that is lost is None."""
        return {
            "words": dict(self._words),
            "pool": {slot: self._packed(slot) for slot in self._pool},
            "file": {slot: self._packed(slot) for slot in self.file.slots()},
        }

    def _packed(self, slot: int) -> bytes | None:
        try:
            return zlib.compress(self.look(slot), 1)
        except SwapLost:
            return None

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `capture` gave."""
        self._words, self._pool, self.pooled = dict(state["words"]), {}, 0
        for slot, packed in state["pool"].items():
            self._pool[slot] = self.codec.compress(zlib.decompress(packed))
            self.pooled += len(self._pool[slot])
        for slot, packed in state["file"].items():
            if packed is None:
                self.file.lose(slot)
            elif not self.file.write(slot, zlib.decompress(packed)):
                raise ConfigError("swap_file", self.file.path, self.file.refused, refusal="takes no pages")
