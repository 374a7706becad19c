"""Who has a file open, in words: the process, its name and the descriptor, for messages about that file."""

from __future__ import annotations

from collections.abc import Iterable

from aether_emu.errors import shown
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.open_file import OpenFile
from aether_emu.linux.files.synthetic import Text


def holder_of(processes: Iterable[Files], file: OpenFile) -> str:
    """The first descriptor that has it, and whose: "descriptor 5 of process 17 (bash)"."""
    for files in processes:
        for fd, descriptor in files.table.descriptors.items():
            if descriptor.file is file:
                return f"descriptor {fd} of {_process_of(files)}"
    return "no descriptor of a process"


def _process_of(files: Files) -> str:
    number = files.proc.pid
    process = files.proc.find(number)
    name = None if process is None else process.texts.get("comm")
    if not isinstance(name, Text):
        return f"process {number}"
    return f"process {number} ({shown(name.provide().rstrip())})"
