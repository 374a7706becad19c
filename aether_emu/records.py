"""`dataclass` for what every start of a program defines, made in a fraction of the standard one's time.

The standard decorator writes the methods of a class as text and compiles them: nearly half the time of
importing the package would go there. Here they are closures, and an `__init__` is compiled once for each
number of fields and then given its names. The classes behave as standard ones, frozen ones too; the standard
decorator makes those that ask for more: a base of this kind, most of `field`, methods for the same purpose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["dataclass"]

if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    import dataclasses
    import functools
    from abc import update_abstractmethods
    from inspect import get_annotations
    from operator import attrgetter
    from reprlib import recursive_repr
    from types import MemberDescriptorType as _Slot

    _MARKS = ("ClassVar", "InitVar", "KW_ONLY")  # of annotations that are no fields, or particular ones
    _OWN = {"__init__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__getstate__", "__setstate__"}

    def dataclass(cls=None, /, *, frozen=False, slots=False, eq=True, repr=True):
        """As the standard one of the same name, with these of its arguments."""

        def made(cls):
            asked = {"frozen": frozen, "slots": slots, "eq": eq, "repr": repr}
            return _made(cls, **asked) if _is_simple(cls, slots) else dataclasses.dataclass(cls, **asked)

        return made if cls is None else made(cls)

    def _is_simple(cls, slots):
        own = vars(cls)
        return not (
            not cls.__doc__
            or (slots and cls.__bases__ != (object,))
            or hasattr(cls, "__dataclass_fields__")
            or hasattr(cls, "__post_init__")
            or not _OWN.isdisjoint(own)
            or any(isinstance(value, dataclasses.Field) and _is_peculiar(value) for value in own.values())
            or any(mark in str(kind) for kind in get_annotations(cls).values() for mark in _MARKS)
        )

    def _is_peculiar(field):
        """Other than with a default, not shown, or not compared."""
        made = field.default_factory is not dataclasses.MISSING
        return made or not field.init or field.hash is not None or field.kw_only is True

    def _made(cls, *, frozen, slots, eq, repr):
        own = vars(cls)
        kinds = get_annotations(cls)
        given = {name: own[name] for name in kinds if name in own}
        new = _with_slots(cls, kinds) if slots else cls
        if not slots:
            for name, value in given.items():
                if isinstance(value, dataclasses.Field):
                    _set_default(cls, name, value.default)
        new.__match_args__ = tuple(kinds)
        new.__init__ = _initial(new, kinds, given, frozen)
        if repr and "__repr__" not in own:
            new.__repr__ = _shown(tuple(name for name in kinds if _of(given, name, "repr")))
        if eq:
            new.__eq__, hashed = _compared(tuple(name for name in kinds if _of(given, name, "compare")))
            new.__hash__ = hashed if frozen else None
        if frozen:
            new.__setattr__, new.__delattr__ = _refusals(new, set(kinds))
            if slots:
                new.__getstate__, new.__setstate__ = _state, _restore
        asked = {"eq": eq, "frozen": frozen, "repr": repr, "slots": slots}
        if hasattr(new, "__abstractmethods__"):
            update_abstractmethods(new)
        new.__dataclass_fields__ = _Described(new, kinds, given, asked, "__dataclass_fields__")
        new.__dataclass_params__ = _Described(new, kinds, given, asked, "__dataclass_params__")
        return new

    def _with_slots(cls, names):
        """The class again: one that exists cannot be given slots."""
        own = {name: value for name, value in vars(cls).items() if name not in names}
        for name in ("__dict__", "__weakref__"):
            own.pop(name, None)
        new = type(cls)(cls.__name__, cls.__bases__, own | {"__slots__": tuple(names)})
        new.__qualname__ = cls.__qualname__
        return new

    def _set_default(cls, name, value):
        if value is dataclasses.MISSING:
            delattr(cls, name)
        else:
            setattr(cls, name, value)

    def _of(given, name, what):
        """Whether a field is shown, or compared."""
        value = given.get(name)
        return getattr(value, what) if isinstance(value, dataclasses.Field) else True

    class _Described:
        """What the functions of `dataclasses` ask a class for: few are ever asked, so it is made then."""

        def __init__(self, cls, kinds, given, asked, name):
            self._cls, self._kinds, self._given, self._asked, self._name = cls, kinds, given, asked, name

        def __get__(self, _instance, _owner):
            cls, namespace = self._cls, {"__annotations__": self._kinds, "__module__": self._cls.__module__}
            same = type(cls.__name__, (), {"__doc__": cls.__doc__, **self._given, **namespace})
            same = dataclasses.dataclass(same, **self._asked)
            cls.__dataclass_fields__ = same.__dataclass_fields__
            cls.__dataclass_params__ = same.__dataclass_params__
            return getattr(same, self._name)

    def _default(given, name):
        value = given.get(name, dataclasses.MISSING)
        return value.default if isinstance(value, dataclasses.Field) else value

    def _initial(cls, kinds, given, frozen):
        names = tuple(kinds)
        values = [_default(given, name) for name in names]
        defaults = tuple(value for value in values if value is not dataclasses.MISSING)
        for name, value in zip(names, values[: len(names) - len(defaults)], strict=False):
            if value is not dataclasses.MISSING:
                raise TypeError(f"a field without a default follows {name!r}, which has one")
        if frozen:
            initial = _frozen_initial(len(names))(*(_setter(cls, name) for name in names))
            initial.__code__ = initial.__code__.replace(co_varnames=("self", *names))
        else:
            initial = _initial_of(len(names))()
            initial.__code__ = initial.__code__.replace(co_varnames=("self", *names), co_names=names)
        initial.__defaults__ = defaults or None
        initial.__annotations__ = kinds | {"return": None}
        initial.__qualname__ = f"{cls.__qualname__}.__init__"
        return initial

    @functools.cache
    def _initial_of(count):
        """What makes a function that sets so many fields, which are named later."""
        return _compiled("", [f"a{i}" for i in range(count)], "self.{0} = {0}")

    @functools.cache
    def _frozen_initial(count):
        """As `_initial_of`, from the functions that set them: the class itself refuses."""
        values = [f"a{i}" for i in range(count)]
        return _compiled(", ".join(f"set_{value}" for value in values), values, "set_{0}(self, {0})")

    def _compiled(setters, values, form):
        body = "; ".join(form.format(value) for value in values) or "pass"
        arguments = ", ".join(["self", *values])
        made = {}
        exec(f"def make({setters}):\n def __init__({arguments}): {body}\n return __init__", {}, made)
        return made["make"]

    def _setter(cls, name):
        """What sets a field whatever the class refuses."""
        slot = getattr(cls, name, None)
        if isinstance(slot, _Slot):
            return slot.__set__

        def into_dict(self, value):
            object.__setattr__(self, name, value)

        return into_dict

    def _shown(names):
        @recursive_repr()
        def shown(self):
            values = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
            return f"{self.__class__.__qualname__}({values})"

        return shown

    def _compared(names):
        """Two instances of one class are equal when all their fields are; the hash is that of all fields."""
        if len(names) == 1:
            (name,) = names

            def values(instance):
                return (getattr(instance, name),)

        else:
            values = attrgetter(*names) if names else lambda _instance: ()

        def equal(self, other):
            if other.__class__ is not self.__class__:
                return NotImplemented
            return values(self) == values(other)

        def hashed(self):
            return hash(values(self))

        return equal, hashed

    def _refusals(cls, names):
        """A subclass may have other attributes, and change them."""

        def assign(self, name, value):
            if type(self) is cls or name in names:
                raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
            super(cls, self).__setattr__(name, value)

        def delete(self, name):
            if type(self) is cls or name in names:
                raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
            super(cls, self).__delattr__(name)

        return assign, delete

    def _state(self):
        return [getattr(self, field.name) for field in dataclasses.fields(self)]

    def _restore(self, state):
        for field, value in zip(dataclasses.fields(self), state, strict=True):
            object.__setattr__(self, field.name, value)
