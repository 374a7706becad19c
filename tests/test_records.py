"""Our data classes behave as the standard ones, but for the refusal of changes."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from aether_emu import records


@dataclasses.dataclass(frozen=True, slots=True)
class Standard:
    a: int
    b: Any = (1, 2)
    unseen: int = dataclasses.field(default=0, compare=False, repr=False)


@records.dataclass(frozen=True, slots=True)
class Ours:
    a: int
    b: Any = (1, 2)
    unseen: int = dataclasses.field(default=0, compare=False, repr=False)


@records.dataclass(frozen=True)
class One:
    only: Any


@records.dataclass(slots=True)
class Changing:
    a: list[int] = dataclasses.field(default_factory=list)


@records.dataclass(frozen=True, eq=False, repr=False)
class Plain:
    a: int


@pytest.mark.parametrize("make", [Standard, Ours], ids=["standard", "ours"])
def test_equality_hash_and_text_are_those_of_the_fields(make: Callable[..., Any]) -> None:
    assert make(1) == make(1, (1, 2), 5) != make(1, (1, 3))
    assert hash(make(1)) == hash((1, (1, 2))) == hash(make(1, unseen=7))
    assert make(1).__eq__((1, (1, 2), 0)) is NotImplemented
    assert repr(make(1)) == f"{make.__qualname__}(a=1, b=(1, 2))"
    assert pickle.loads(pickle.dumps(make(3))) == make(3)
    assert dataclasses.replace(make(1), a=2) == make(2)
    assert not hasattr(make(1), "__dict__")


def test_one_field_is_compared_by_its_value_too() -> None:
    assert One(1) == One(1) != One(2)
    assert {One(1): "x"}[One(1)] == "x"
    assert One((1,)) != One(1)


def test_what_can_change_has_no_hash() -> None:
    assert Changing() == Changing([])
    with pytest.raises(TypeError, match="unhashable"):
        hash(Changing())


def test_a_value_within_itself_can_be_shown() -> None:
    inner: list[Any] = []
    held = One(inner)
    inner.append(held)
    assert repr(held) == "One(only=[...])"


def test_what_is_not_asked_for_is_not_made() -> None:
    assert Plain(1) != Plain(1)
    assert repr(Plain(1)).startswith("<")
