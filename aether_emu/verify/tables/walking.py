"""Other people's page tables: an image, a format and the roots; and one address walked and explained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from aether_emu.address import PhysAddr, VirtAddr
from aether_emu.errors import ConfigError, NeededError
from aether_emu.verify.tables.format_names import format_of
from aether_emu.verify.tables.formats import Format, Kind, Right, Words
from aether_emu.verify.tables.images import Image, image_of, open_image
from aether_emu.verify.tables.notes import Registers

Source = Image | str | os.PathLike[str] | bytes | bytearray | memoryview | Words
"""An image, the path of one, or memory itself from physical 0 on."""


@dataclass(frozen=True, slots=True)
class Tables:
    """Page tables in an image. A root is None for a half that nobody named."""

    image: Image
    format: Format
    roots: tuple[PhysAddr | None, ...]
    guessed: bool = False  # the encryption bit is the only one that makes sense of the root's entries

    @property
    def title(self) -> str:
        """The format, and the encryption bit if there is one."""
        bit = self.format.registers.encryption_bit
        if bit is None:
            return self.format.name
        return f"{self.format.name}, encryption bit {bit}" + (
            ", found from the tables" if self.guessed else ""
        )


def open_tables(
    source: Source,
    *,
    root: int | None = None,
    root1: int | None = None,
    format: str | None = None,
    registers: Registers | None = None,
) -> Tables:
    """The tables at `root` (CR3 or TTBR0_EL1) and `root1` (TTBR1_EL1), as those registers hold them.

    What is left out, the image's notes tell; `registers` takes their place. Raises ImageError, and
    ConfigError where nobody tells the format or a root, or a root has no place.
    """
    image = _image(source)
    known = image.registers if registers is None else registers
    name = format or known.format
    if name is None:
        raise NeededError("format", f"{image.name} is {image.phrase} and does not tell")
    told = known if known.isa in (None, name.split("-")[0]) else Registers()
    rules = format_of(name, told)
    given = (root, root1)
    if given == (None, None):
        if known.isa not in (None, rules.isa) or known.roots[0] is None:
            raise NeededError("root", f"{image.name} is {image.phrase} and does not tell")
        given = known.roots
    if len(rules.halves) == 1 and root1 is not None:
        raise ConfigError("root1", hex(root1), "it has one root", refusal="is not possible on x86_64")
    for half, register in zip(rules.halves, given, strict=False):
        if register is not None and not 0 <= register < 1 << 64:
            raise ConfigError("root", register, f"what {half.name} can hold")
    guessed = None
    if told.encryption_bit is None:
        guessed = _encryption_bit(image, name, told, given)
        rules = format_of(name, replace(told, encryption_bit=guessed))
    roots: list[PhysAddr | None] = []
    for register in given[: len(rules.halves)]:
        at = None if register is None else PhysAddr(rules.root(register))
        if at is not None and at % min(rules.page, 8 << rules.widths[-1]):
            raise ConfigError("root", hex(at), "a multiple of the table's size")
        roots.append(at)
    return Tables(image, rules, tuple(roots), guessed is not None)


def _encryption_bit(image: Image, name: str, told: Registers, roots: Sequence[int | None]) -> int | None:
    """The one address bit that all entries of the root have, without which alone their tables are memory."""
    for root in roots:
        if root is None:
            continue
        plain = format_of(name, told)
        if _leads(image, plain, root):
            return None
        bits = [
            bit
            for bit in range(32, plain.address_bits)
            if _leads(image, format_of(name, replace(told, encryption_bit=bit)), root, every=True)
        ]
        if len(bits) == 1:
            return bits[0]
    return None


def _leads(image: Image, rules: Format, root: int, *, every: bool = False) -> bool:
    """Whether a root has entries for tables of the image; `every`: no others, all with the bit."""
    top = rules.levels
    at = np.array([rules.root(root)], np.uint64)
    if at[0] % np.uint64(8) or not image.touches(at, rules.table_size(top)).all():
        return False
    words, backed = image.tables(at, 1 << rules.widths[top - 1])
    entries = words[backed]
    entries = entries[entries & np.uint64(1) != 0]
    entries = entries[rules.kinds(entries, top)[0] == Kind.TABLE]
    there = image.touches(rules.next_tables(entries), rules.table_size(top - 1))
    if every:
        return bool(entries.size and (there & rules.encrypted(entries)).all())
    return bool(there.any())


def _image(source: Source) -> Image:
    if isinstance(source, Image):
        return source
    return open_image(source) if isinstance(source, str | os.PathLike) else image_of(source)


# ---- one address


@dataclass(frozen=True, slots=True)
class Step:
    """One level of a walk: the entry, where it stands, and its fields in words. None: not in the image."""

    level: str
    index: int
    at: PhysAddr
    entry: int | None
    fields: str


@dataclass(frozen=True, slots=True)
class Walk:
    """What an address leads to. `physical` is None where it leads nowhere, and `fault` says why."""

    address: VirtAddr
    steps: tuple[Step, ...]
    physical: PhysAddr | None
    page: int
    rights: Right
    memory: str
    fault: str
    backed: bool  # the image has the page


def walk(
    source: Source | Tables, address: int, *, root: int | None = None, root1: int | None = None,
    format: str | None = None,
) -> Walk:  # fmt: skip
    """Walk one virtual address by the specification. Options and errors are those of `open_tables`."""
    found = (
        source if isinstance(source, Tables) else open_tables(source, root=root, root1=root1, format=format)
    )
    rules, image = found.format, found.image
    if not 0 <= address < 1 << 64:
        raise ConfigError("address", address, "64 bits")
    asked = VirtAddr(address, 64)
    half = len(rules.halves) - 1 if address >> 55 & 1 else 0
    if found.roots[half] is None:
        why = f"no root: {rules.halves[half].name} translates this half, and nobody named it"
        return Walk(asked, (), None, 0, Right(0), "", why, False)
    read: dict[int, tuple[PhysAddr, int | None]] = {}

    def fetch(level: int, at: Words) -> Words:
        words, backed = image.read(at)
        if at.size:
            read[level] = PhysAddr(int(at[0])), int(words[0]) if backed[0] else None
        return words

    walked = rules.walk(fetch, [at or 0 for at in found.roots], address)
    steps = []
    for level in sorted(read, reverse=True):
        at, entry = read[level]
        leaf = level == min(read) and walked.mapped
        text = "not in the image" if entry is None else rules.fields(entry, level, leaf=leaf)
        width, shift = rules.widths[level - 1], rules.shifts[level - 1]
        index = address >> shift & (1 << width) - 1
        steps.append(Step(rules.level_names[level - 1], index, at, entry, text))
    fault = walked.fault
    if steps and steps[-1].entry is None:
        fault = f"the {steps[-1].level} table at {steps[-1].at & -8:#x} is not in the image"
    elif not steps:
        fault += ": the address is outside the half's range" if rules.isa == "arm64" else ""
    if not walked.mapped:
        return Walk(asked, tuple(steps), None, 0, Right(0), "", fault, False)
    page = np.array([walked.physical & -walked.size], np.uint64)
    there = int(image.existing(page, np.array([walked.size], np.uint64))[0])
    memory = rules.memory_name(walked.memory)
    return Walk(
        asked, tuple(steps), PhysAddr(walked.physical), walked.size, walked.rights, memory, fault,
        there == walked.size,
    )  # fmt: skip
