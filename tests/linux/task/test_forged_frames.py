"""Whatever a program writes into a signal frame, it stays a user, and ends by a signal or goes on.

What becomes of each kind of forgery is in the guest program `frames`, beside what Linux makes of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from aether_emu.linux.abi.signal import SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGTRAP, UNBLOCKABLE
from aether_emu.mm.mapping import unmap_memory
from tests.guests.running import ISAS
from tests.linux.task.forging import STEPS, Forging, changed

# Fields of the frames: ucontext, registers, selectors and flags, state pointer, mask; size, magic and state.
PAGE = 4096
_X86_CONTEXT = 8 + 40
_X86_FIELDS = (
    *(8 + 8 * i for i in range(5)),
    *(_X86_CONTEXT + 8 * i for i in range(24)),
    *(_X86_CONTEXT + 144 + 2 * i for i in range(4)),
    8 + 296,
)
_X86_AREA = (0, 2, 4, 24, 28, 464, 468, 472, 480, 512, 516, 520, 527, 528, 576)
_ARM64_CONTEXT = 128 + 176
_ARM64_RECORDS = _ARM64_CONTEXT + 288
_ARM64_FIELDS = (
    *(128 + 8 * i for i in range(6)),
    *(_ARM64_CONTEXT + 8 * i for i in (0, 1, 29, 31, 32, 33, 34, 34, 34)),
    *(_ARM64_RECORDS + at for at in (0, 4, 8, 12, 16, 528, 532, 536, 544, 548, 4080)),
)


def _fields(forging: Forging) -> tuple[int, ...]:
    if forging.isa == "arm64":
        return _ARM64_FIELDS
    area = int.from_bytes(forging.frame[_X86_CONTEXT + 184 : _X86_CONTEXT + 192], "little") - forging.sp
    return _X86_FIELDS + tuple(area + at for at in _X86_AREA)


@pytest.fixture(params=ISAS)
def forging(request: pytest.FixtureRequest) -> Iterator[Forging]:
    with Forging(request.param) as made:
        yield made


def _stays_a_user(forging: Forging, seed: int) -> None:
    random = Random(seed)
    frame = changed(forging.frame, random, forging.kernel, _fields(forging))
    shift = random.choice((0, 0, 0, 0, 8, -16, -64, -1))
    ended = forging.forge(frame, shift=shift, handled=random.random() < 0.5)
    assert ended is None or ended.signal in (SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE), seed
    assert not forging.task.signals.blocked & UNBLOCKABLE, seed
    if forging.isa == "x86_64":
        flags = forging.cpu.read("rflags")
        assert flags & 0x2_3200 == 0x200, f"{seed}: VM, IOPL or IF are not a user's in {flags:#x}"
    assert forging.privileged_outcomes() == forging.refusals, seed


def test_a_real_frame_goes_back(forging: Forging) -> None:
    assert forging.forge(forging.frame, handled=True) is None
    assert forging.privileged_outcomes() == forging.refusals


def test_no_forged_frame_changes_the_privilege(forging: Forging) -> None:
    for seed in range(400):
        _stays_a_user(forging, seed)


def test_an_arm64_frame_that_ends_early_gives_what_can_be_read_and_zeros() -> None:
    with Forging("arm64") as forging:
        at = _ARM64_CONTEXT + 8 + 8 * 17  # of x17, which is aligned to 16 bytes
        border = forging.sp + at & -PAGE
        unmap_memory(forging.process.mm, border, forging.top - border + PAGE & -PAGE)
        words = b"".join((0x100 + i).to_bytes(8, "little") for i in range(17))
        ended = forging.forge(forging.frame[: at - len(words)] + words, shift=border - forging.sp - at)
        assert ended is not None and ended.why == "SIGSEGV at 0x0"  # at sp
        assert [forging.cpu.read(f"x{i}") for i in (0, 16, 17, 30)] == [0x100, 0x110, 0, 0]
        assert (forging.cpu.sp, forging.cpu.pc) == (0, 0)


def test_a_frame_with_tf_traps_behind_one_instruction_each_time() -> None:
    with Forging("x86_64") as forging:
        frame = bytearray(forging.frame)
        for at, value in ((16, STEPS), (17, 0x302)):  # rip and the flags
            frame[_X86_CONTEXT + 8 * at : _X86_CONTEXT + 8 * at + 8] = value.to_bytes(8, "little")
        for _ in range(2):
            ended = forging.forge(bytes(frame))
            assert ended is not None and ended.why == f"SIGTRAP at {STEPS + 1:#x}"


@pytest.mark.slow
def test_none_of_thousands_does(forging: Forging) -> None:
    for seed in range(400, 20_000):
        _stays_a_user(forging, seed)
