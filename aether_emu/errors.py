"""Every error the package raises on purpose, each carrying the values its reader needs.

One root, `AetherError`: the command line prints such an error as one line and keeps the traceback
for `--debug`. Anything else that escapes is a bug. `Refused` is the guest's kind of error: it
carries the POSIX errno that a system call returns.
"""

from __future__ import annotations

import errno as _errno
import operator
import os
from collections.abc import Iterable


class AetherError(Exception):
    """Root of all errors raised on purpose. `str()` is one line, fit for a terminal.

    A worker process can send one to the process that tells the user.
    """

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuilt, (type(self), self.args), self.__dict__


def _rebuilt(kind: type[AetherError], arguments: tuple[object, ...]) -> AetherError:
    """An error with its words; its values follow as the state. Its own `__init__` would make other words."""
    return kind.__new__(kind, *arguments)


def shown(name: str | bytes) -> str:
    """A path, or another name that may hold anything, for a line that a user reads.

    It stands there as he would type it. What does not print is escaped, and so are bytes that are no UTF-8.
    """
    text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
    if text.isprintable():
        return text or "''"
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    byte = ord(character) - 0xDC00  # of a byte that is no UTF-8, as `os.fsdecode` has it
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else character.encode("unicode_escape").decode()


def toml(value: object) -> str:
    """A value as a TOML file has it."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            plain = value.replace("\\", "\\\\").replace('"', '\\"')
            return f'"{plain}"'
        case list():
            return f"[{', '.join(map(toml, value))}]"
        case dict():
            return f"{{{', '.join(f'{key} = {toml(inner)}' for key, inner in value.items())}}}"
    return str(
        value
    )  # numbers, dates and times: TOML's are those of ISO 8601, which may have a space for the T


def suggestion(name: object, known: Iterable[str]) -> str:
    """What a message about an unknown name ends with: the nearest of those that are known, or nothing."""
    import difflib  # noqa: PLC0415  # nobody else needs it, and a program must start quickly

    near = difflib.get_close_matches(str(name), list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


class ConfigError(AetherError):
    """A parameter has a bad value. Names the parameter, the value, what is wrong and what is allowed.

    `where` is the file and line that say so, when the value comes from a file.
    """

    where = ""

    def __init__(self, name: str, value: object, allowed: str, *, refusal: str = "is not allowed") -> None:
        self.name, self.value, self.allowed, self.refusal = name, value, allowed, refusal
        super().__init__(self.about(f"{name}={value!r}"))

    def about(self, subject: str) -> str:
        """The same sentence about what the user wrote, which became the parameter: `--granule 16K`."""
        return f"{subject} {self.refusal}: {self.allowed}"

    def at(self, where: str) -> ConfigError:
        """This error, with the file and line that the value comes from."""
        self.where = where
        self.args = (f"{where}: {self.about(f'{self.name} = {toml(self.value)}')}",)
        return self


def whole(name: str, value: object, allowed: str = "a whole number") -> int:
    """The argument `name` of a public function as an int. ConfigError for what is none, bools too."""
    if not isinstance(value, bool):
        try:
            return operator.index(value)  # type: ignore[arg-type]  # what has none is refused below
        except TypeError:
            pass
    raise ConfigError(name, value, allowed)


class NeededError(ConfigError):
    """A parameter has to be given, since nothing else tells its value. `why` says what does not."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(name, None, why, refusal="is needed")
        self.args = (self.about(name),)


class AddressError(AetherError, ValueError):
    """A number is not a valid address of its kind."""

    def __init__(self, kind: str, value: int, why: str) -> None:
        self.kind, self.value = kind, value
        super().__init__(f"{value:#x} is no {kind}: {why}")


class FrameError(AetherError):
    """The frame allocator was asked for something that would corrupt it (a double free, a wild frame)."""


class OutOfFrames(AetherError):
    """No frame is left. Physical memory is exhausted (or an injected failure says so)."""

    def __init__(self, wanted: int = 1) -> None:
        self.wanted = wanted
        super().__init__(f"out of physical memory: {wanted} frame(s) wanted")


class EncodingError(AetherError):
    """An entry cannot be encoded in this page-table format."""


class MappingError(AetherError):
    """A page-table operation would break a rule of the table (overwrites a live entry, splits a leaf...)."""


class EngineError(AetherError):
    """The emulated CPU stopped for a reason that is the engine's, not the guest's."""


class MachineError(AetherError):
    """The machine is not in a state in which this can be done. The message says what can be done instead."""


class ClosedError(MachineError):
    """The machine is closed: its memory and its CPU are gone."""

    def __init__(self) -> None:
        super().__init__("the machine is closed: look at it before close(), or make a new one")


class HandlerError(AetherError):
    """A handler did what a handler cannot do, or is none."""


class TimedOut(AetherError, TimeoutError):
    """The time that a run was given, in seconds, is over. The machine stands still and can go on."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"the run did not end within {seconds:g} s")


class ProgramError(AetherError):
    """The program cannot be run. `exit_status` follows the shell: 126 cannot execute, 127 not found."""

    def __init__(self, message: str, exit_status: int = 126) -> None:
        self.exit_status = exit_status
        super().__init__(message)


class InterpreterError(ProgramError):
    """A program's ELF interpreter is not among what the guest sees. `interpreter` is its path there."""

    def __init__(self, program: str, interpreter: str) -> None:
        self.interpreter = interpreter
        super().__init__(f"{program}: its interpreter {interpreter} is not visible to it")


class Refused(AetherError):
    """An operation the guest asked for is refused with a POSIX errno (`errno` is positive)."""

    def __init__(self, errno: int, why: str = "") -> None:
        self.errno, self._why = errno, why or os.strerror(errno)
        super().__init__(f"{self.name}: {self._why}")

    @property
    def name(self) -> str:
        """The errno's, such as ENOENT."""
        return _errno.errorcode.get(self.errno, str(self.errno))

    def about(self, subject: str) -> str:
        """What is wrong with a file or program that the reader has been told of already."""
        return f"{self.name}: {self._why.removeprefix(subject).lstrip(': ')}"
