"""The pictures of docs/, drawn from the code's tables and from real runs: `python -m tests.docs.pictures`.

Every bit, address and entry in them is read from `arch/*`, or from the memory of a program that ran. The same
code draws the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from aether_emu import Grants, Machine
from aether_emu.arch.arm64.stage1 import ArmFormat
from aether_emu.arch.paging import BitField, PageTableFormat
from aether_emu.arch.x86_64.stage1 import X86Format
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.proc.texts import maps_text
from aether_emu.linux.task.process import Process
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.protection import Protection
from aether_emu.mm.tables.walk import Mapped, Walk
from aether_emu.mm.user import UserMemory
from tests.docs.svg import FAINT, Drawing

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"
TOURS = {isa: ROOT / "guest" / "bin" / isa / "tour" for isa in ("x86_64", "arm64")}
WITH_DATA = (
    ROOT / "tests" / "programs" / "bin" / "x86_64" / "control-glibc"
)  # it has a file's page to store into
SEED = 7

RIGHTS, ADDRESS, OBSERVED, OTHER = "#fde68a", "#bfdbfe", "#bbf7d0", "#e5e7eb"
_COLOURS = {
    **dict.fromkeys(("W", "U", "NX", "AP1", "AP2", "UXN", "PXN", "PXNT", "UXNT", "APT", "PKEY"), RIGHTS),
    **dict.fromkeys(("A", "D", "AF", "DBM", "SD"), OBSERVED),
    "ADDR": ADDRESS,
}

_KINDS = {
    Kind.ZERO: "the page of zeros",
    Kind.FILE: "the file's page",
    Kind.ANON: "a frame of the program's own",
}

# ---- what the bits of an entry mean


def entry_layouts(title: str, rows: Sequence[tuple[str, PageTableFormat, int, int]]) -> Drawing:
    """The fields of entries, (name, format, entry, level) each, from bit 63 down, and their meanings."""
    drawing = Drawing(1000, title)
    meanings: dict[str, str] = {}
    y = 0
    for name, fmt, entry, level in rows:
        fields = sorted(fmt.fields(entry, level), key=lambda field: -field.low)
        meanings |= {field.name: field.meaning for field in fields if field.name != "ADDR"}
        drawing.text(10, y + 22, name, size=14)
        _entry(drawing, y + 34, fields)
        y += 92
    for number, (field, meaning) in enumerate(sorted(meanings.items())):
        x, line = 10 + 330 * (number % 3), y + 20 + 18 * (number // 3)
        drawing.text(x, line, f"{field:<5}{meaning}"[:54], size=11, fill=FAINT)
    return drawing


def _entry(drawing: Drawing, y: int, fields: list[BitField]) -> None:
    """One entry as a row of cells. A cell is as wide as its name needs, not as its bits."""
    cells: list[tuple[str, int, int]] = []
    above = 64
    for field in (*fields, None):
        low = field.low + field.width if field is not None else 0
        if low < above:
            cells.append(("", above - 1, low))
        if field is not None:
            cells.append((field.name, field.low + field.width - 1, field.low))
            above = field.low
    wide = 980 - 44 * sum(name != "ADDR" for name, _, _ in cells)
    x = 10
    for name, high, low in cells:
        width = wide if name == "ADDR" else 44
        drawing.box(x, y + 14, width, 26, fill=_COLOURS.get(name, OTHER if name else "#ffffff"))
        drawing.text(x + width / 2, y + 31, name or "-", size=11, anchor="middle")
        drawing.text(
            x + width / 2,
            y + 9,
            f"{high}" if high == low else f"{high}..{low}",
            size=9,
            anchor="middle",
            fill=FAINT,
        )
        x += width


def x86_entries() -> Drawing:
    fmt = X86Format(4)
    rows = [
        ("a 4 KiB page, in a PT", fmt, 1, 1),
        ("a 2 MiB page, in a PD", fmt, 0x81, 2),
        ("a table, in a PD", fmt, 1, 2),
    ]
    return entry_layouts("x86_64: entries of page tables", rows)


def arm_entries() -> Drawing:
    fmt = ArmFormat(4096)
    rows = [
        ("a 4 KiB page, in an L3 table", fmt, 3, 1),
        ("a 2 MiB block, in an L2 table", fmt, 1, 2),
        ("a table, in an L2 table", fmt, 3, 2),
    ]
    return entry_layouts("arm64: entries of page tables, 4 KiB granule", rows)


# ---- a walk


def walk_of(isa: str) -> Drawing:
    """How the MMU found a page of the tour that it had stored into: its stack."""
    machine, process = _ran(isa)
    try:
        (stack,) = (area for area in process.mm.areas if area.name == "[stack]")
        va = stack.end - process.mm.page_size + 0x7B8
        return _walk(f"{isa}: from {va:#x} to memory", machine.format, process.mm.walk(va), va)
    finally:
        machine.close()


def _walk(title: str, fmt: PageTableFormat, walk: Walk, va: int) -> Drawing:
    assert isinstance(walk, Mapped)
    drawing = Drawing(860, title)
    drawing.text(10, 22, f"virtual address {va:#x}", size=14)
    parts = [(fmt.level_name(step.level), fmt.levels[step.level - 1]) for step in walk.steps]
    width = 820 / (len(parts) + 1)
    for number, (name, level) in enumerate(parts):
        _part(
            drawing,
            10 + width * number,
            width,
            f"bits {level.shift + level.bits - 1}..{level.shift}",
            f"{name}[{va >> level.shift & level.entries - 1}]",
        )
    _part(
        drawing,
        10 + width * len(parts),
        width,
        f"bits {fmt.page_shift - 1}..0",
        f"offset {va & fmt.page_size - 1:#x}",
    )
    y = 112
    for step in walk.steps:
        level = fmt.levels[step.level - 1]
        table = step.address & -8 * level.entries
        index = va >> level.shift & level.entries - 1
        drawing.text(10, y, f"{fmt.level_name(step.level)} table at {table:#x}", size=12)
        drawing.box(10, y + 8, 820, 28, fill=OTHER if step.level > 1 else RIGHTS)
        drawing.text(20, y + 27, f"[{index}]", size=12)
        drawing.text(84, y + 27, fmt.describe(step.entry, step.level).split(" ", 1)[1], size=12)
        drawing.arrow((40, y + 36), (40, y + 56))
        y += 72
    drawing.text(10, y, f"physical address {walk.address:#x}", size=14)
    return drawing


def _part(drawing: Drawing, x: float, width: float, bits: str, name: str) -> None:
    drawing.box(x, 48, width, 28, fill=ADDRESS)
    drawing.text(x + width / 2, 66, name, size=12, anchor="middle")
    drawing.text(x + width / 2, 43, bits, size=10, anchor="middle", fill=FAINT)


# ---- an address space


def address_space() -> Drawing:
    """What the tour's /proc/self/maps says at its end, drawn from the highest address down."""
    machine, process = _ran("x86_64")
    try:
        lines = [line.split(maxsplit=5) for line in maps_text(process).decode().splitlines()]
    finally:
        machine.close()
    drawing = Drawing(480, "x86_64: the address space of a program")
    y, above = 12, 0
    for line in reversed(lines):
        start, end = (int(address, 16) for address in line[0].split("-"))
        if above and above != end:
            drawing.box(10, y, 300, 26, dashed=True)
            drawing.text(
                160, y + 17, f"{_size(above - end)} of nothing", size=11, anchor="middle", fill=FAINT
            )
            y += 26
        drawing.box(10, y, 300, 44, fill=RIGHTS if "w" in line[1] else ADDRESS if "x" in line[1] else OTHER)
        name = os.path.basename(line[5]) if len(line) > 5 else "anonymous"
        drawing.text(160, y + 19, f"{name}", size=12, anchor="middle")
        drawing.text(160, y + 36, f"{line[1]}  {_size(end - start)}", size=11, anchor="middle", fill=FAINT)
        drawing.text(322, y + 12, f"{end:#x}", size=11)
        drawing.text(322, y + 41, f"{start:#x}", size=11)
        y, above = y + 44, start
    return drawing


