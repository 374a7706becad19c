"""Listening to a machine: what is told, what a listener that fails does, and that nobody pays for nothing."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from aether_emu.arch.paging import Access
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.observers import Answer, FaultSeen, SignalSeen, SystemCall
from aether_emu.mm.changes import Change
from aether_emu.mm.counters import Event
from aether_emu.mm.fault import RESOLVED, AccessError
from aether_emu.system import Machine
from tests.small_programs import DATA, EXIT, START, every_isa, loaded

# Stores to a fresh page; reads 8 bytes of stdin into another; loads from address 16, which kills it.
STORE_READ_CRASH = {
    "x86_64": f"""
        mov rbx, {DATA}
        mov [rbx], rbx
        xor eax, eax
        xor edi, edi
        lea rsi, [rbx + 0x1000]
        mov edx, 8
        syscall
        mov rax, [16]
    """,
    "arm64": f"""
        mov x19, #{DATA}
        str x19, [x19]
        mov x0, #0
        add x1, x19, #0x1000
        mov x2, #8
        mov x8, #63
        svc #0
        mov x0, #16
        ldr x0, [x0]
    """,
}
GETPIDS = {
    "x86_64": f"mov eax, 39; syscall; mov eax, 39; syscall; mov edi, 7; {EXIT['x86_64']}",
    "arm64": f"mov x8, #172; svc #0; mov x8, #172; svc #0; mov x0, #7; {EXIT['arm64']}",
}


def _callbacks(machine: Machine) -> tuple[object, ...]:
    cpu = machine.cpu
    return cpu.on_fault, cpu.resolve, cpu.on_system_call, cpu.on_trap, cpu.return_work


@every_isa
def test_a_program_is_told_event_by_event(tmp_path: Path, isa: str) -> None:
    heard: list[object] = []

    def faulted(seen: FaultSeen) -> None:
        if not seen.access & Access.EXECUTE:
            heard.append(seen)

    with loaded(tmp_path, isa, STORE_READ_CRASH, stdin=b"12345678") as machine:
        machine.observers.attach(
            call_entered=heard.append,
            call_answered=heard.append,
            fault=faulted,
            signal=heard.append,
            ended=heard.append,
        )
        ended = machine.run()
        stored, entered, *in_call, answered, denied, signal, last = heard
        user_write = Access.USER | Access.WRITE
        zeroed = (Event.FAULT_DEMAND_ZERO,)
        assert isinstance(stored, FaultSeen)
        task = stored.task
        assert stored == FaultSeen(task, DATA, user_write, RESOLVED, zeroed, False)
        number = {"x86_64": 0, "arm64": 63}[isa]
        assert isinstance(entered, SystemCall)
        assert (entered.task, entered.number, entered.name) == (task, number, "read")
        assert entered.arguments[:3] == (0, DATA + 0x1000, 8)
        faults = [seen for seen in in_call if isinstance(seen, FaultSeen)]
        assert faults == in_call
        assert {(seen.address, seen.in_call) for seen in faults} == {(DATA + 0x1000, True)}
        assert faults[-1].access == user_write
        assert answered == Answer(entered, 8, None)
        assert isinstance(denied, FaultSeen)
        assert denied.outcome == AccessError(16, False)
        assert denied.did == (Event.FAULT_ACCESS,)
        assert isinstance(signal, SignalSeen)
        assert (signal.info.number, signal.info.code, signal.info.address) == (
            sig.SIGSEGV,
            sig.SEGV_MAPERR,
            16,
        )
        assert (signal.forced, signal.handler, signal.fatal) == (True, 0, True)
        assert last is machine.process
        assert ended.signal == sig.SIGSEGV


@every_isa
def test_nobody_listening_costs_nothing(tmp_path: Path, isa: str) -> None:
    with loaded(tmp_path, isa, GETPIDS) as machine:
        before, physical = _callbacks(machine), machine.physical
        attached = machine.observers.attach(
            call_entered=print, call_answered=print, fault=print, signal=print, mapping=print, ended=print
        )
        second = machine.observers.attach(fault=print)
        assert all(now != then for now, then in zip(_callbacks(machine)[:3], before[:3], strict=True))
        attached.detach()
        attached.detach()
        assert (machine.cpu.on_system_call, physical.on_mapping) == (before[2], None)
        assert machine.cpu.on_fault != before[0]
        second.detach()
        assert _callbacks(machine) == before


@every_isa
def test_listeners_come_and_go_in_the_middle_of_a_run(tmp_path: Path, isa: str) -> None:
    with loaded(tmp_path, isa, GETPIDS) as machine:
        first: list[str] = []
        second: list[str] = []

        def entered(call: SystemCall) -> None:
            first.append(call.name)
            attached.detach()
            machine.observers.attach(call_entered=lambda later: second.append(later.name))

        attached = machine.observers.attach(call_entered=entered)
        assert machine.run().code == 7
        assert (first, second) == (["getpid"], ["getpid", "exit_group"])


@every_isa
@pytest.mark.parametrize("kind", ["call_entered", "call_answered", "fault", "signal", "ended"])
@pytest.mark.parametrize("error", [IndexError, OSError, KeyboardInterrupt])
def test_what_a_listener_raises_reaches_the_caller_of_run(
    tmp_path: Path, isa: str, kind: str, error: type[BaseException]
) -> None:
    with loaded(tmp_path, isa, STORE_READ_CRASH, stdin=b"12345678") as machine:
        heard: list[object] = []

        def fail(event: object) -> None:
            if not isinstance(event, FaultSeen) or event.in_call:  # where a call would catch it
                heard.append(event)
                raise error("mine")

        with machine.observers.attach(**{kind: fail}):
            with pytest.raises(error, match="mine"):
                machine.run()
            assert heard
        ended = machine.run()  # it goes on where it was
        assert ended.signal == sig.SIGSEGV
        assert machine.kernel.calls_by_name() == {"read": 1}


def test_a_listener_that_fails_outside_a_run_fails_at_once(tmp_path: Path) -> None:
    def fail(_change: object) -> None:
        raise ValueError("mine")

    with loaded(tmp_path, "x86_64", GETPIDS) as machine:
        assert machine.process is not None
        with machine.observers.attach(mapping=fail), pytest.raises(ValueError, match="mine"):
            machine.process.mm.unmap(DATA, DATA + 0x1000)
        assert machine.process.mm.areas.find(DATA) is None
        assert machine.run().code == 7


@every_isa
def test_a_call_that_waits_is_answered_when_it_is_done(tmp_path: Path, isa: str) -> None:
    pause = {
        "x86_64": f"mov rdi, {DATA}; mov qword ptr [rdi], 1; xor esi, esi; mov eax, 35; syscall; mov edi, 0;",
        "arm64": f"mov x0, #{DATA}; mov x1, #1; str x1, [x0]; mov x1, #0; mov x8, #101; svc #0; mov x0, #0;",
    }
    with loaded(tmp_path, isa, pause[isa] + EXIT[isa]) as machine:
        answers: list[Answer] = []
        machine.observers.attach(call_answered=answers.append)
        machine.run()
        asleep, awake, gone = answers
        assert (asleep.call.name, asleep.result) == ("nanosleep", None)
        assert asleep.wait is not None
        assert awake == Answer(asleep.call, 0, None)
        assert (gone.call.name, gone.result, gone.wait) == ("exit_group", None, None)


def test_an_unknown_number_is_told_without_a_name(tmp_path: Path) -> None:
    with loaded(tmp_path, "x86_64", f"mov eax, 511; syscall; {EXIT['x86_64']}") as machine:
        answers: list[Answer] = []
        machine.observers.attach(call_answered=answers.append)
        machine.run()
        assert (answers[0].call.number, answers[0].call.name, answers[0].result) == (511, "", -errno.ENOSYS)


def test_every_change_of_the_mappings_is_told(tmp_path: Path) -> None:
    calls = f"""
        mov eax, 10; mov edi, {DATA}; mov esi, 0x1000; mov edx, 1; syscall          # mprotect
        mov eax, 11; mov edi, {DATA + 0x1000}; mov esi, 0x1000; syscall             # munmap
        mov eax, 28; mov edi, {DATA + 0x2000}; mov esi, 0x1000; mov edx, 10; syscall  # madvise DONTFORK
        mov eax, 9; mov edi, 0x1700000; mov esi, 0x1800; mov edx, 3; mov r10d, 0x132; syscall  # GROWSDOWN
        mov byte ptr [0x16ff000], 1
    """
    with loaded(tmp_path, "x86_64", calls + EXIT["x86_64"]) as machine:
        heard: list[tuple[Change, int, int]] = []
        machine.observers.attach(mapping=lambda event: heard.append((event.change, event.start, event.end)))
        machine.run()
        assert heard == [
            (Change.PROTECTED, DATA, DATA + 0x1000),
            (Change.UNMAPPED, DATA + 0x1000, DATA + 0x2000),
            (Change.MARKED, DATA + 0x2000, DATA + 0x3000),
            (Change.MAPPED, 0x1700000, 0x1702000),
            (Change.GROWN, 0x16FF000, 0x1700000),
        ]


def test_a_handled_signal_names_its_handler(tmp_path: Path) -> None:
    handled = f"""
        mov rbx, {DATA}
        lea rax, [rip + handler]; mov [rbx], rax
        mov qword ptr [rbx + 8], 0x04000000; lea rax, [rip + back]; mov [rbx + 16], rax
        mov eax, 13; mov edi, 10; mov rsi, rbx; xor edx, edx; mov r10d, 8; syscall  # rt_sigaction(SIGUSR1)
        mov eax, 39; syscall
        mov edi, eax; mov esi, 10; mov eax, 62; syscall                             # kill(getpid(), SIGUSR1)
        {EXIT["x86_64"]}
        back: mov eax, 15; syscall
        handler: ret
    """
    with loaded(tmp_path, "x86_64", handled) as machine:
        heard: list[object] = []
        machine.observers.attach(signal=heard.append, call_answered=heard.append)
        machine.run()
        (seen,) = (event for event in heard if isinstance(event, SignalSeen))
        assert (seen.info.number, seen.forced, seen.fatal) == (sig.SIGUSR1, False, False)
        assert START < seen.handler < START + 0x200
        returned = [
            event for event in heard if isinstance(event, Answer) and event.call.name == "rt_sigreturn"
        ]
        assert [(answer.result, answer.wait) for answer in returned] == [(None, None)]
