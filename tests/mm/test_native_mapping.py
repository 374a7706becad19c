"""The same random calls to this host's kernel and to ours: the same answers, bytes and permissions.

A judge that nobody here wrote. Only what all kernels agree on is asked: fixed places, sources of mremap
inside one area, no growing stacks, no MADV_FREE (which frees when it likes), nothing executable (which a host
may forbid).
"""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from aether_emu.errors import Refused
from aether_emu.machine.cpu import UserFault
from aether_emu.mm import locking, mapping
from aether_emu.mm.allocation import LOCKS, Area, AreaFlags
from aether_emu.mm.mapping import (
    MADV_DODUMP,
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_KEEPONFORK,
    MADV_NORMAL,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_RANDOM,
    MADV_SEQUENTIAL,
    MADV_WILLNEED,
    MADV_WIPEONFORK,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_PRIVATE,
    MAP_SHARED,
    MS_ASYNC,
    MS_INVALIDATE,
    MS_SYNC,
    Request,
)
from aether_emu.mm.protection import Protection
from aether_emu.mm.remap import MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE, Remap, remap_memory
from aether_emu.mm.space import AddressSpace
from tests.mm import native_calls
from tests.mm.board import FORMATS, Board, GrantedFile
from tests.mm.native_calls import PAGE, PAGES

# Advice that every kernel keeps in its areas.
KEPT = (MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_DONTFORK, MADV_DOFORK, MADV_DONTDUMP, MADV_DODUMP,
        MADV_WIPEONFORK, MADV_KEEPONFORK)  # fmt: skip
LETTERS = (
    ("lo", AreaFlags.LOCKED), ("sr", AreaFlags.SEQUENTIAL), ("rr", AreaFlags.RANDOM),
    ("dc", AreaFlags.NO_FORK), ("lf", AreaFlags.LOCK_ON_FAULT), ("wf", AreaFlags.WIPE_ON_FORK),
    ("dd", AreaFlags.NO_DUMP),
)  # fmt: skip
RIGHTS = (0, 1, 1, 3, 3, 3, 2)
Call = tuple[str, list[int]]


