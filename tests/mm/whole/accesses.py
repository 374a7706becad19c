"""Loads, stores, additions and jumps, by instructions of the workers."""

from __future__ import annotations

from tests.mm.whole.guest import ADD, COUNT, JUMP, LOAD, STAMP, STORE, SUM, Order
from tests.mm.whole.model import EXECUTE, READ, WRITE
from tests.mm.whole.stage import MASK, Diverged, Stage, Taking


class Accesses(Stage):
    """Steps that touch memory."""

    def load(self, who: int, at: int, offset: int) -> Taking:
        worker, name = self.worker(who), self.space(self.worker(who))
        refused = self.world.access(name, at, READ)
        address = self.address(at) + offset
        outcome = (yield {worker: Order(LOAD, (address,))})[worker]
        if refused is not None:
            self.agree(outcome, (*refused, address))
        elif outcome.signal or not self.world.saw(self.world.spaces[name][at], offset, outcome.result & MASK):
            raise Diverged(f"{name}: page {at} reads {outcome}")

    def store(self, who: int, at: int, offset: int, which: int) -> Taking:
        worker, name, word = self.worker(who), self.space(self.worker(who)), self.words[which]
        address = self.address(at) + offset
        refused = self.world.access(name, at, WRITE)
        if refused is None:
            self.world.store(name, at, offset, word)
        outcome = (yield {worker: Order(STORE, (address, word))})[worker]
        self.agree(outcome, 0 if refused is None else (*refused, address))

    def add(self, who: int, at: int, offset: int) -> Taking:
        """Two threads of a process add to one word, at the same time."""
        worker, name = self.worker(who), self.space(self.worker(who))
        other = self.worker(who ^ 1)
        address, refused = self.address(at) + offset, self.world.access(name, at, WRITE)
        refused = self.world.access(name, at, READ) or refused  # ARM64 loads first; so does the engine
        if refused is None:
            page = self.world.spaces[name][at]
            if page.blurred or len(self.world.contents(page)) != 1:
                return
            before = int.from_bytes(self.world.contents(page)[0][offset : offset + 8], "little")
            self.world.store(name, at, offset, before + 4 & MASK)
        outcomes = yield {worker: Order(ADD, (address, 1)), other: Order(ADD, (address, 3))}
        if refused is not None:
            for outcome in outcomes.values():
                self.agree(outcome, (*refused, address))
            return
        got = [outcomes[each].result & MASK for each in (worker, other)]
        if any(each.signal for each in outcomes.values()) or got not in (
            [before, before + 1 & MASK],
            [before + 3 & MASK, before],
        ):
            raise Diverged(f"{name}: page {at} had {before}, and two threads saw {got}")

    def stamp(self, who: int, at: int, count: int, which: int, adds: int) -> Taking:
        """A store to each of many pages, of a word that grows, up to the first page that refuses it."""
        worker, name, word = self.worker(who), self.space(self.worker(who)), self.words[which]
        count = self.fits(at, count)
        refused: tuple[int, int, int] | None = None
        if not count:
            return
        for number in range(at, at + count):
            signal = self.world.access(name, number, WRITE)
            if signal is not None:
                refused = (*signal, self.address(number))
                break
            self.world.store(name, number, 0, word + adds * (number - at))
        order = Order(STAMP, (self.address(at), word, count, self.size, adds))
        self.agree((yield {worker: order})[worker], 0 if refused is None else refused)

    def hammer(self, who: int, at: int, count: int) -> Taking:
        """One is added to a word many times: no store may be lost, whoever takes the page meanwhile."""
        worker, name = self.worker(who), self.space(self.worker(who))
        address = self.address(at)
        refused = self.world.access(name, at, READ) or self.world.access(name, at, WRITE)
        if refused is None:
            page = self.world.spaces[name][at]
            if page.blurred or len(self.world.contents(page)) != 1:
                return
            before = int.from_bytes(self.world.contents(page)[0][:8], "little")
            self.world.store(name, at, 0, before + count & MASK)
        outcome = (yield {worker: Order(COUNT, (address, 0, count))})[worker]
        self.agree(outcome, 0 if refused is None else (*refused, address))

    def sum(self, who: int, at: int, count: int) -> Taking:
        """A load of each of many pages."""
        worker, name = self.worker(who), self.space(self.worker(who))
        count, total, sure = self.fits(at, count), 0, True
        refused: tuple[int, int, int] | None = None
        if not count:
            return
        for number in range(at, at + count):
            signal = self.world.access(name, number, READ)
            if signal is not None:
                refused = (*signal, self.address(number))
                break
            page = self.world.spaces[name][number]
            heads = {each[:8] for each in self.world.contents(page)}
            sure = sure and len(heads) == 1 and not page.blurred
            total = (total << 1 | total >> 63) + int.from_bytes(heads.pop(), "little") & MASK
        outcome = (yield {worker: Order(SUM, (self.address(at), 0, count, self.size))})[worker]
        if refused is not None:
            self.agree(outcome, refused)
        elif outcome.signal or (sure and outcome.result & MASK != total):
            raise Diverged(f"{name}: pages {at} to {at + count} add up to {outcome}, not {total}")

    def jump(self, who: int, at: int) -> Taking:
        """A call of the code in a page, where it returns at once or may not be executed."""
        worker, name = self.worker(who), self.space(self.worker(who))
        refused = self.world.access(name, at, EXECUTE)
        if refused is None:
            page = self.world.spaces[name][at]
            heads = {each[:8] for each in self.world.contents(page)}
            if page.blurred or heads != {self.words[3].to_bytes(8, "little")}:
                return
        outcome = (yield {worker: Order(JUMP, (self.address(at),))})[worker]
        self.agree(outcome, 0 if refused is None else (*refused, self.address(at)))