def _size(size: int) -> str:
    for unit, shift in (("EiB", 60), ("TiB", 40), ("GiB", 30), ("MiB", 20)):
        if size >> shift:
            return f"{size / (1 << shift):.1f} {unit}"
    return f"{size >> 10} KiB"


# ---- copy-on-write


def copy_on_write() -> Drawing:
    """A page's leaf before any access, after a load, after a store: fresh memory, and a private file's."""
    drawing = Drawing(900, "x86_64: what a load and a store make of a leaf")
    machine = Machine(arch="x86_64", ram="64M", seed=SEED)
    try:
        process = _load(machine, WITH_DATA)
        areas = [area for area in process.mm.areas if area.name != "[stack]"]
        writable = [area for area in areas if area.protection & Protection.WRITE]
        fresh = next(area for area in writable if area.backing is None)
        data = next(area for area in writable if area.backing is not None)
        y = 0
        for title, area in (
            ("fresh memory, such as .bss", fresh),
            ("a page of a file, mapped privately", data),
        ):
            drawing.text(10, y + 24, title, size=14)
            y = _leaves(drawing, y + 40, machine, process, area.start)
    finally:
        machine.close()
    return drawing


def _leaves(drawing: Drawing, y: int, machine: Machine, process: Process, page: int) -> int:
    memory, table = UserMemory(process.mm), process.mm.table
    for what, act in (
        ("nothing yet", lambda: None),
        ("after a load", lambda: memory.read(page, 8)),
        ("after a store", lambda: memory.write(page, b"stored")),
    ):
        act()
        walk = process.mm.walk(page)
        entry = walk.steps[-1]
        leaf = isinstance(walk, Mapped)
        said = table.format.describe(entry.entry, entry.level)
        drawing.text(20, y + 19, what, size=12)
        drawing.box(150, y, 730, 28, fill=(RIGHTS if "W=" in said and leaf else OTHER if leaf else "#ffffff"))
        drawing.text(160, y + 18, said, size=11)
        if isinstance(walk, Mapped):
            kind = Kind(machine.frames.kind[machine.frames.number(walk.address)])
            drawing.text(160, y + 42, f"{_KINDS[kind]}, at {walk.address:#x}", size=11, fill=FAINT)
        y += 58 if leaf else 36
    return y


# ----


def _ran(isa: str) -> tuple[Machine, Process]:
    """A machine on which the tour has ended, its memory as it left it. What it prints is dropped."""
    machine = Machine(arch=isa, ram="64M", seed=SEED)
    process = _load(machine, TOURS[isa])
    assert machine.run().code == 0
    return machine, process


def _load(machine: Machine, program: Path) -> Process:
    """Load it from a root of its own: where this checkout stands must not move the program's stack."""
    silence = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    grants = Grants(root=program.parent)
    return machine.load(f"/{program.name}", [program.name], grants=grants, streams=silence)


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "entries-x86_64": x86_entries,
    "entries-arm64": arm_entries,
    "walk-x86_64": lambda: walk_of("x86_64"),
    "walk-arm64": lambda: walk_of("arm64"),
    "address-space": address_space,
    "copy-on-write": copy_on_write,
}


def main() -> None:
    for name, draw in DRAWINGS.items():
        (PICTURES / f"{name}.svg").write_text(draw().source(), encoding="utf-8")


if __name__ == "__main__":
    main()
