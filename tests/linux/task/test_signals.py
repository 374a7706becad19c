"""What waits for a task: order, records, the limit; what frames show of faults that no instruction tells."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace

import pytest

from aether_emu.errors import Refused
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.signal import SA_ONSTACK, SIGBUS, SIGSEGV, SIGUSR1, SIGUSR2, Action, SignalInfo
from aether_emu.linux.task.resource_limits import RLIMIT_SIGPENDING
from aether_emu.linux.task.signals import Pending
from tests.guests.running import ISAS
from tests.linux.task.forging import ADDRESS, HANDLER, Forging
from tests.linux.task.scripts import DATA, SPIN, Several

REAL_TIME = sig.FIRST_REAL_TIME + 2
ALL = (1 << 64) - 1 & ~sig.UNBLOCKABLE


@pytest.fixture(params=ISAS)
def forging(request: pytest.FixtureRequest) -> Iterator[Forging]:
    with Forging(request.param) as made:
        yield made


def _numbers(pending: Pending, blocked: int = 0) -> list[int]:
    numbers = []
    while (info := pending.take(blocked)) is not None:
        numbers.append(info.number)
    return numbers


def test_signals_that_instructions_raise_come_first_then_the_lowest() -> None:
    pending = Pending()
    for number in (REAL_TIME, SIGUSR2, SIGSEGV, SIGUSR1, SIGBUS):
        pending.add(SignalInfo(number))
    assert _numbers(pending, 1 << SIGUSR1 - 1) == [SIGBUS, SIGSEGV, SIGUSR2, REAL_TIME]
    assert pending.mask == 1 << SIGUSR1 - 1


def test_a_signal_without_a_record_tells_nothing_and_comes_once() -> None:
    pending = Pending()
    pending.mark(REAL_TIME)
    pending.mark(REAL_TIME)
    assert (pending.take(0), pending.take(0)) == (SignalInfo(REAL_TIME), None)


def test_what_waits_survives_a_capture() -> None:
    pending, again = Pending(), Pending()
    for value in (3, 1, 2):
        pending.add(SignalInfo(REAL_TIME, value=value))
    pending.mark(SIGUSR1)
    again.restore(pending.capture())
    assert (again.mask, again.queued) == (pending.mask, 3)
    assert again.take(0) == SignalInfo(SIGUSR1)
    assert [info.value for _ in range(3) if (info := again.take(0))] == [3, 1, 2]
    assert (again.mask, again.queued) == (0, 0)


def test_a_queue_of_many_is_counted_over_the_process_and_its_tasks(forging: Forging) -> None:
    process, task = forging.process, forging.task
    task.signals.blocked = ALL
    _, hard = process.limits[RLIMIT_SIGPENDING]
    process.limits[RLIMIT_SIGPENDING] = (4, hard)
    for i in range(4):
        receiver = process if i % 2 else task.signals
        receiver.post(SignalInfo(REAL_TIME, sig.SI_TKILL))
    assert process.queued_signals == 4
    with pytest.raises(Refused) as refused:
        task.signals.post(SignalInfo(REAL_TIME, sig.SI_TKILL))
    assert refused.value.errno == errno.EAGAIN
    process.set_action(REAL_TIME, Action(sig.SIG_IGN))
    assert process.queued_signals == 0


@pytest.mark.parametrize("isa", ISAS)
def test_a_queue_is_full_by_what_waits_for_all_processes_of_the_user(isa: str) -> None:
    with Several(isa) as several:
        mine, other = (several.calls(("getpid",)) for _ in range(2))
        for task in (mine, other):
            task.signals.blocked = ALL
            task.process.limits[RLIMIT_SIGPENDING] = (3, 3)
        for receiver in (other, other, mine):
            receiver.process.post(SignalInfo(REAL_TIME, sig.SI_TKILL))
        with pytest.raises(Refused) as refused:
            mine.process.post(SignalInfo(REAL_TIME, sig.SI_TKILL))
        assert refused.value.errno == errno.EAGAIN
        other.credentials = replace(other.credentials, uid=other.credentials.uid + 1)
        assert mine.process.post(SignalInfo(REAL_TIME, sig.SI_TKILL))
        assert (mine.process.queued_signals, other.process.queued_signals) == (2, 2)


@pytest.mark.parametrize("isa", ISAS)
def test_a_child_hears_of_the_end_of_the_thread_that_made_it(isa: str) -> None:
    with Several(isa) as several:
        parent = several.calls(code=SPIN[isa])
        thread = several.thread(parent, ("getpid",))
        child = several.calls(code=SPIN[isa])
        child.process.parent, child.process.made_by = parent.process, thread.tid
        parent.process.children.add(child.process)
        child.death_signal, child.signals.blocked = SIGUSR1, ALL
        several.machine.scheduler.run(400_000)
        assert thread.ended and not parent.is_over
        info = child.signals.take(ALL)
        assert info is not None and (info.number, info.code, info.pid) == (SIGUSR1, 0, parent.process.pid)
        assert child.process.made_by == parent.tid


@pytest.mark.parametrize("isa", ISAS)
def test_who_reaps_orphans_hears_of_zombies_by_sigchld(isa: str) -> None:
    with Several(isa) as several:
        reaper, parent, zombie = (several.calls(code=SPIN[isa]).process for _ in range(3))
        for child, of in ((parent, reaper), (zombie, parent)):
            child.parent = of
            of.children.add(child)
        reaper.reaps_orphans = True
        reaper.tasks[0].signals.blocked = parent.tasks[0].signals.blocked = ALL
        zombie.exit_signal = SIGUSR2  # a clone child's
        zombie.die(sig.SIGKILL, "the test")
        several.machine.scheduler.run(10)
        assert not reaper.signals.pending.mask
        parent.die(sig.SIGKILL, "the test")
        several.machine.scheduler.run(10)
        assert set(reaper.children) == {parent, zombie} and zombie.exit_signal == sig.SIGCHLD
        info = reaper.tasks[0].signals.take(ALL)
        assert info is not None and (info.number, info.pid) == (sig.SIGCHLD, zombie.pid)
        del several.tasks[1:]  # the others have given back their memory


def test_a_full_queue_takes_a_kill_all_the_same(forging: Forging) -> None:
    forging.process.limits[RLIMIT_SIGPENDING] = (0, 0)
    forging.process.post(SignalInfo(sig.SIGKILL))
    assert forging.process.queued_signals == 0
    forging.entry.before_user()
    assert forging.process.ended is not None and forging.process.ended.signal == sig.SIGKILL


def test_as_many_signals_may_wait_as_linux_admits_with_this_much_ram(forging: Forging) -> None:
    ram = forging.process.config.ram
    assert forging.process.limits[RLIMIT_SIGPENDING] == (ram // (1 << 18), ram // (1 << 18))


def test_frames_show_a_lost_page_as_a_fault_there(forging: Forging) -> None:
    forging.process.signals.actions[SIGBUS] = Action(HANDLER, sig.SA_RESTORER)
    forging.entry.lost(DATA + 5)
    record = forging.task.signals.record
    expected = (14, 4) if forging.isa == "x86_64" else (0, 0x9200_0007)
    assert (record.trap, record.error, record.address) == (*expected, DATA + 5)


class TestTaggedPointers:
    """Linux takes none from a program that has not asked for the tagged address ABI; ERET drops the pc's."""

    TAG = 0x5A << 56

    @pytest.fixture
    def forging(self) -> Iterator[Forging]:
        with Forging("arm64") as made:
            yield made

    def test_a_stack_pointer_with_a_tag_gets_no_frame(self, forging: Forging) -> None:
        ended = forging.fault(forging.top | self.TAG)
        assert ended is not None and ended.signal == SIGSEGV

    def test_an_alternate_stack_with_a_tag_gets_none(self, forging: Forging) -> None:
        forging.task.signals.stack = sig.AlternateStack(DATA | self.TAG, 0, 1 << 16)
        ended = forging.fault(forging.top)
        assert ended is not None and ended.signal == SIGSEGV

    def test_a_handler_with_a_tag_runs(self, forging: Forging) -> None:
        forging.process.signals.actions[SIGSEGV] = Action(HANDLER | self.TAG, SA_ONSTACK)
        assert forging.fault(forging.top) is None and forging.cpu.pc == HANDLER

    def test_a_frame_that_returns_to_a_tagged_address_goes_there(self, forging: Forging) -> None:
        at = 128 + 176 + 8 + 32 * 8
        frame = forging.frame[:at] + (HANDLER | self.TAG).to_bytes(8, "little") + forging.frame[at + 8 :]
        assert forging.forge(frame) is None and forging.cpu.pc == HANDLER

    def test_sigreturn_takes_no_frame_from_a_tagged_stack_pointer(self, forging: Forging) -> None:
        ended = forging.forge(forging.frame, tag=self.TAG)
        assert ended is not None and ended.why == f"SIGSEGV at {forging.sp | self.TAG:#x}"


def test_a_fault_keeps_its_record_until_the_next(forging: Forging) -> None:
    assert forging.fault(forging.top) is None
    before = forging.task.signals.record
    assert before.address == ADDRESS and before.error
    forging.task.signals.post(SignalInfo(SIGUSR1))
    assert forging.task.signals.record == before
    forging.task.signals.restore(forging.task.signals.capture())
    assert forging.task.signals.record == before


def test_a_handler_ends_the_mask_that_it_was_waited_for_with(forging: Forging) -> None:
    signals, handled = forging.task.signals, 1 << SIGUSR1 - 1
    forging.process.set_action(SIGUSR1, Action(HANDLER, sig.SA_RESTORER, HANDLER))
    signals.blocked = handled | 1 << SIGUSR2 - 1
    signals.suspend(0)
    signals.post(SignalInfo(SIGUSR1))
    forging.entry.before_user()
    assert forging.cpu.pc == HANDLER
    assert (signals.suspended_mask, signals.blocked) == (None, handled)