def content(page: int) -> bytes:
    """A file of two pages and a half."""
    return (b"A" * page + b"B" * page + b"C" * page)[: page * 5 // 2]


def _letters(area: Area) -> str:
    return " ".join(letters for letters, flag in LETTERS if area.flags & flag)


class Ours:
    """The calls of `native_calls.Host`, on an address space of ours, in pages of its own size."""

    def __init__(self, board: Board, space: AddressSpace, path: Path) -> None:
        self._board, self._space = board, space
        self._page, self._base = board.format.page_size, 1 << 36
        self._file = GrantedFile(board, path)

    def answer(self, name: str, arguments: list[int]) -> int | str:
        try:
            return self._answer(name, arguments)
        except Refused as refused:
            return errno.errorcode[refused.errno]
        except UserFault:
            return "EFAULT"

    def _answer(self, name: str, arguments: list[int]) -> int:
        space, at = self._space, self._base + arguments[0] * self._page
        match name, arguments[1:]:
            case "load", []:
                return int(self._board.cpu.copy_from_user(at, 1)[0])
            case "store", [byte]:
                self._board.cpu.copy_to_user(at, bytes([byte]))
            case "mmap", [count, protection, flags, of_file, offset]:
                file = self._file if of_file else None
                request = Request(at, count * self._page, protection, flags, file, offset * self._page)
                return (mapping.map_memory(space, request) - self._base) // self._page
            case "munmap", [count]:
                mapping.unmap_memory(space, at, count * self._page)
            case "mprotect", [count, protection]:
                mapping.protect_memory(space, at, count * self._page, protection)
            case "mremap", [old, new, flags, target]:
                remap = Remap(at, old * self._page, new * self._page, flags, self._base + target * self._page)
                return (remap_memory(space, remap) - self._base) // self._page
            case "madvise", [count, advice]:
                mapping.advise_memory(space, at, count * self._page, advice)
            case "msync", [count, flags]:
                mapping.sync_memory(space, at, count * self._page, flags)
            case "mlock2", [count, _on_fault]:
                locking.lock_memory(space, at, count * self._page, LOCKS)
            case "munlock", [count]:
                locking.unlock_memory(space, at, count * self._page)
        return 0

    def flags(self) -> list[str]:
        areas = (self._space.areas.find(self._base + number * self._page) for number in range(PAGES))
        return ["" if area is None else _letters(area) for area in areas]

    def permissions(self) -> list[str]:
        found = []
        for number in range(PAGES):
            area = self._space.areas.find(self._base + number * self._page)
            if area is None:
                found.append("")
            else:
                letters = ((Protection.READ, "r"), (Protection.WRITE, "w"), (Protection.EXECUTE, "x"))
                rights = "".join(letter if area.protection & right else "-" for right, letter in letters)
                found.append(rights + ("s" if area.shared else "p"))
        return found

    def mapped(self, at: int) -> bool:
        return self._space.areas.find(self._base + at * self._page) is not None

    def one_area(self, at: int, count: int) -> bool:
        """Whether a range lies in one area, or begins in none."""
        area = self._space.areas.find(self._base + at * self._page)
        return area is None or self._base + (at + count) * self._page <= area.end


def choose(random: Random, ours: Ours) -> Call:
    """A call that every kernel answers alike."""
    at, count = random.randrange(PAGES - 8), random.randint(0, 8)
    match random.choice(
        (*("load", "store", "store", "mmap", "mmap", "munmap", "mprotect", "mremap"),
         *("madvise", "madvise", "msync", "mlock2", "munlock"))
    ):  # fmt: skip
        case "load":
            return "load", [at]
        case "store":
            return "store", [at, random.randrange(256)]
        case "mmap":
            of_file, kind = random.randrange(2), random.choice((MAP_PRIVATE, MAP_SHARED))
            flags = kind | random.choice((MAP_FIXED, MAP_FIXED, MAP_FIXED_NOREPLACE))
            flags |= 0 if of_file else MAP_ANONYMOUS
            return "mmap", [at, count, random.choice(RIGHTS), flags, of_file, of_file * random.randrange(3)]
        case "munmap":
            return "munmap", [at, count]
        case "mprotect":
            return "mprotect", [at, count, random.choice(RIGHTS)]
        case "mremap":
            old, new, target = count, random.randint(0, 6), random.randrange(PAGES - 8)
            moves = MREMAP_MAYMOVE | MREMAP_FIXED
            flags = random.choice((0, MREMAP_FIXED, moves, moves, moves | MREMAP_DONTUNMAP))
            new = old if flags & MREMAP_DONTUNMAP and random.randrange(4) else new
            apart = target + new <= at or at + old <= target  # kernels differ in what they check first
            settled = ours.one_area(at, old) and (apart or ours.mapped(at))
            return ("mremap", [at, old, new, flags, target]) if settled else ("load", [at])
        case "madvise":
            populate = random.choice((MADV_POPULATE_READ, MADV_POPULATE_WRITE))
            advice = random.choice((MADV_WILLNEED, MADV_DONTNEED, populate, 999, *KEPT))
            return "madvise", [at, count, advice]
        case "mlock2":
            return "mlock2", [at, count, 1]
        case "munlock":
            return "munlock", [at, count]
        case _:
            kinds = (0, MS_ASYNC, MS_SYNC, MS_ASYNC | MS_SYNC, 64, MS_INVALIDATE, MS_INVALIDATE | MS_SYNC)
            return "msync", [at, count, random.choice(kinds)]


@pytest.mark.parametrize("name", ["x86_64", "invented"])
@pytest.mark.parametrize("seed", range(12))
def test_this_kernel_answers_as_the_hosts_does(name: str, seed: int, tmp_path: Path) -> None:
    board = Board(FORMATS[name])
    page = board.format.page_size
    (tmp_path / "ours").write_bytes(content(page))
    (tmp_path / "theirs").write_bytes(content(PAGE))
    space = board.space()
    board.run_on(space)
    ours, random = Ours(board, space, tmp_path / "ours"), Random(seed)
    calls: list[Call] = []
    answers = []
    for _ in range(250):
        call = choose(random, ours)
        calls.append(call)
        answers.append(ours.answer(*call))
    calls += [("load", [number]) for number in range(PAGES)]
    answers += [ours.answer("load", [number]) for number in range(PAGES)]

    command = [sys.executable, native_calls.__file__, str(tmp_path / "theirs")]
    finished = subprocess.run(command, input=json.dumps(calls), capture_output=True, text=True, check=True)
    theirs = json.loads(finished.stdout)
    for number, (call, answer, expected) in enumerate(zip(calls, answers, theirs["answers"], strict=True)):
        assert answer == expected, f"call {number}, {call}"
    assert ours.permissions() == theirs["permissions"]
    assert ours.flags() == theirs["flags"]
    files = [((tmp_path / who).read_bytes(), size) for who, size in (("ours", page), ("theirs", PAGE))]
    assert [file[::size] for file, size in files] == [files[0][0][::page]] * 2
    for file, size in files:  # stores change the first byte of a page
        assert [file[at + 1 : at + size] for at in range(0, len(file), size)] == [
            content(size)[at + 1 : at + size] for at in range(0, len(content(size)), size)
        ]
    board.close()
