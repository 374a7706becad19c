"""Cache maintenance in a loop: one trap for each page, and what a trap for each line would leave."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aether_emu.arch.paging import Access
from aether_emu.machine.unicorn.arm64_lines import last_line
from tests.machine.unicorn.bare_arm64 import ANY_LEAF, CODE, READ_WRITE_LEAF, BareArm64, assemble

PAGE, LINE = 4096, 64
BUFFER = 0x1234_0000
_CLEAR = "again: {what}, x2\nadd x2, x2, {step}\n{loop} again\nsvc #0"
_HIGHER, _LOWER = "cmp x1, x2\nb.hi", "cmp x2, x1\nb.lo"


@pytest.fixture
def bare() -> Iterator[BareArm64]:
    yield BareArm64()


def _traps(bare: BareArm64, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with x2 at each trap."""
    seen: list[int] = []
    look = bare.cpu._last_line

    def looked(address: int, target: int) -> int:
        seen.append(address)
        return look(address, target)

    monkeypatch.setattr(bare.cpu, "_last_line", looked)
    return seen


@pytest.mark.parametrize("step", ["x3", "#64"])
@pytest.mark.parametrize("loop", [_HIGHER, _LOWER])
@pytest.mark.parametrize("what", ["dc cvau", "dc civac", "ic ivau"])
def test_a_loop_over_pages_traps_a_few_times_for_each(
    bare: BareArm64, monkeypatch: pytest.MonkeyPatch, what: str, loop: str, step: str
) -> None:
    for page in range(3):
        bare.map(BUFFER + page * PAGE, READ_WRITE_LEAF)
    start, end = BUFFER + 5 * LINE, BUFFER + 2 * PAGE + 7 * LINE + 1
    bare["x1"], bare["x2"], bare["x3"] = end, start, LINE
    traps = _traps(bare, monkeypatch)
    bare.run(_CLEAR.format(what=what, loop=loop, step=step))
    assert (bare["x2"], bare["x3"], bare.faults) == (BUFFER + 2 * PAGE + 8 * LINE, LINE, [])
    assert traps == [start, start + LINE, BUFFER + PAGE, BUFFER + 2 * PAGE]


def test_a_page_that_is_missing_is_asked_for_at_its_first_line(bare: BareArm64) -> None:
    bare.map(BUFFER, READ_WRITE_LEAF)
    bare["x1"], bare["x2"], bare["x3"] = BUFFER + 2 * PAGE, BUFFER + 0x20, LINE
    bare.run(_CLEAR.format(what="dc cvac", loop=_HIGHER, step="x3"))
    assert bare.faults == [(BUFFER + PAGE + 0x20, int(Access.READ | Access.USER), CODE)]
    assert bare["x2"] == BUFFER + PAGE + 0x20


def test_all_code_of_the_lines_is_translated_anew(bare: BareArm64) -> None:
    bare.map(CODE, ANY_LEAF, pa=bare.code)
    bare.cpu.flush_all()
    routine = CODE + 0xC00
    bare.fill(bare.code + 0xC00, assemble("mov w0, #1\nret"))
    bare["x1"], bare["x2"], bare["x3"], bare["x4"] = CODE + PAGE, CODE + 0x800, LINE, routine
    clear = _CLEAR.format(what="ic ivau", loop=_HIGHER, step="x3")
    bare.fill(bare.code, assemble(f"blr x4\nmov w5, w0\nsvc #0\n{clear}\nblr x4\nsvc #0"))
    bare.go()
    bare.fill(bare.code + 0xC00, assemble("mov w0, #2\nret"))  # unseen by the engine
    bare.go(bare.cpu.pc)
    bare.go(bare.cpu.pc)
    assert (bare["x5"], bare["x0"]) == (1, 2)


def test_who_counts_instructions_sees_each_turn(bare: BareArm64) -> None:
    bare.map(BUFFER, READ_WRITE_LEAF)
    bare["x1"], bare["x2"], bare["x3"] = BUFFER + PAGE, BUFFER, LINE
    bare.fill(bare.code, assemble(_CLEAR.format(what="dc cvau", loop=_HIGHER, step="x3")))
    bare.cpu.halts.step(12)
    bare.go()
    assert bare["x2"] == BUFFER + 3 * LINE


@pytest.mark.parametrize(
    "source",
    [
        "dc cvau, x2\nadd x2, x3, x2\ncmp x1, x2\nb.hi again",  # another order of operands
        "dc cvau, x2\nadd x2, x2, x2\ncmp x1, x2\nb.hi again",  # the step changes
        "dc cvau, x2\nadd x2, x2, x3, lsl #1\ncmp x1, x2\nb.hi again",
        "dc cvau, x2\nsub x2, x2, x3\ncmp x1, x2\nb.hi again",
        "dc cvau, x2\nadd x2, x2, #0\ncmp x1, x2\nb.hi again",  # no step
        "dc cvau, x2\nadd x4, x4, x3\ncmp x1, x2\nb.hi again",  # another register
        "dc cvau, x2\nadd w2, w2, w3\ncmp x1, x2\nb.hi again",
        "dc cvau, x2\nadd x2, x2, x3\ncmp x2, x1\nb.hi again",  # the other way round
        "dc cvau, x2\nadd x2, x2, x3\ncmp x1, x2\nb.lo again",
        "dc cvau, x2\nadd x2, x2, x3\ncmp x1, x2\nb.ne again",
        "dc cvau, x2\nadd x2, x2, x3\ncmp w1, w2\nb.hi again",
        "dc cvau, x2\nadd x2, x2, x3\ncmp x2, x2\nb.hi again",
        "dc cvau, x2\nadd x2, x2, x3\ncmp xzr, x2\nb.hi again",
        "dc cvau, x2\nadd x2, x2, x3\ncmp x1, x2\nb.hi again + 4",
        "dc cvau, xzr\nadd x2, x2, x3\ncmp x1, x2\nb.hi again",
    ],
)  # fmt: skip
def test_other_code_is_no_such_loop(source: str) -> None:
    registers = [0] * 31
    registers[1], registers[2], registers[3] = BUFFER + PAGE, BUFFER, LINE
    assert last_line(assemble(f"again: {source}"), registers, PAGE) is None


@pytest.mark.parametrize(
    ("start", "end", "step", "last"),
    [
        (0, PAGE, LINE, PAGE - LINE),
        (8, PAGE, LINE, PAGE - LINE + 8),
        (0, 3 * PAGE, LINE, PAGE - LINE),
        (0, LINE + 1, LINE, LINE),
        (0, LINE, LINE, None),
        (PAGE - LINE, 3 * PAGE, LINE, None),
        (0, PAGE, 4, PAGE - 4),
        (0, 3 * PAGE, 2 * PAGE, None),
        (LINE, 0, LINE, None),
    ],
)
def test_the_last_turn_is_within_the_page_and_below_the_end(
    start: int, end: int, step: int, last: int | None
) -> None:
    registers = [0] * 31
    registers[1], registers[2], registers[3] = BUFFER + end, BUFFER + start, step
    code = assemble("again: dc cvau, x2\nadd x2, x2, x3\ncmp x1, x2\nb.hi again")
    assert last_line(code, registers, PAGE) == (None if last is None else BUFFER + last)
