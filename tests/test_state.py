"""A machine captured in the middle of a run and restored goes on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu import state
from aether_emu.linux.vfs.streams import BufferStream
from aether_emu.observe import stats
from aether_emu.system import Machine

GUESTS = Path(__file__).parent.parent / "guest" / "bin"


def _streams() -> dict[str, BufferStream]:
    return {name: BufferStream() for name in ("stdin", "stdout", "stderr")}


def _loaded(isa: str, program: str) -> tuple[Machine, dict[str, BufferStream]]:
    streams = _streams()
    machine = Machine(isa, seed=5)
    machine.load(GUESTS / isa / program, [program], streams=streams)
    stats.prepare(machine)
    return machine, streams


def _whole_run(isa: str, program: str) -> tuple[bytes, dict[str, object]]:
    machine, streams = _loaded(isa, program)
    machine.run()
    collected = stats.collect(machine, 0)
    machine.close()
    return bytes(streams["stdout"].written), collected


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.95])
def test_output_and_statistics_are_those_of_a_run_without_a_break(isa: str, part: float) -> None:
    output, expected = _whole_run(isa, "tour")
    blocks = expected["blocks_executed"]
    assert isinstance(blocks, int)
    machine, before = _loaded(isa, "tour")
    assert machine.run_for(max(1, int(blocks * part))) is None
    snapshot = state.capture(machine)
    after = _streams()
    restored = state.restore(snapshot, streams=after)
    ended = restored.run()
    collected = stats.collect(restored, 0)
    restored.close()
    assert ended.status == 0
    assert bytes(before["stdout"].written + after["stdout"].written) == output
    assert collected == expected
    machine.run()
    machine.close()
    assert bytes(before["stdout"].written) == output, "capturing changed the machine it captured"


def test_one_snapshot_can_be_restored_more_than_once() -> None:
    machine, before = _loaded("x86_64", "tour")
    machine.run_for(3000)
    snapshot = state.capture(machine)
    outputs = []
    for _ in range(2):
        streams = _streams()
        restored = state.restore(snapshot, streams=streams)
        restored.run()
        restored.close()
        outputs.append(bytes(streams["stdout"].written))
    assert outputs[0] == outputs[1] != b""
    machine.run()
    machine.close()
    assert bytes(before["stdout"].written).endswith(outputs[0])


def test_a_finished_machine_is_refused() -> None:
    machine, _ = _loaded("x86_64", "hello")
    machine.run()
    with pytest.raises(state.StateError):
        state.capture(machine)
    machine.close()


def test_an_epoll_set_is_restored() -> None:
    machine, _ = _loaded("x86_64", "hello")
    assert machine.process is not None
    calls = {name: number for number, name in machine.abi.system_calls.items()}
    table = machine.kernel.calls_by_number
    epoll = table[calls["epoll_create1"]]
    assert epoll is not None
    fd = epoll(0, 0, 0, 0, 0, 0)
    snapshot = state.capture(machine)
    restored = state.restore(snapshot, streams=_streams())
    assert restored.process is not None and fd is not None
    assert restored.process.files.table.file(fd).kind == "eventpoll"
    for each in (restored, machine):
        each.run()
        each.close()
