"""Our data classes behave as the standard ones: each shape is defined with both, and everything compared."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from aether_emu import records

Decorator = Callable[..., Any]


def shapes(dataclass: Decorator) -> list[tuple[type[Any], tuple[Any, ...]]]:
    """Classes of every kind that the package defines, and some more, each with values for its fields."""

    @dataclass(frozen=True, slots=True)
    class FrozenSlots:
        """Most of ours."""

        a: int
        b: Any = (1, 2)

        @property
        def double(self) -> int:
            return self.a * 2

    @dataclass(frozen=True)
    class Frozen:
        """With a dict."""

        a: int
        b: str = "b"
        shared: ClassVar[int] = 3

    @dataclass(slots=True)
    class Slots:
        """Which can change."""

        a: Any
        b: int = 0

    @dataclass
    class Plain:
        """By the bare decorator."""

        a: Any

    @dataclass(frozen=True)
    class Empty:
        """Without fields."""

    @dataclass(frozen=True, eq=False, repr=False)
    class Bare:
        """Which is itself only."""

        a: int

    @dataclass(frozen=True, slots=True)
    class OwnText:
        """Shows itself."""

        a: int

        def __repr__(self) -> str:
            return f"<{self.a}>"

    @dataclass(frozen=True, slots=True)
    class Unseen:
        """With fields that are not shown, or not compared."""

        a: int
        beside: int = dataclasses.field(compare=False)
        unseen: int = dataclasses.field(default=0, compare=False, repr=False)

    @dataclass(frozen=True, slots=True)
    class Particular:
        """With fields that are not like the others."""

        a: int
        unhashed: int = dataclasses.field(default=0, hash=False)
        late: int = dataclasses.field(default=3, init=False)
        made: list[int] = dataclasses.field(default_factory=list, hash=False)

    @dataclass(frozen=True, slots=True)
    class Derived(FrozenSlots):
        """With a base of its kind."""

        c: int = 5

    @dataclass(frozen=True)
    class Checked:
        """Looks at what it is given."""

        a: int

        def __post_init__(self) -> None:
            if self.a < 0:
                raise ValueError(self.a)

    @dataclass(frozen=True, slots=True)
    class OwnEquality:
        """Compares itself."""

        a: int

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 7

    @dataclass
    class Named:
        """A field that is given by name, and has no other mark."""

        a: int
        b: int = dataclasses.field(default=2, kw_only=True)

    @dataclass
    class GivenMore:
        """An argument that is no field, and one that is given by name."""

        a: int
        seed: dataclasses.InitVar[int] = 1
        _: dataclasses.KW_ONLY
        b: int = 2

    return [
        (FrozenSlots, (1, "x")), (Frozen, (1, "x")), (Slots, ([], 2)), (Plain, ("x",)), (Empty, ()),
        (Bare, (1,)), (OwnText, (1,)), (Unseen, (1, 2, 3)), (Particular, (1, 2, [3])), (Derived, (1, 2, 3)),
        (Checked, (4,)), (OwnEquality, (1,)), (Named, (1,)), (GivenMore, (1, 2)),
    ]  # fmt: skip


def importable(prefix: str, dataclass: Decorator) -> dict[str, tuple[type[Any], tuple[Any, ...]]]:
    """The shapes where pickle finds them."""
    found = {}
    for made, values in shapes(dataclass):
        found[made.__name__] = made, values
        made.__name__ = made.__qualname__ = prefix + made.__name__
        setattr(sys.modules[__name__], made.__name__, made)
    return found


STANDARD = importable("Standard", dataclasses.dataclass)
OURS = importable("Ours", records.dataclass)


def outcome(action: Callable[[], Any]) -> Any:
    """What comes of it, without the names of the classes, which differ."""
    try:
        result = action()
    except Exception as error:
        result = type(error), str(error)
    return repr(result).replace("Standard", "").replace("Ours", "")


def is_refused(action: Callable[[], Any]) -> bool:
    """The standard classes with slots do it by mistake with a TypeError, before Python 3.14."""
    try:
        action()
    except (AttributeError, TypeError):
        return True
    return False


def behaviour(made: type[Any], values: tuple[Any, ...]) -> dict[str, Any]:
    """All that one can see of a class and of an instance."""
    one: Any = made(*values)

    def without(name: str) -> None:
        delattr(made(*values), name)

    return {
        "instance": outcome(lambda: "its address" if "__repr__" not in vars(made) else one),
        "no arguments": outcome(lambda: bool(made())),
        "too many": outcome(lambda: made(*values, 1, 2, 3)),
        "by name": outcome(lambda: made(a=1) == made(1)),
        "equal": outcome(lambda: (one == made(*values), one != made(*values), one == values)),
        "other type": outcome(lambda: one.__eq__(values)),
        "hash": outcome(lambda: hash(one) == hash(made(*values))),
        "hash of fields": outcome(lambda: hash(one) == hash(values)),
        "fields": outcome(lambda: [(f.name, f.type, f.default, f.compare) for f in dataclasses.fields(made)]),
        "values": outcome(lambda: (dataclasses.asdict(one), dataclasses.astuple(one))),
        "replaced": outcome(lambda: dataclasses.asdict(dataclasses.replace(one, a=9))),
        "parameters": outcome(lambda: one.__dataclass_params__),
        "match": outcome(lambda: one.__match_args__),
        "signature": outcome(lambda: inspect.signature(made)),
        "text": outcome(lambda: (made.__doc__, made.__init__.__qualname__.rpartition(".")[2])),
        "own attributes": outcome(lambda: (hasattr(one, "__dict__"), getattr(made, "__slots__", None))),
        "assigned": outcome(lambda: setattr(made(*values), "a", 5)),
        "assigned another": is_refused(lambda: setattr(made(*values), "other", 5)),
        "deleted": outcome(lambda: without("a")),
        "deleted another": is_refused(lambda: without("other")),
        "copied": outcome(lambda: dataclasses.asdict(copy.copy(one))),
        "copied deep": outcome(lambda: dataclasses.asdict(copy.deepcopy(one))),
        "pickled": outcome(lambda: dataclasses.asdict(pickle.loads(pickle.dumps(one)))),
    }


@pytest.mark.parametrize("name", STANDARD)
def test_a_class_behaves_as_the_standard_one_of_its_shape(name: str) -> None:
    assert behaviour(*OURS[name]) == behaviour(*STANDARD[name])


@pytest.mark.parametrize("name", ["FrozenSlots", "Frozen"])
def test_a_subclass_may_add_what_can_change(name: str) -> None:
    def seen(base: Any, values: tuple[Any, ...]) -> list[str]:
        class Below(base):  # type: ignore[misc]
            pass

        one = Below(*values)
        one.other = 1
        del one.other
        return [
            outcome(lambda: setattr(one, "a", 1)),
            outcome(lambda: delattr(one, "a")),
            outcome(lambda: one == base(*values)),
            outcome(lambda: dataclasses.dataclass(Below)),  # it cannot thaw a frozen base
        ]

    assert seen(*OURS[name]) == seen(*STANDARD["Frozen"])  # with slots it fails, before Python 3.14


@pytest.mark.parametrize("dataclass", [dataclasses.dataclass, records.dataclass], ids=["standard", "ours"])
def test_no_field_without_a_default_follows_one_with(dataclass: Decorator) -> None:
    with pytest.raises(TypeError, match="default"):

        @dataclass
        class Wrong:
            a: int = 1
            b: int  # type: ignore[misc]


def test_a_frozen_instance_refuses_a_change_at_run_time() -> None:
    made, values = OURS["FrozenSlots"]
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'a'"):
        made(*values).a = 3


@pytest.mark.parametrize("name", ["FrozenSlots", "Slots", "Plain"])
def test_a_value_within_itself_can_be_shown(name: str) -> None:
    def shown(made: Any, values: tuple[Any, ...]) -> str:
        inner: list[Any] = []
        held = made(inner, *values[1:])
        inner.append(held)
        return str(outcome(lambda: held))

    assert "[...]" in shown(*OURS[name])
    assert shown(*OURS[name]) == shown(*STANDARD[name])


def test_most_classes_are_made_without_the_standard_decorators_compiling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[str] = []
    once = records._compiled  # type: ignore[attr-defined]  # the type checker sees the standard one

    def counted(*form: Any) -> Any:
        compiled.append(form[2])
        return once(*form)

    monkeypatch.setattr(records, "_compiled", counted)
    for _ in range(3):
        shapes(records.dataclass)
    assert len(compiled) <= 2 * 3, "once for each number of fields, frozen or not"
