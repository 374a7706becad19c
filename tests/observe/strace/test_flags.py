"""Flags, commands and what is left of them are shown as strace shows them (`flags` has recorded it)."""

from __future__ import annotations

from typing import cast

import pytest

from aether_emu.mm.space import AddressSpace
from aether_emu.observe.peek import PeekMemory
from aether_emu.observe.strace.declarations import CALLS
from aether_emu.observe.strace.kinds import Made
from tests.observe.strace.flags import FLAGS, made


class _Nothing(PeekMemory):
    """Memory where nothing is."""

    def __init__(self) -> None:
        super().__init__(cast(AddressSpace, None))

    def read_up_to(self, va: int, length: int) -> bytes:
        return b""


def _shown(name: str, arguments: list[int], isa: str) -> str:
    words = [argument & (1 << 64) - 1 for argument in (*arguments, *(0,) * (6 - len(arguments)))]
    call = Made(name, words, _Nothing(), isa, -22)
    kinds = CALLS[name].arguments
    texts = [kind.show(call, value) for kind, value in zip(kinds, words, strict=False)]
    return f"{name}({', '.join(text for text in texts if text is not None)})"


def test_every_bit_and_command_is_shown_as_strace_shows_it() -> None:
    native = FLAGS.read_text().splitlines()
    ours = [_shown(name, arguments, "x86_64") for name, arguments in made()]
    assert [pair for pair in zip(ours, native, strict=True) if pair[0] != pair[1]] == []


@pytest.mark.parametrize(
    ("name", "arguments", "shown"),
    [
        ("openat", [-100, 0, 0o40000], "openat(AT_FDCWD, NULL, O_RDONLY|O_DIRECTORY)"),
        ("pipe2", [0, 0o200000], "pipe2(NULL, O_DIRECT)"),
        ("dup3", [3, 4, 0o100000], "dup3(3, 4, O_NOFOLLOW)"),
        ("fcntl", [3, 4, 0o400000], "fcntl(3, F_SETFL, O_RDONLY|O_LARGEFILE)"),
        ("mmap", [0, 1, 0x10, 0x42, -1, 0], "mmap(NULL, 1, PROT_BTI, MAP_PRIVATE|0x40, -1, 0)"),
    ],
)
def test_flags_that_arm64_has_elsewhere(name: str, arguments: list[int], shown: str) -> None:
    """Linux arch/arm64/include/uapi/asm: fcntl.h, mman.h."""
    assert _shown(name, arguments, "arm64") == shown
