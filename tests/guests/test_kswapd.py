"""kswapd: pages go in the background, so that who needs a frame seldom waits for one."""

from __future__ import annotations

from typing import Any

import pytest

from aether_emu import state
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.task.ended import Ended
from aether_emu.mm.room import watermarks
from tests.guests.running import TARGETS, Target
from tests.guests.test_swap import machine, statistics, text

every_target = pytest.mark.parametrize("target", TARGETS, ids=str)


def ran(target: Target, **options: Any) -> tuple[dict[str, Any], int]:
    """The figures of reclaim, and the us that somebody stood still."""
    made, out = machine(target, **options)
    assert made.run() == Ended(code=0)
    assert bytes(out.written).decode() == text(target)
    made.kernel.note_pressure()
    stood = int(made.kernel.pressure.text().split()[4].removeprefix(b"total="))
    figures = statistics(made)["reclaim"]
    made.close()
    return figures, stood


@pytest.mark.parametrize("order", ["mglru", "clock"])
@every_target
def test_most_pages_go_in_the_background_and_nobody_stands_still_for_those(
    target: Target, order: str
) -> None:
    background, stood = ran(target, reclaim=order)
    alone, stood_alone = ran(target, reclaim=order, kswapd=False)
    assert alone["background_runs"] == alone["background_taken"] == 0
    if target.page_size < 65536:  # else the marks of so few frames lie closer than what is taken at once
        assert background["background_taken"] > background["frames_taken"]
        assert background["stalls"] * 2 < alone["stalls"]
    assert background["background_taken"] > 0
    assert stood < stood_alone


def test_a_run_that_never_nears_the_watermarks_never_wakes_it() -> None:
    figures, _stood = ran(TARGETS[0], ram="64M")
    assert figures["background_runs"] == figures["stalls"] == 0


def test_a_machine_is_captured_between_its_wake_and_its_work() -> None:
    made, out = machine(TARGETS[0])
    assert made.run_for(2_000_000) is None
    assert made.kernel.kswapd is not None
    made.kernel.kswapd.due = True
    captured = state.capture(made)
    streams = {"stdout": out, "stdin": BufferStream(), "stderr": BufferStream()}
    restored = state.restore(captured, streams=streams)
    assert restored.kernel.kswapd is not None
    assert restored.kernel.kswapd.due
    made.close()
    assert restored.run() == Ended(code=0)
    restored.close()


def test_the_marks_are_those_that_were_asked_for() -> None:
    made, _out = machine(TARGETS[0], min_free="256K", watermark_scale=1000)
    room = made.physical.reclaim
    total = made.buddy.total
    assert room is not None
    assert room.spare == 64
    assert watermarks(total, 4096, 256 << 10, 1000) == (64, 64 + total // 10, 64 + total // 10 * 2)
    made.close()
