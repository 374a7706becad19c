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

from aether_emu.arch.x86_64.format import X86Format
from aether_emu.errors import Refused
from aether_emu.machine.cpu import UserFault
from aether_emu.mm import mapping
from aether_emu.mm.address_space import AddressSpace
from aether_emu.mm.mapping import (
    MADV_DONTNEED,
    MADV_NORMAL,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_WILLNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    MS_ASYNC,
    MS_SYNC,
    Remap,
    Request,
)
from aether_emu.mm.protection import Protection
from tests.mm import native_calls
from tests.mm.board import Board, GrantedFile
from tests.mm.native_calls import BASE, PAGE, PAGES

CONTENT = bytes(range(65, 91)) * 395  # two pages and a half
RIGHTS = (0, 1, 1, 3, 3, 3, 2)
Call = tuple[str, list[int]]


class Ours:
    """The calls of `native_calls.Host`, on an address space of ours."""

    def __init__(self, board: Board, space: AddressSpace, path: Path) -> None:
        self._board, self._space = board, space
        self._file = GrantedFile(board, path)

    def answer(self, name: str, arguments: list[int]) -> int | str:
        try:
            return self._answer(name, arguments)
        except Refused as refused:
            return errno.errorcode[refused.errno]
        except UserFault:
            return "EFAULT"

    def _answer(self, name: str, arguments: list[int]) -> int:
        space, at = self._space, BASE + arguments[0] * PAGE
        match name, arguments[1:]:
            case "load", []:
                return int(self._board.cpu.copy_from_user(at, 1)[0])
            case "store", [byte]:
                self._board.cpu.copy_to_user(at, bytes([byte]))
            case "mmap", [count, protection, flags, of_file, offset]:
                file = self._file if of_file else None
                request = Request(at, count * PAGE, protection, flags, file, offset * PAGE)
                return (mapping.map_memory(space, request) - BASE) // PAGE
            case "munmap", [count]:
                mapping.unmap_memory(space, at, count * PAGE)
            case "mprotect", [count, protection]:
                mapping.protect_memory(space, at, count * PAGE, protection)
            case "mremap", [old, new, flags, target]:
                remap = Remap(at, old * PAGE, new * PAGE, flags, BASE + target * PAGE)
                return (mapping.remap_memory(space, remap) - BASE) // PAGE
            case "madvise", [count, advice]:
                mapping.advise_memory(space, at, count * PAGE, advice)
            case "msync", [count, flags]:
                mapping.sync_memory(space, at, count * PAGE, flags)
        return 0

    def permissions(self) -> list[str]:
        found = []
        for number in range(PAGES):
            area = self._space.areas.find(BASE + number * PAGE)
            if area is None:
                found.append("")
            else:
                letters = ((Protection.READ, "r"), (Protection.WRITE, "w"), (Protection.EXECUTE, "x"))
                rights = "".join(letter if area.protection & right else "-" for right, letter in letters)
                found.append(rights + ("s" if area.shared else "p"))
        return found

    def mapped(self, at: int) -> bool:
        return self._space.areas.find(BASE + at * PAGE) is not None

    def one_area(self, at: int, count: int) -> bool:
        """Whether a range lies in one area, or begins in none."""
        area = self._space.areas.find(BASE + at * PAGE)
        return area is None or BASE + (at + count) * PAGE <= area.end


def choose(random: Random, ours: Ours) -> Call:
    """A call that every kernel answers alike."""
    at, count = random.randrange(PAGES - 8), random.randint(0, 8)
    match random.choice(
        ("load", "store", "store", "mmap", "mmap", "munmap", "mprotect", "mremap", "madvise", "msync")
    ):
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
            advice = random.choice((MADV_NORMAL, MADV_WILLNEED, MADV_DONTNEED, populate, 999))
            return "madvise", [at, count, advice]
        case _:
            return "msync", [at, count, random.choice((0, MS_ASYNC, MS_SYNC, MS_ASYNC | MS_SYNC, 64))]


@pytest.mark.parametrize("seed", range(12))
def test_this_kernel_answers_as_the_hosts_does(seed: int, tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        (tmp_path / name).write_bytes(CONTENT)
    board = Board(X86Format())
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
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    board.close()
