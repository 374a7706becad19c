"""Injections from a TOML file: each a table `[[inject]]` with `site` and the keys of `plan`.

[[inject]]
site = "pte"
bit = 1
at = "fault#100"
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aether_emu.errors import ConfigError
from aether_emu.inject.plan import SITES, Injection, parse, read


def load(path: Path) -> list[Injection]:
    """The injections of a file. Raises ConfigError with the file, the line and what is allowed there."""
    try:
        text = path.read_text("utf-8")
        tables = tomllib.loads(text)
    except OSError as error:
        raise ConfigError("inject", str(path), f"a TOML file that can be read ({error.strerror})") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError("inject", str(path), f"a TOML file ({error})") from None
    unknown = [name for name in tables if name != "inject"]
    found = tables.get("inject")
    if (
        unknown
        or not isinstance(found, list)
        or not all(isinstance(each, dict) for each in found)
        or not found
    ):
        raise ConfigError("inject", str(path), "a file of tables [[inject]], and nothing else")
    wanted = []
    for number, table in enumerate(found):
        try:
            wanted.append(_injection(table))
        except ConfigError as error:
            key = error.name.rpartition(":")[2]
            raise error.at(f"{path}:{_line(text, number, key if key in table else '')}") from None
    return wanted


def _injection(table: Mapping[str, Any]) -> Injection:
    site = table.get("site")
    for key, value in table.items():
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ConfigError(f"inject:{key}", value, "a number or a text")
    return read(str(site), {key: str(value) for key, value in table.items() if key != "site"})


def _line(text: str, number: int, key: str) -> int:
    """The line of a key in the `number`-th table, from 0; that of its header where it has no such key."""
    at, seen = 1, -1
    for line, content in enumerate(text.splitlines(), 1):
        if re.match(r"\s*\[\[\s*inject\s*\]\]", content):
            seen += 1
            if seen == number:
                at = line
        elif seen == number and key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", content):
            return line
    return at


def wanted(text: str) -> list[Injection]:
    """What --inject says: a site with its keys, or a file's name. Raises ConfigError."""
    site, colon, _rest = text.partition(":")
    if colon or site in SITES or not Path(text).exists():
        return [parse(text)]
    return load(Path(text))
