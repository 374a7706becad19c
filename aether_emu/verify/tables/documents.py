"""What `--json` prints: one document for each command. docs/verify.md describes them.

Addresses, entries and sizes of ranges are hexadecimal text, since a reader whose numbers have 53 bits would
change them; counts, levels and sizes of pages are numbers. Rows become text many at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np

from aether_emu.verify.tables.diff import Change, Difference, State
from aether_emu.verify.tables.diff_lines import changes
from aether_emu.verify.tables.formats import Numbers, Right, Words
from aether_emu.verify.tables.layout import Pages, flag_names, kind_of, letters, slices
from aether_emu.verify.tables.listing import STAYS, Listing
from aether_emu.verify.tables.survey import Survey
from aether_emu.verify.tables.text import Part, chosen, constant, hexadecimal, lines, size_text
from aether_emu.verify.tables.walking import Step, Tables, Walk
from aether_emu.verify.tables.who import Owners

Rows = Callable[[slice], list[Part]]


def shown(items: Listing) -> Iterator[bytes]:
    """Of `show`: what is listed, as `ranges` and `repeats`, and `totals` of everything."""
    ranges, repeats = (np.flatnonzero((items.repeats != 0) == again) for again in (False, True))
    found = items.found
    head = {**_tables(found.tables), "totals": _totals(found)}
    return _document(
        head,
        {
            "ranges": (ranges.size, lambda rows: _range(items, ranges[rows])),
            "repeats": (repeats.size, lambda rows: _repeat(items, repeats[rows])),
        },
    )


def walked(tables: Tables, walks: Iterable[Walk]) -> Iterator[bytes]:
    """Of `walk`: `walks` in the order of the addresses."""
    data = {**_tables(tables), "walks": [_walk(one) for one in walks]}
    yield json.dumps(data, indent=1).encode()


def owned(tables: Tables, owners: Iterable[Owners]) -> Iterator[bytes]:
    """Of `who`: `pages` in the order of the addresses."""
    yield _opening(_tables(tables)) + b', "pages": ['
    for number, one in enumerate(owners):
        head = {
            "physical": f"{one.physical:#x}", "in_image": one.backed, "complete": one.complete,
            "tables": [
                {
                    "level": use.level, "table": f"{use.table:#x}", "start": f"{use.start:#x}",
                    "end": f"{use.end:#x}", "entry": use.entry, "translates": f"{use.translates:#x}",
                    "at": None if use.at is None else f"{use.at:#x}",
                }
                for use in one.tables
            ],
        }  # fmt: skip
        yield b",\n" if number else b"\n"
        yield from _document(head, {"mappings": (one.address.size, partial(_mapping, one))})
    yield b"\n]}"


def differing(old: Tables, new: Tables, found: Difference) -> Iterator[bytes]:
    """Of `diff`: `old` and `new` tell what was compared, `ranges` where they differ."""
    head = {"old": _tables(old), "new": _tables(new), "same": not len(found)}
    return _document(head, {"ranges": (len(found), lambda rows: _differing(found, rows))})


def _opening(head: dict[str, object]) -> bytes:
    return json.dumps(head).encode()[:-1]


def _document(head: dict[str, object], arrays: dict[str, tuple[int, Rows]]) -> Iterator[bytes]:
    """The fields of `head` and then arrays with a row a line, some rows at once."""
    yield _opening(head)
    for name, (count, rows_of) in arrays.items():
        yield f', "{name}": ['.encode()
        for rows in slices(count):
            size = rows.stop - rows.start
            text = lines([constant("\n", size), *rows_of(rows), constant(",", size)])
            yield text if rows.stop < count else text[:-1]
        yield b"]"
    yield b"}"


def _tables(tables: Tables) -> dict[str, object]:
    rules = tables.format
    return {
        "image": tables.image.name,
        "format": rules.name,
        "roots": {
            half.name: None if root is None else f"{root:#x}"
            for half, root in zip(rules.halves, tables.roots, strict=True)
        },
        "encryption_bit": rules.registers.encryption_bit,
    }


def _totals(found: Survey) -> dict[str, object]:
    rules = found.tables.format
    pages = {size_text(1 << shift): count for count, shift in zip(found.pages, rules.shifts, strict=True)}
    mapped = sum(count << shift for count, shift in zip(found.pages, rules.shifts, strict=True))
    uses = dict(zip(rules.level_names, found.uses, strict=True))
    return {"mapped": f"{mapped:#x}", "pages": pages, "tables": uses, "wrong": found.wrong + found.skipped}


def _span(start: Words, size: Words) -> list[Part]:
    """The fields `start` and `end`, which may be 2**64."""
    end, count = start + size, start.size
    whole = end == 0
    return [
        constant('{"start": "0x', count), hexadecimal(start), constant('", "end": "0x', count),
        hexadecimal(end).where(~whole), constant("1" + "0" * 16, count).where(whole), constant('"', count),
    ]  # fmt: skip


def _page_fields(rights: Right, page: int, memory: str) -> str:
    user, own = letters(rights)
    fields = {"page": page, "user": user, "kernel": own, "flags": flag_names(rights), "memory": memory}
    return json.dumps(fields)[1:-1]


def _pages(pages: Pages) -> Part:
    """The fields `page`, `user`, `kernel`, `flags` and `memory`."""
    kinds, which = np.unique(pages.keys, return_inverse=True)
    texts = []
    for key in kinds.tolist():
        page, rights, memory = kind_of(pages.rules, key)
        texts.append(_page_fields(rights, page, memory))
    return chosen(texts, which)


def _target(frame: Words, pieces: Numbers) -> list[Part]:
    """The fields `physical` and `pieces`."""
    counts, which = np.unique(pieces, return_inverse=True)
    count = frame.size
    return [
        constant('"physical": "0x', count), hexadecimal(frame), constant('", "pieces": ', count),
        chosen([str(one) for one in counts.tolist()], which),
    ]  # fmt: skip


def _range(items: Listing, rows: Numbers) -> list[Part]:
    pages = Pages(items.found.tables.format, items.level[rows], items.rights[rows], items.memory[rows])
    comma, end = constant(", ", rows.size), constant("}", rows.size)
    target = _target(items.physical[rows], items.pieces[rows])
    return [*_span(items.start[rows], items.size[rows]), comma, _pages(pages), comma, *target, end]


def _repeat(items: Listing, rows: Numbers) -> list[Part]:
    levels = [f'", "level": "{name}"' for name in ("", *items.found.tables.format.level_names)]
    count = rows.size
    return [
        *_span(items.start[rows], items.size[rows]), constant(', "as_at": "0x', count),
        hexadecimal(items.first[rows]), chosen(levels, items.repeats[rows]),
        constant(', "table": "0x', count), hexadecimal(items.physical[rows]), constant('"}', count),
    ]  # fmt: skip


def _mapping(owners: Owners, rows: slice) -> list[Part]:
    leaves, leaf = owners.found.leaves, owners.leaf[rows]
    count = leaf.size
    return [
        constant('{"virtual": "0x', count), hexadecimal(owners.address[rows]), constant('", ', count),
        _pages(owners.pages(rows)), constant(', "entry": "0x', count), hexadecimal(leaves.entry[leaf]),
        constant('", "at": "0x', count), hexadecimal(leaves.at[leaf]), constant('"}', count),
    ]  # fmt: skip


def _differing(found: Difference, rows: slice) -> list[Part]:
    kinds, which = np.unique(found.change[rows], return_inverse=True)
    texts = []
    for kind in kinds.tolist():
        how = "mapped" if kind & Change.MAPPED else "unmapped" if kind & Change.UNMAPPED else "changed"
        texts.append(f', "how": "{how}", "what": {json.dumps(changes(kind))}')
    return [
        *_span(found.start[rows], found.size[rows]), chosen(texts, which), *_side("old", found.old, rows),
        *_side("new", found.new, rows), constant("}", which.size),
    ]  # fmt: skip


def _side(name: str, state: State, rows: slice) -> list[Part]:
    """The field `old` or `new`: null where nothing is mapped."""
    pages = state.pages[rows]
    there = pages.level != 0
    count = there.size
    parts = [
        constant("{", count), _pages(pages), constant(", ", count),
        *_target(state.targets.frame[rows], state.targets.pieces[rows]), constant("}", count),
    ]  # fmt: skip
    return [
        constant(f', "{name}": ', count), *(part.where(there) for part in parts),
        constant("null", count).where(~there),
    ]  # fmt: skip


def _fields(step: Step) -> dict[str, int]:
    """The fields of a present entry that are not 0, by name."""
    if step.entry is None or not step.entry & 1:
        return {}
    words = (word.partition("=") for word in step.fields.split())
    return {name: int(value or 1) for name, _sign, value in words}


def _walk(found: Walk) -> dict[str, object]:
    user, own = letters(found.rights)
    leaf = found.physical is not None
    return {
        "address": f"{found.address:#x}",
        "physical": f"{found.physical:#x}" if leaf else None,
        "page": found.page if leaf else None,
        "user": user if leaf else None,
        "kernel": own if leaf else None,
        "flags": flag_names(found.rights & Right(int(STAYS))) if leaf else None,
        "memory": found.memory if leaf else None,
        "in_image": found.backed,
        "fault": found.fault or None,
        "steps": [
            {
                "level": step.level,
                "index": step.index,
                "at": f"{step.at:#x}",
                "entry": None if step.entry is None else f"{step.entry:#x}",
                "fields": _fields(step),
            }
            for step in found.steps
        ],
    }
