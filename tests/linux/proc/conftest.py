"""Processes to look at in /proc, on every kind of machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aether_emu.grants import Grants
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.task.process import Process
from aether_emu.system import Machine
from tests.guests.running import TARGETS, Target, program


@pytest.fixture(params=TARGETS, ids=str)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """`hello` with two arguments, loaded."""
    target: Target = request.param
    made = Machine(target.isa, page_size=target.page_size, ram="8M", aperture="4M", seed=5)
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    path = program(target.isa, "hello")
    try:
        argv = ["hello", "two words", ""]
        made.load(path, argv, env={"K": "V"}, grants=Grants(cwd=path.parent), streams=streams)
        yield made
    finally:
        made.close()


@pytest.fixture
def fresh(machine: Machine) -> Process:
    """The process before its first instruction."""
    assert machine.process is not None
    return machine.process


@pytest.fixture
def process(machine: Machine, fresh: Process) -> Process:
    """The process some blocks into its run."""
    assert machine.run_for(20) is None
    return fresh
