"""What parameters may be: sizes and other words of people as values, and a rule for each kind.

A rule parses what a file or an option says, refuses what is not allowed, and describes itself for the
documentation.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Literal

from aether_emu import records
from aether_emu.errors import ConfigError

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

_UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_SIZE = r"(?ai)([0-9]{1,20})\s*(?:([KMGT])(?:I?B)?|B)?"
_SIZE_FORMS = "a number of bytes, or one with K, M, G or T (powers of 1024), such as 512M"


def parse_size(text: str | int, name: str = "size") -> int:
    """Bytes meant by `512M`, `2 GiB`, `64k`, `4096` or `0x1000`: units are powers of 1024. An int is kept.

    Raises ConfigError for the parameter `name` on anything else (fractions and signs too).
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    if isinstance(text, str):
        stripped = text.strip()
        if re.fullmatch(r"0[xX][0-9a-fA-F]{1,16}", stripped):
            return int(stripped, 16)
        if match := re.fullmatch(_SIZE, stripped):
            return int(match[1]) * _UNITS[(match[2] or "").upper()]
    raise ConfigError(name, text, _SIZE_FORMS)


def format_size(size: int) -> str:
    """`size` bytes in the largest unit that divides them, such as `512M`. `parse_size` gives it back."""
    for unit in "TGMK":
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)


def run_sizes(text: str) -> list[int]:
    """The bytes of each run of pages that `mthp` names, the largest first."""
    if text == "none":
        return []
    return sorted({parse_size(size, "mthp") for size in text.split(",")}, reverse=True)


_PICTURE = r"(?a)([0-9]{1,4})x([0-9]{1,4})"
_LARGEST_PICTURE = 8 * MIB // 4  # pixels: what the allocator has in a row


def picture_size(text: str) -> tuple[int, int] | None:
    """Width and height of `640x480`; None of "none". ConfigError for anything else."""
    if text == "none":
        return None
    match = re.fullmatch(_PICTURE, text)
    width, height = map(int, match.groups()) if match else (0, 0)
    if not 0 < width * height <= _LARGEST_PICTURE:
        raise ConfigError("framebuffer", text, Picture.allowed)
    return width, height


DEVICES = ("timer", "dma")
"""What has registers that programs map."""


def device_names(text: str) -> list[str]:
    """The devices that `devices` names, in a fixed order. ConfigError for anything else."""
    names = [] if text == "none" else text.split(",")
    if set(names) - set(DEVICES) or len(set(names)) < len(names):
        raise ConfigError("devices", text, Devices.allowed)
    return [name for name in DEVICES if name in names]


def pool_sizes(text: str) -> dict[int, int]:
    """How many huge pages of each size in bytes `hugepages` names: by the sizes, as they stand there."""
    pools: dict[int, int] = {}
    for each in [] if text == "none" else text.split(","):
        size, equals, count = each.partition("=")
        bytes_ = parse_size(size, "hugepages")
        if not equals or not count.isascii() or not count.isdigit() or bytes_ in pools:
            raise ConfigError("hugepages", text, Pools.allowed)
        pools[bytes_] = int(count)
    return pools


def slab_checks(text: str) -> tuple[str, tuple[str, ...]]:
    """The letters of `slab_debug`, and the caches that it names. ConfigError for anything else."""
    letters, *names = text.split(",")
    if text == "none":
        return "", ()
    if not letters or set(letters) - set("FZPU") or len(set(letters)) < len(letters) or "" in names:
        raise ConfigError("slab_debug", text, SlabDebug.allowed)
    return letters, tuple(names)


_TYPES = {
    "number": "integer",
    "size": "integer or string",
    "address": "integer or string",
}


class Rule(ABC):
    """What a parameter may be. `allowed` says it in words, for errors and documentation."""

    @property
    @abstractmethod
    def type(self) -> str:
        """What a TOML file has for it."""

    @property
    @abstractmethod
    def allowed(self) -> str: ...

    @abstractmethod
    def check(self, value: object) -> bool:
        """Whether a value, of whatever type, is allowed."""

    def parse(self, name: str, value: object) -> object:
        """The value meant by what a file or an option says. Need not be allowed."""
        return value

    def format(self, value: object) -> str:
        return str(value)


@records.dataclass(frozen=True)
class Whole(Rule):
    """A whole number from `low` to `high`. Other than a plain number it is written with units or in hex."""

    low: int
    high: int
    multiple: int = 1
    power_of_two: bool = False
    page_aligned: bool = False
    absent: str = ""  # what leaving it out means; "": it has a value
    written: Literal["number", "size", "address"] = "number"

    @property
    def type(self) -> str:
        return _TYPES[self.written]

    @property
    def allowed(self) -> str:
        kind = "a whole number"
        if self.power_of_two:
            kind = "a power of two"
        elif self.page_aligned:
            kind = "a multiple of the page size"
        elif self.multiple > 1:
            kind = f"a multiple of {self.format(self.multiple)}"
        text = f"{kind} from {self.format(self.low)} to {self.format(self.high)}"
        return f"{text}, or left out for {self.absent}" if self.absent else text

    def check(self, value: object) -> bool:
        if value is None:
            return bool(self.absent)
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        if self.power_of_two and value & (value - 1):
            return False
        return self.low <= value <= self.high and value % self.multiple == 0

    def parse(self, name: str, value: object) -> object:
        return parse_size(value, name) if self.written != "number" and isinstance(value, str) else value

    def format(self, value: object) -> str:
        if value is None:
            return self.absent
        if not isinstance(value, int) or self.written == "number":
            return str(value)
        return format_size(value) if self.written == "size" else hex(value)


