"""The figure of a sweep, as SVG or HTML: throughput in virtual time against CPUs, a panel for each work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from math import ceil, floor, log2, log10

from aether_emu.observe.scaling.sweep import SCHEMES, WORKS, Point

_COLOURS = {"space": "#b3392f", "area": "#8a6d1a", "leaf": "#1f5fa8"}
_DASHES = {"space": "2 3", "area": "7 4", "leaf": "none"}
_MEANT = {
    "space": "one lock for the address space, one for the allocator",
    "area": "areas' and leaf tables' locks beside the space's (Linux)",
    "leaf": "leaf tables' locks in place of the space's",
}
_WIDTH, _HEIGHT, _LEFT, _TOP = 300, 190, 56, 96  # of a panel's plot, and before it
_STEP_X, _STEP_Y, _COLUMNS = 390, 270, 2
_APART = 16  # of two numbers below a panel, so that both can be read


def as_svg(isa: str, seed: int, points: Sequence[Point]) -> str:
    """One picture; it says that locks and time are modelled."""
    works = [work for work in WORKS if any(point.work == work.name for point in points)]
    schemes = [scheme for scheme in SCHEMES if any(point.scheme == scheme for point in points)]
    rows = -(-len(works) // _COLUMNS)
    width, height = _STEP_X * _COLUMNS + 20, _TOP + _STEP_Y * rows
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="12" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        _text(16, 24, "Throughput against CPUs, by scheme of locks (modelled)", size=16),
        _text(
            16,
            42,
            f"{isa}, seed {seed}. Million operations per second of virtual time. Programs execute; "
            "locks, interrupts and time are modelled.",
        ),
    ]
    for number, scheme in enumerate(schemes):
        y = 60 + number * 15
        parts.append(_line(16, y, 46, y, _COLOURS[scheme], _DASHES[scheme], 2))
        parts.append(_text(54, y + 4, f"{scheme}: {_MEANT[scheme]}", size=11))
    for number, work in enumerate(works):
        x, y = _LEFT + number % _COLUMNS * _STEP_X, _TOP + 24 + number // _COLUMNS * _STEP_Y
        parts += _panel(x, y, work.what, [point for point in points if point.work == work.name])
    return "\n".join([*parts, "</svg>", ""])


def _panel(x: int, y: int, title: str, points: Sequence[Point]) -> Iterator[str]:
    counts = sorted({point.cpus for point in points})
    most = max(1.0, log2(counts[-1]))
    low = floor(log10(min(point.throughput for point in points)))
    high = max(low + 1, ceil(log10(max(point.throughput for point in points))))

    def across(cpus: int) -> float:
        return round(x + log2(cpus) / most * _WIDTH, 1)

    def up(value: float) -> float:
        return round(y + _HEIGHT - (log10(value) - low) / (high - low) * _HEIGHT, 1)

    yield _text(x, y - 8, title, size=11)
    for power in range(low, high + 1):
        yield _line(x, up(10**power), x + _WIDTH, up(10**power), "#ddd", "none", 1)
        yield _text(x - 6, up(10**power) + 4, f"{10.0**power:g}", anchor="end", size=10)
    for cpus in _readable(counts, across):
        yield _text(across(cpus), y + _HEIGHT + 16, str(cpus), anchor="middle", size=10)
    yield _text(x + _WIDTH / 2, y + _HEIGHT + 32, "CPUs", anchor="middle", size=10)
    for scheme in reversed(SCHEMES):  # the dashed lines above the solid one, which may be the same
        row = sorted((point for point in points if point.scheme == scheme), key=lambda point: point.cpus)
        if row:
            places = [(across(point.cpus), up(point.throughput)) for point in row]
            path = " ".join(f"{a},{b}" for a, b in places)
            yield (
                f'<polyline points="{path}" fill="none" stroke="{_COLOURS[scheme]}" stroke-width="2" '
                f'stroke-dasharray="{_DASHES[scheme]}"/>'
            )
            for (a, b), point in zip(places, row, strict=True):
                shown = f"{scheme}, {point.cpus} CPUs: {point.throughput:.3g}"
                dot = f'<circle cx="{a}" cy="{b}" r="3" fill="{_COLOURS[scheme]}">'
                yield f"{dot}<title>{shown}</title></circle>"


def _readable(counts: Sequence[int], across: Callable[[int], float]) -> list[int]:
    """The numbers of CPUs that have room for their names, the largest always among them."""
    found: list[int] = []
    for cpus in reversed(counts):
        if not found or across(found[-1]) - across(cpus) >= _APART:
            found.append(cpus)
    return found[::-1]


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dash: str, width: int) -> str:
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" stroke-width="{width}" '
        f'stroke-dasharray="{dash}"/>'
    )


def as_html(isa: str, seed: int, points: Sequence[Point]) -> str:
    """The picture on a page, with a table of every point and its locks below it."""
    head = (
        "work",
        "locks",
        "CPUs",
        "operations",
        "virtual us",
        "million/s",
        "shootdowns",
        "locks waited for",
    )
    rows = ["<tr>" + "".join(f"<th>{name}</th>" for name in head) + "</tr>"]
    for point in points:
        waits = ", ".join(
            f"{kind} {each['contended']:,} of {each['taken']:,} ({each['waited_ns'] / 1000:,.1f} us)"
            for kind, each in point.locks.items()
            if each["contended"]
        )
        cells = [point.work, point.scheme, str(point.cpus), f"{point.operations:,}"]
        cells += [f"{point.ns / 1000:,.1f}", f"{point.throughput:.3g}", f"{point.interrupts:,}"]
        cells.append(waits or "none")
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            "<title>Scaling with CPUs (modelled)</title>",
            "<style>body{font-family:sans-serif;max-width:60em;margin:2em auto;color:#222;background:#fff}"
            "table{border-collapse:collapse;font-size:12px}td,th{padding:2px 8px;text-align:left;"
            "border-bottom:1px solid #ddd}svg{max-width:100%;height:auto}</style></head><body>",
            as_svg(isa, seed, points),
            "<table>",
            *rows,
            "</table></body></html>",
            "",
        ]
    )
