"""A task's registers as a mapping from their names, wherever they are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Protocol

from aether_emu.errors import AetherError, suggestion
from aether_emu.machine.cpu import Cpu

_COUNTER = {"x86_64": "rip", "arm64": "pc"}
_POINTER = {"x86_64": "rsp", "arm64": "sp"}


class RegisterError(AetherError, KeyError):
    """There is no register of that name, or the value is none that it can have."""

    def __str__(self) -> str:
        return str(self.args[0])


class Holder(Protocol):
    """A task, as its registers see it."""

    registers: dict[str, int]

    @property
    def running(self) -> bool: ...
    @property
    def cpu(self) -> Cpu: ...


class Registers(MutableMapping[str, int]):
    """The registers of a task, by the ISA's names in lower case; vector registers are one wide integer each.

    Reading is always possible. Setting takes effect when the program goes on: between two runs, or in a
    handler or listener. `pc` and `sp` are the same on every ISA.
    """

    __slots__ = ("_holder", "_isa", "_require_open")  # `registers.rax = 1` is an error, not an attribute

    def __init__(self, isa: str, holder: Holder, require_open: Callable[[], None]) -> None:
        """`require_open` raises once there is no machine any more."""
        self._isa, self._holder, self._require_open = isa, holder, require_open

    @property
    def pc(self) -> int:
        """Where the program goes on."""
        return self[_COUNTER[self._isa]]

    @pc.setter
    def pc(self, value: int) -> None:
        self[_COUNTER[self._isa]] = value

    @property
    def sp(self) -> int:
        """The stack pointer."""
        return self[_POINTER[self._isa]]

    @sp.setter
    def sp(self, value: int) -> None:
        self[_POINTER[self._isa]] = value

    def __getitem__(self, name: str) -> int:
        holder = self._holder
        self._require_open()
        if not isinstance(name, str):
            raise self._unknown(name)
        try:
            return holder.cpu.read(name) if holder.running else holder.registers[name]
        except KeyError:
            raise self._unknown(name) from None

    def __setitem__(self, name: str, value: int) -> None:
        if name not in self:
            raise self._unknown(name)
        wide = self._width(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << wide:
            raise RegisterError(f"{name}={value!r} is not allowed: a whole number of at most {wide} bits")
        if self._holder.running:
            self._holder.cpu.write(name, value)
        else:
            self._holder.registers[name] = value

    def __delitem__(self, name: str) -> None:
        raise RegisterError(f"a CPU keeps its registers: set {name} to 0 instead")

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._all()

    def _all(self) -> dict[str, int]:
        holder = self._holder
        self._require_open()
        return holder.cpu.registers() if holder.running else holder.registers

    def _width(self, name: str) -> int:
        """In bits."""
        if name.startswith("xmm") or (self._isa == "arm64" and name[0] == "v"):
            return 128
        return 80 if self._isa == "x86_64" and name[:2] == "fp" and name[2:].isdigit() else 64

    def _general(self) -> list[str]:
        """The names of those with 64 bits that programs compute with."""
        if self._isa == "arm64":
            return [name for name in self if name[0] == "x" or name in ("sp", "pc", "nzcv")]
        return [name for name in self if name[0] == "r"]

    def _unknown(self, name: str) -> RegisterError:
        own = {"pc": _COUNTER, "sp": _POINTER}.get(str(name))
        hint = f"; it is {own[self._isa]} there" if own else suggestion(name, self)
        return RegisterError(f"{self._isa} has no register {name!r}{hint}")

    def __str__(self) -> str:
        """The general registers, three in a line."""
        shown = [f"{name:>6} {self[name]:#018x}" for name in self._general()]
        return "\n".join("  ".join(shown[i : i + 3]) for i in range(0, len(shown), 3))

    def __repr__(self) -> str:
        return f"<Registers of {self._isa}: pc {self.pc:#x}, sp {self.sp:#x}, {len(self)} in all>"
