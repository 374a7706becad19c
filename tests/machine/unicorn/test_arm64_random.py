"""RNDR and RNDRRS answer from the machine's own stream, wherever their block is first met."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from aether_emu.machine import native
from aether_emu.machine.cpu import ExitReason
from tests.machine.unicorn.bare_arm64 import CODE, READ_WRITE_LEAF, BareArm64, assemble

ABSENT = 0x1234_5000
# keystone knows neither name: mrs xN, s3_3_c2_c4_0 (RNDR) and s3_3_c2_c4_1 (RNDRRS)
RNDR, RNDRRS = 0xD53B_2400, 0xD53B_2420
FLAGS = "mov x9, #0xf0000000\nmsr nzcv, x9\n"


def read(register: int, target: int) -> str:
    return f".long {register | target:#x}\n"


class Stream:
    """Numbers that say how many were taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __call__(self) -> int:
        self.taken += 1
        return 0xAAAA_0000_0000_0000 + self.taken


@pytest.fixture(params=[(True, True), (True, False), (False, True)], ids=["live", "python routines", "api"])
def bare(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[BareArm64]:
    live_state, machine_code = request.param
    if not machine_code:
        monkeypatch.setattr(native, "available", lambda: False)
    made = BareArm64(live_state, random=Stream())
    yield made
    made.cpu.close()


def value(count: int) -> int:
    return 0xAAAA_0000_0000_0000 + count


@pytest.mark.parametrize("register", [RNDR, RNDRRS])
def test_every_target_gets_the_next_number_and_flags_say_success(bare: BareArm64, register: int) -> None:
    for target in (0, 17, 28, 29, 30):
        bare.run(FLAGS + read(register, target) + "mrs x10, nzcv\nsvc #0")
        assert bare["x10"] == 0
        assert bare[f"x{target}"] == value((0, 17, 28, 29, 30).index(target) + 1)
    assert not bare.traps


def test_the_zero_register_takes_a_number_and_keeps_none(bare: BareArm64) -> None:
    bare["nzcv"] = 0
    before = bare.cpu.registers()
    bare.run(FLAGS + read(RNDR, 31) + "mrs x10, nzcv\n" + read(RNDR, 3) + "svc #0")
    assert (bare["x3"], bare["x10"]) == (value(2), 0)
    changed = {name for name, now in bare.cpu.registers().items() if now != before[name]}
    assert changed == {"pc", "x3", "x9"}


def test_other_system_registers_are_read_as_ever(bare: BareArm64) -> None:
    bare["tpidr_el0"] = 0x1234
    bare.run(read(RNDR, 0) + "mrs x1, tpidr_el0\nmrs x2, fpcr\nmrs x3, cntvct_el0\nmrs x4, dczid_el0\nsvc #0")
    assert (bare["x1"], bare["x2"], bare["x3"]) == (0x1234, 0, 0x1234_5678)
    assert bare["x4"] & 15
    bare.run("mrs x5, sctlr_el1")
    assert len(bare.traps) == 1


def moved_by_a_fault(bare: BareArm64) -> None:
    bare.cpu.on_fault = lambda _va, _access: setattr(bare.cpu, "pc", CODE + 0x400)
    bare["x1"] = ABSENT
    bare.run("ldr x2, [x1]")


def after_a_repaired_fault(bare: BareArm64) -> None:
    def repair(va: int, _access: int) -> None:
        bare.map(va, READ_WRITE_LEAF)

    bare.cpu.on_fault = repair
    bare["x1"] = ABSENT
    bare.run("ldr x2, [x1]\nb next\nnext: " + read(RNDR, 0) + "svc #0", at=CODE + 0x3E0)


def behind_a_system_call(bare: BareArm64) -> None:
    calls = iter((False, True))
    bare.cpu.on_system_call = lambda *_arguments: bare.cpu.stop() if next(calls) else None
    bare.run("svc #0\n" + read(RNDR, 0) + "svc #0")


@pytest.mark.parametrize(
    "arrive",
    [
        lambda bare: bare.go(CODE + 0x400),
        lambda bare: bare.run("svc #0") and bare.go(CODE + 0x400),
        lambda bare: bare.run("b target\n" + "nop\n" * 0xFF + "target: " + read(RNDR, 0) + "svc #0"),
        lambda bare: (bare.cpu.write("x1", CODE + 0x400), bare.run("br x1")),
        lambda bare: (bare.run("svc #0"), bare.cpu.flush_code(), bare.go(CODE + 0x400)),
        moved_by_a_fault,
        after_a_repaired_fault,
        behind_a_system_call,
    ],
    ids=["first", "next run", "branch", "indirect", "flushed", "moved", "repaired", "system call"],
)
def test_a_block_is_noticed_however_it_is_reached(
    bare: BareArm64, arrive: Callable[[BareArm64], object]
) -> None:
    bare.fill(bare.code + 0x400, assemble(read(RNDR, 0) + "svc #0"))
    arrive(bare)
    assert bare["x0"] == value(1)
    assert not bare.traps


def test_a_block_over_a_page_border_is_noticed(bare: BareArm64) -> None:
    bare.fill(bare.code + 0xFFC, assemble("nop\n" + read(RNDR, 0) + "svc #0")[:4])
    second = bare.words[bare.slot(bare.next_code)] & 0xFFFF_F000
    bare.fill(second, assemble(read(RNDR, 0) + "svc #0"))
    bare.go(CODE + 0xFFC)
    assert bare["x0"] == value(1)


def test_one_seed_gives_one_run() -> None:
    def run(seed: int) -> list[int]:
        source = random.Random(seed)
        bare = BareArm64(random=lambda: source.getrandbits(64))
        bare.run("".join(read(register, i) for i, register in enumerate((RNDR, RNDRRS) * 4)) + "svc #0")
        return [bare[f"x{i}"] for i in range(8)]

    assert run(1) == run(1)
    assert len({*run(1), *run(2)}) == 16


@pytest.mark.parametrize("first", ["", "b next\nnext: ", "svc #0\n"], ids=["entry", "branch", "system call"])
def test_noticing_costs_no_block_of_the_budget(first: str) -> None:
    source = first + "mov x2, #3\nagain: " + read(RNDR, 0) + "subs x2, x2, #1\nb.ne again\nsvc #0"
    bare = BareArm64(random=Stream())
    bare.cpu.on_system_call = lambda *_arguments: None if bare["x2"] else bare.cpu.stop()
    totals = []
    for _ in range(2):  # the second time it was noticed long ago
        before, parts = bare.cpu.blocks, 1
        bare["x2"] = 9
        ended = bare.run(source, budget=1)
        while ended.reason is ExitReason.BUDGET:
            assert bare.cpu.blocks - before == parts
            ended, parts = bare.cpu.run(1), parts + 1
        assert ended.reason is ExitReason.STOPPED
        totals.append(bare.cpu.blocks - before)
    assert totals == [4 + bool(first)] * 2
    assert bare["x0"] == value(6)


def test_what_the_stream_raises_comes_out_of_run(bare: BareArm64) -> None:
    def fails() -> int:
        raise LookupError("from the stream")

    bare.cpu._random = fails
    with pytest.raises(LookupError, match="from the stream"):
        bare.run(read(RNDR, 0) + "svc #0")


def test_a_program_that_reads_no_random_number_keeps_its_fast_reads() -> None:
    bare = BareArm64()
    bare.run("mrs x0, tpidr_el0\nsvc #0")
    assert bare.cpu._random_reads is None
    bare.run(read(RNDR, 0) + "svc #0")
    assert bare.cpu._random_reads is not None
