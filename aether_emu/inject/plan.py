"""What is to be injected, and when: the words of `--inject`, read and checked.

    SITE:KEY=VALUE,...

    pte:bit=1,level=2,at=fault#100          flip bit 1 of the entry of level 2 that the 100th fault went by
    data:area=[heap],at=call:write#3        flip a bit, drawn by the seed, of a page of the heap
    allocation:every=50,times=0             refuse each 50th allocation of frames
    call:name=mmap,errno=ENOMEM,at=#2       the second mmap fails
    register:name=rax,bit=7,at=block#10000  after 10,000 blocks

`at=EVENT#N` is the N-th event of its kind; `call:NAME` counts the calls of one name, and an event that is
left out is the usual one of the site. From there on each `every`-th event counts, `times` of them in all
(0: without end), each with `probability`. `process`, `cpu` and `address` (of a fault) choose whose events
are counted; `area`, or `address` where the event has none, says which pages are hit. An address that is
none of these is drawn from all the pages that the process has in RAM.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Any

from aether_emu.errors import ConfigError, suggestion
from aether_emu.records import dataclass

FAULT, CALL, ALLOCATION, BLOCK = "fault", "call", "allocation", "block"
EVENTS = (FAULT, CALL, ALLOCATION, BLOCK)
_ADDRESSES = "an address, or FIRST-LAST, in hexadecimal (0x...) or decimal"


@dataclass(frozen=True, slots=True)
class Injection:
    """One thing to inject. `first` and `last` are virtual addresses, of bytes; None where any will do.

    `level` is that of a table (1: last), `bit` counts from 0 (None: drawn), `error` is an errno.
    """

    site: str
    event: str
    call: str = ""
    nth: int = 1
    every: int = 0
    times: int = 1
    probability: float = 1.0
    process: str = ""
    cpu: int | None = None
    first: int | None = None
    last: int | None = None
    area: str = ""
    level: int = 1
    bit: int | None = None
    name: str = ""
    error: int = 0

    def is_due(self, count: int) -> bool:
        """Whether the event that is the `count`-th of its kind, from 1, is meant."""
        return count >= self.nth and not (self.every and (count - self.nth) % self.every)

    def allows(self, address: int) -> bool:
        """Whether an address is one of those that are meant."""
        return self.first is None or self.last is None or self.first <= address <= self.last


def _number(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = int(text, 0)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return read


def _probability(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise ValueError(text)
    return value


def _range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    low = int(first, 0)
    high = int(last, 0) if dash else low
    if not 0 <= low <= high < 1 << 64:
        raise ValueError(text)
    return low, high


def _errno(text: str) -> int:
    number = getattr(errno, text, None)
    if not isinstance(number, int) or not text.startswith("E"):
        raise ValueError(text)
    return number


def _word(text: str) -> str:
    if not text:
        raise ValueError(text)
    return text


_At = tuple[str, str, int]


def _at(text: str) -> _At:
    event, sharp, number = text.partition("#")
    kind, colon, call = event.partition(":")
    if (kind and kind not in EVENTS) or (colon and (kind != CALL or not call)):
        raise ValueError(text)
    return kind, call, _number(1, 1 << 62)(number) if sharp else 1


_MANY = 1 << 62
_COMMON: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "at": (_at, f"EVENT#N with an event of {', '.join(EVENTS)}, or call:NAME#N, and N from 1"),
    "every": (_number(1, _MANY), "a number of events, from 1"),
    "times": (_number(0, _MANY), "a number of times, 0 for no limit"),
    "probability": (_probability, "more than 0, up to 1"),
    "process": (_word, "a process's name"),
    "cpu": (_number(0, 63), "a CPU's number"),
    "address": (_range, _ADDRESSES),
}
_PLACED: Mapping[str, tuple[Callable[[str], Any], str]] = {
    **_COMMON,
    "area": (_word, "a name as in /proc/PID/maps, such as [heap], or the end of a file's path"),
    "bit": (_number(0, (1 << 19) - 1), "a bit's number, from 0"),
}
SITES: Mapping[str, tuple[str, Mapping[str, tuple[Callable[[str], Any], str]]]] = {
    "pte": (
        FAULT,
        {**_PLACED, "level": (_number(1, 5), "a level, 1 (last) to 5"), "bit": (_number(0, 63), "0 to 63")},
    ),
    "data": (FAULT, _PLACED),
    "allocation": (ALLOCATION, {key: _COMMON[key] for key in ("at", "every", "times", "probability")}),
    "call": (CALL, {**_COMMON, "name": (_word, "a system call"), "errno": (_errno, "such as ENOMEM")}),
    "register": (BLOCK, {**_COMMON, "name": (_word, "a register"), "bit": (_number(0, 63), "0 to 63")}),
}
"""Each site: its usual event, and its keys with what reads their values, and what those may be."""
_REQUIRED = {"call": ("errno",), "register": ("name",)}


def parse(text: str) -> Injection:
    """The injection that a text describes. Raises ConfigError with the part that is wrong."""
    site, _colon, rest = text.partition(":")
    values: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, equals, written = part.partition("=")
        if not equals or key in values:
            raise ConfigError(f"inject {site}", part, "KEY=VALUE, each key once")
        values[key] = written
    return read(site, values)


def read(site: str, written: Mapping[str, str]) -> Injection:
    """Likewise, of a site and what is written for its keys."""
    if site not in SITES:
        raise ConfigError("inject", site, f"one of {', '.join(SITES)}, or a file{suggestion(site, SITES)}")
    usual, keys = SITES[site]
    values: dict[str, Any] = {}
    for key, value in written.items():
        if key not in keys:
            raise ConfigError(f"inject {site}", key, f"one of {', '.join(keys)}{suggestion(key, keys)}")
        reader, allowed = keys[key]
        try:
            values[key] = reader(value)
        except ValueError:
            raise ConfigError(f"inject {site}:{key}", value, allowed) from None
    for key in _REQUIRED.get(site, ()):
        if key not in values:
            raise ConfigError("inject", site, f"{site}:{key}=... ({keys[key][1]})")
    return _injection(site, usual, values)


def _injection(site: str, usual: str, values: dict[str, Any]) -> Injection:
    event, call, nth = values.pop("at", ("", "", 1))
    event = event or usual
    if site in (CALL, ALLOCATION) and event != site:
        raise ConfigError(f"inject {site}:at", event, f"{site}: it is that which fails")
    if site == CALL:
        call = values.pop("name", "") or call
    first, last = values.pop("address", (None, None))
    if event == BLOCK and (
        values.get("every") or values.get("times", 1) != 1 or values.get("probability", 1) != 1
    ):
        raise ConfigError(f"inject {site}:at", "block", "once: without every, times and probability")
    return Injection(site, event, call, nth, first=first, last=last, error=values.pop("errno", 0), **values)
