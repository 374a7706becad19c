"""`real_time`: clocks that are the host's, and waits that last as long; the host is a fake here."""

from __future__ import annotations

import pytest

from aether_emu import clock as clocks
from aether_emu.clock import HostClock
from aether_emu.grants import Grants
from aether_emu.linux.task.scheduler import Interrupted
from aether_emu.state import capture, restore
from aether_emu.system import Machine
from tests.guests.running import ISAS, program
from tests.linux.task.scripts import DATA, SPIN, Several

_SECOND = 10**9
_START = 1_700_000_000 * _SECOND + 123_456_789


class Host:
    """A host whose time passes only when somebody sleeps, or looks (1 ns)."""

    def __init__(self) -> None:
        self.now, self.slept, self.longest = 5_000, 0.0, 0.0
        self.clock = HostClock(self.elapsed, lambda: _START + self.now, self.sleep)

    def elapsed(self) -> int:
        self.now += 1
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.longest = max(self.longest, seconds)
        self.now += round(seconds * _SECOND)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host()
    monkeypatch.setattr("aether_emu.system.host_clock", lambda: made.clock)
    return made


def _request(seconds: int, rest: int) -> bytes:
    return seconds.to_bytes(8, "little") + rest.to_bytes(8, "little")


@pytest.mark.parametrize("isa", ISAS)
def test_a_sleep_lasts_as_long_as_the_host_says(isa: str, host: Host) -> None:
    with Several(isa, real_time=True) as several:
        task = several.calls(("nanosleep", DATA, 0), ("getppid",), data=_request(1, 500))
        several.run()
        assert host.slept == pytest.approx(1.0000005, abs=1e-5)
        assert host.longest <= 0.01, "somebody looks for Ctrl-C now and then"
        assert task.process.usage.time < 10**6, "who sleeps uses no processor"


@pytest.mark.parametrize("isa", ISAS)
def test_nobody_uses_a_processor_between_two_runs(isa: str, host: Host) -> None:
    with Several(isa, real_time=True) as several:
        process = several.calls(code=SPIN[isa]).process
        assert not several.machine.scheduler.run(1_000)
        used = process.used().time
        host.now += _SECOND
        assert process.used().time == used
        assert not several.machine.scheduler.run(1_000)
        assert used < process.used().time < used + 10**6


def test_virtual_sleeps_cost_the_host_nothing(host: Host) -> None:
    with Several("x86_64") as several:
        several.calls(("nanosleep", DATA, 0), data=_request(1000, 0))
        several.run()
        assert not host.slept


def test_wall_time_is_the_hosts(host: Host) -> None:
    before = _START + host.now
    with Several("x86_64", real_time=True) as several:
        machine = several.machine
        assert before <= machine.clock.realtime_ns <= _START + host.now
        assert machine.clock.epoch_ns % _SECOND == 0, "what programs read in the vDSO has whole seconds"


def test_a_sleep_ends_when_the_run_is_to_end(host: Host) -> None:
    with Several("x86_64", real_time=True) as several:
        several.calls(("nanosleep", DATA, 0), data=_request(1000, 0))
        real = host.sleep

        def sleep(seconds: float) -> None:
            real(seconds)
            if host.slept > 0.05:
                several.machine.cpu.interrupt()

        host.clock._sleep = sleep
        with pytest.raises(Interrupted):
            several.machine.scheduler.run()
        assert host.slept < 0.1


def test_time_stands_still_between_capture_and_restore(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program("x86_64", "hello")
    grants = Grants(cwd=path.parent)
    with Machine("x86_64", ram="8M", aperture="4M", real_time=True) as machine:
        machine.load(path, grants=grants)
        assert machine.run_for(20) is None
        state = capture(machine)
        now, wall = machine.clock.now_ns, machine.clock.realtime_ns
    later = Host()
    later.now += 3600 * _SECOND
    monkeypatch.setattr("aether_emu.system.host_clock", lambda: later.clock)
    with restore(state, grants=grants) as again:
        assert 0 <= again.clock.now_ns - now < 10**6
        assert 0 <= again.clock.realtime_ns - wall < 10**6


def test_the_hosts_clocks_are_asked() -> None:
    clock = clocks.host_clock()
    before = clock.now_ns
    assert clock.now_ns >= before and clock.realtime_ns > 1_700_000_000 * _SECOND
