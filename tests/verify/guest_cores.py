"""Cores of our own machine, with a guest program stopped in the middle of its run."""

from __future__ import annotations

from pathlib import Path

from aether_emu.config import Config
from aether_emu.grants import Grants
from aether_emu.linux.files.streams import BufferStream
from aether_emu.observe.core import write_core
from aether_emu.system import Machine
from tests.guests.running import Target, program


def stopped_core(folder: Path, target: Target, name: str, blocks: int = 2000, **options: object) -> Path:
    """Run `name` of guest/bin for some blocks, and write the core of that moment."""
    path = folder / f"{target}.core"
    config = Config.load(overrides={"page_size": target.page_size, "ram": "64M", **options})
    machine = Machine(target.isa, config=config)
    streams = {stream: BufferStream() for stream in ("stdin", "stdout", "stderr")}
    try:
        machine.load(program(target.isa, name), [name], streams=streams, grants=Grants(cwd=folder))
        assert machine.run_for(blocks) is None, "the program ended before"
        write_core(machine, path)
    finally:
        machine.close()
    return path
