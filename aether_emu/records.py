"""Data classes that are made in a fifth of the time: those that every start of a program makes.

`dataclasses.dataclass` writes up to six methods as text for each class and compiles them. Here it writes
`__init__` alone; comparing, hashing and showing work from the names of the fields. A frozen class is
refused its changes by the type checker, not at run time, so that making an instance costs less too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["dataclass"]

if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    import dataclasses
    from operator import attrgetter
    from reprlib import recursive_repr

    def dataclass(cls=None, /, *, frozen=False, slots=False, eq=True, repr=True):
        """As the standard one of the same name, with these of its arguments."""

        def made(cls):
            own = vars(cls)
            new = dataclasses.dataclass(cls, init=True, repr=False, eq=False, slots=slots)
            fields = dataclasses.fields(new)
            if repr and "__repr__" not in own:
                new.__repr__ = _shown(tuple(field.name for field in fields if field.repr))
            if eq and "__eq__" not in own:
                new.__eq__, hashed = _compared(tuple(field.name for field in fields if field.compare))
                if "__hash__" not in own:
                    new.__hash__ = hashed if frozen else None
            return new

        return made if cls is None else made(cls)

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