@records.dataclass(frozen=True)
class Choice(Rule):
    """One of a few sizes."""

    values: tuple[int, ...]
    absent: str = ""  # as for a whole number
    written: Literal["number", "size"] = "number"

    @property
    def type(self) -> str:
        return _TYPES[self.written]

    @property
    def allowed(self) -> str:
        text = "one of " + ", ".join(map(self.format, self.values))
        return f"{text}, or left out for {self.absent}" if self.absent else text

    def check(self, value: object) -> bool:
        if value is None:
            return bool(self.absent)
        return isinstance(value, int) and value in self.values

    def format(self, value: object) -> str:
        if value is None:
            return self.absent
        return format_size(value) if self.written == "size" and isinstance(value, int) else str(value)

    def parse(self, name: str, value: object) -> object:
        return parse_size(value, name) if self.written == "size" and isinstance(value, str) else value


@records.dataclass(frozen=True)
class Word(Rule):
    """One of a few words."""

    words: tuple[str, ...]
    type = "string"

    @property
    def allowed(self) -> str:
        return "one of " + ", ".join(self.words)

    def check(self, value: object) -> bool:
        return isinstance(value, str) and value in self.words


class Runs(Rule):
    """Sizes of runs of pages: none, or some separated by commas."""

    type = "string"
    allowed = "none, or sizes that are powers of two from 16K to 1M, separated by commas, such as 64K,1M"

    def check(self, value: object) -> bool:
        if not isinstance(value, str):
            return False
        try:
            sizes = run_sizes(value)
        except ConfigError:
            return False
        return all(16 * KIB <= size <= MIB and not size & (size - 1) for size in sizes)


class Picture(Rule):
    """How many pixels a framebuffer has."""

    type = "string"
    allowed = f"none, or width and height, such as 640x480, with at most {_LARGEST_PICTURE} pixels"

    def check(self, value: object) -> bool:
        if not isinstance(value, str):
            return False
        try:
            picture_size(value)
        except ConfigError:
            return False
        return True


class Devices(Rule):
    """Devices with registers: none, or some separated by commas."""

    type = "string"
    allowed = f"none, or some of {', '.join(DEVICES)}, separated by commas"

    def check(self, value: object) -> bool:
        if not isinstance(value, str):
            return False
        try:
            device_names(value)
        except ConfigError:
            return False
        return True


class SlabDebug(Rule):
    """What is checked of kernel objects, and of which."""

    type = "string"
    allowed = "none, or letters of F, Z, P and U, then names of caches if only those are meant, after commas"

    def check(self, value: object) -> bool:
        if not isinstance(value, str):
            return False
        try:
            slab_checks(value)
        except ConfigError:
            return False
        return True


class Pools(Rule):
    """Sizes of huge pages, and how many of each: none, or some separated by commas."""

    type = "string"
    allowed = "none, or sizes and how many pages of each, separated by commas, such as 2M=16,1G=1"

    def check(self, value: object) -> bool:
        if not isinstance(value, str):
            return False
        try:
            return all(count < 1 << 31 for count in pool_sizes(value).values())
        except ConfigError:
            return False


class Flag(Rule):
    """True or false."""

    type = "boolean"
    allowed = "true or false"

    def check(self, value: object) -> bool:
        return isinstance(value, bool)

    def format(self, value: object) -> str:
        return str(value).lower()


@records.dataclass(frozen=True)
class HostPath(Rule):
    """A path of the host."""

    absent: str  # what leaving it out means
    type = "string"

    @property
    def allowed(self) -> str:
        return f"a path of the host, or left out for {self.absent}"

    def check(self, value: object) -> bool:
        return value is None or (isinstance(value, str) and bool(value) and "\0" not in value)

    def format(self, value: object) -> str:
        return self.absent if value is None else str(value)


class HostName(Rule):
    """A node name of Linux: at most 64 bytes (UTS_LEN), of the characters of host names."""

    type = "string"
    allowed = "1 to 64 letters, digits, '.' and '-', the first a letter or a digit"

    def check(self, value: object) -> bool:
        if not (isinstance(value, str) and value.isascii() and 1 <= len(value) <= 64):
            return False
        return value[0].isalnum() and value.replace(".", "a").replace("-", "a").isalnum()
