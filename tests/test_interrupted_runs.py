"""Ending a run from outside, from Python: Ctrl-C, a time limit, another thread. The machine can go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from aether_emu.errors import AetherError, TimedOut
from aether_emu.linux.files.streams import BufferStream, DescriptorStream, Stream
from aether_emu.linux.task.scheduler import Interrupted
from aether_emu.system import Machine
from tests.cli.command import PATIENCE, environment
from tests.guests.running import GUEST, ISAS, expected, program


class Telling(BufferStream):
    """Says when the guest writes: from then on `spin` spins."""

    def __init__(self, tell: Callable[[], object]) -> None:
        super().__init__()
        self._tell = tell

    def write(self, data: bytes) -> int:
        self._tell()
        return super().write(data)


@contextmanager
def loaded(isa: str, name: str, stdout: Stream) -> Iterator[Machine]:
    machine = Machine(isa, ram="64M")
    try:
        streams = {"stdin": BufferStream(), "stdout": stdout, "stderr": BufferStream()}
        machine.load(program(isa, name), [name], streams=streams)
        yield machine
    finally:
        machine.close()  # LeakError unless all is as it should be


def send(number: int) -> None:
    """From another thread, as the host does it: at any time."""
    threading.Thread(target=os.kill, args=(os.getpid(), number)).start()


@pytest.mark.parametrize("isa", ISAS)
def test_ctrl_c_ends_a_spinning_run_again_and_again(isa: str) -> None:
    with loaded(isa, "spin", Telling(lambda: send(signal.SIGINT))) as machine:
        with pytest.raises(KeyboardInterrupt):
            machine.run()
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                send(signal.SIGINT)
                machine.run()
        assert machine.process is not None and machine.process.ended is None


def test_a_handler_that_raises_nothing_lets_the_run_go_on_and_one_that_raises_ends_it() -> None:
    calls = []

    def handle(number: int, _frame: object) -> None:
        calls.append(number)
        if len(calls) == 3:
            raise ZeroDivisionError
        send(signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, handle)
    try:
        with loaded("x86_64", "spin", Telling(lambda: send(signal.SIGALRM))) as machine:
            with pytest.raises(ZeroDivisionError):
                machine.run()
            assert len(calls) == 3
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("isa", ISAS)
def test_a_time_limit_ends_a_run_in_any_thread(isa: str) -> None:
    errors: list[TimedOut] = []

    def run(machine: Machine) -> None:
        with pytest.raises(TimedOut) as caught:
            machine.run(timeout=0.05)
        errors.append(caught.value)

    with loaded(isa, "spin", BufferStream()) as machine:
        run(machine)
        thread = threading.Thread(target=run, args=(machine,))
        thread.start()
        thread.join()
        with pytest.raises(TimedOut):
            machine.run_for(1 << 60, timeout=0.05)
    assert [error.seconds for error in errors] == [0.05, 0.05]
    assert isinstance(errors[0], AetherError) and isinstance(errors[0], TimeoutError)


@pytest.mark.parametrize("isa", ISAS)
def test_a_run_that_was_ended_many_times_does_what_it_does_in_one_go(isa: str) -> None:
    stdout, ends = BufferStream(), 0
    with loaded(isa, "tour", stdout) as machine:
        while True:
            try:
                ended = machine.run(timeout=0.001)
                break
            except TimedOut:
                ends += 1
    assert ends
    assert ended.status == 0
    assert bytes(stdout.written).decode() == expected(isa, "tour")


def test_another_thread_ends_a_run() -> None:
    machines: list[Machine] = []

    def stop() -> None:
        threading.Thread(target=machines[0].cpu.interrupt).start()

    with loaded("x86_64", "spin", Telling(stop)) as machine:
        machines.append(machine)
        with pytest.raises(Interrupted):
            machine.run()
        with pytest.raises(TimedOut):
            machine.run(timeout=0.05)


def test_ctrl_c_ends_a_cpu_without_a_system_too() -> None:
    with (
        loaded("x86_64", "spin", Telling(lambda: send(signal.SIGINT))) as machine,
        pytest.raises(KeyboardInterrupt),
    ):
        machine.computer.run()


def test_a_pipe_that_nobody_reads_keeps_no_run_from_ending() -> None:
    read, write = os.pipe()
    filler = 0
    os.set_blocking(write, False)
    try:
        while True:
            filler += os.write(write, bytes(4096))
    except BlockingIOError:
        os.set_blocking(write, True)
    try:
        with loaded("x86_64", "hello", DescriptorStream(write)) as machine:
            with pytest.raises(TimedOut):
                machine.run(timeout=0.05)
            while filler:
                filler -= len(os.read(read, filler))
            assert machine.run(timeout=PATIENCE).status == 0
        assert b"hello" in os.read(read, 4096).lower()
    finally:
        os.close(read)
        os.close(write)


def test_a_stream_writes_all_that_somebody_reads() -> None:
    read, write = os.pipe()
    data = os.urandom(1 << 20)
    received = bytearray()

    def take() -> None:
        while chunk := os.read(read, 1 << 16):
            received.extend(chunk)

    reader = threading.Thread(target=take)
    reader.start()
    stream, done = DescriptorStream(write), 0
    while done < len(data):
        try:
            done += stream.write(data[done:])
        except BlockingIOError:  # the reader was slow
            assert stream.write(b"") == 0
    os.close(write)
    reader.join()
    os.close(read)
    assert received == data


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_run_in_a_thread_does_not_outlive_the_program(interrupted: bool) -> None:
    code = f"""
import sys, threading
from aether_emu import Machine
machine = Machine()
machine.load({str(GUEST / "bin/x86_64/spin")!r})
thread = threading.Thread(target=machine.run)
thread.start()
thread.join() if {interrupted} else sys.stdin.readline()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"spinning\n"
    if interrupted:
        child.send_signal(signal.SIGINT)
    _, errors = child.communicate(b"\n", timeout=PATIENCE)
    assert (b"KeyboardInterrupt" in errors) == interrupted
    assert (child.returncode == 0) != interrupted
