"""Every memory object and address space by its number, which is what the frame table calls an owner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Numbers are never used twice; 0 is the machine itself, which is no object."""

    def __init__(self) -> None:
        self.last = 0
        self._items: dict[int, T] = {}

    def __iter__(self) -> Iterator[T]:
        return iter(self._items.values())

    def number(self) -> int:
        """A number for something that is no object (an address space, which owns its page tables)."""
        self.last += 1
        return self.last

    def enter(self, item: T) -> int:
        """Take an object in. Returns its number."""
        number = self.number()
        self._items[number] = item
        return number

    def put(self, number: int, item: T) -> None:
        """Take a restored object in, under the number it had."""
        assert number not in self._items, f"two objects have the number {number}"
        self._items[number] = item

    def leave(self, number: int) -> None:
        """The object is gone."""
        del self._items[number]

    def find(self, number: int) -> T | None:
        """The object of this number, if it lives."""
        return self._items.get(number)
