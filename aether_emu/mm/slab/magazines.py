"""Magazines: free objects that a CPU has at hand, and the depot behind all CPUs.

    alloc   the loaded magazine --> the previous one --> a full one of the depot --> the cache's slabs
    free    the loaded magazine --> the previous one --> an empty one, the full one goes to the depot

A CPU that frees and allocates by turns never comes further than its two magazines, whatever their fill
(Bonwick and Adams, "Magazines and Vmem", 2001). What the depot has beyond `DEPOT` magazines goes back to the
slabs. The magazines themselves are lists of addresses, kept beside RAM.
"""

from __future__ import annotations

from typing import Any

DEPOT = 2
"""Full magazines that the depot of a cache keeps."""


def rounds(size: int) -> int:
    """How many objects of so many bytes a magazine has: fewer of large ones."""
    return 16 if size <= 256 else 8 if size <= 1024 else 4 if size <= 4096 else 2


class Magazines:
    """Those of one cache. `hits` were served by a CPU's own, `exchanges` went to the depot."""

    def __init__(self, cpus: int, most: int) -> None:
        self.most = most
        self.loaded: list[list[int]] = [[] for _ in range(cpus)]
        self.previous: list[list[int]] = [[] for _ in range(cpus)]
        self.depot: list[list[int]] = []
        self.hits = self.exchanges = 0

    def __contains__(self, address: object) -> bool:
        return any(address in each for each in (*self.loaded, *self.previous, *self.depot))

    @property
    def count(self) -> int:
        """Objects in all of them."""
        return sum(map(len, (*self.loaded, *self.previous, *self.depot)))

    def take(self, cpu: int) -> int:
        """An object; 0 if neither the CPU nor the depot has one."""
        loaded = self.loaded[cpu]
        if not loaded:
            loaded, self.previous[cpu] = self.previous[cpu], loaded
            self.loaded[cpu] = loaded
            if not loaded:
                if not self.depot:
                    return 0
                loaded = self.loaded[cpu] = self.depot.pop()
                self.exchanges += 1
        self.hits += 1
        return loaded.pop()

    def put(self, cpu: int, address: int) -> list[int]:
        """Keep an object. Returns those that must go back to their slabs, for the depot is full."""
        loaded = self.loaded[cpu]
        surplus: list[int] = []
        if len(loaded) >= self.most:
            loaded, self.previous[cpu] = self.previous[cpu], loaded
            if loaded:
                self.exchanges += 1
                self.depot.append(loaded)
                loaded = []
                if len(self.depot) > DEPOT:
                    surplus = self.depot.pop(0)
            self.loaded[cpu] = loaded
        loaded.append(address)
        return surplus

    def empty(self) -> list[int]:
        """Give up all objects, those of the depot first."""
        everything = [
            each for part in (self.depot, self.previous, self.loaded) for one in part for each in one
        ]
        self.depot.clear()
        for one in (*self.loaded, *self.previous):
            one.clear()
        return everything

    def capture(self) -> dict[str, Any]:
        """As plain data."""
        parts = (self.loaded, self.previous, self.depot)
        return {"parts": [[list(one) for one in part] for part in parts], "n": (self.hits, self.exchanges)}

    def restore(self, state: dict[str, Any]) -> None:
        """Become the captured ones."""
        self.loaded, self.previous, self.depot = ([list(one) for one in part] for part in state["parts"])
        self.hits, self.exchanges = state["n"]
