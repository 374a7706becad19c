"""Locks on files as plain data, and back. Who waits for one makes its call again, and waits anew.

An owner is a table of descriptors or an open file: its number among those that are captured says which.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from aether_emu.linux.files.files import Files
from aether_emu.linux.files.locks import FileLocks, Lock, key_of
from aether_emu.linux.files.open_file import OpenFile
from aether_emu.linux.files.table import DescriptorTable
from aether_emu.linux.files.tmp_capture import CaptureError

State = dict[str, Any]
Number = Callable[[OpenFile], "int | None"]
"""The number of an open file, None if it is not captured."""


def capture(locks: FileLocks, tables: Sequence[DescriptorTable], number: Number) -> list[State]:
    """All locks that are held, in the order in which the files were locked. Raises CaptureError."""
    return [
        {
            "file": _file_of(key, [lock.owner for lock in ranges], whole, tables, number),
            "ranges": [
                [*_owner(lock.owner, tables, number), lock.kind, lock.start, lock.end, lock.pid]
                for lock in ranges
            ],
            "whole": [[_captured(file, number), kind] for file, kind in whole.items()],
        }
        for key, ranges, whole in locks.held()
    ]


def _file_of(
    key: Hashable,
    owners: Sequence[Hashable],
    whole: Mapping[OpenFile, int],
    tables: Sequence[DescriptorTable],
    number: Number,
) -> int:
    """An open file of the locked one: of its owners' any that is the same file will do."""
    for owner in (*whole, *owners):
        if isinstance(owner, OpenFile):
            return _captured(owner, number)
    for table in tables:
        if table in owners:
            for descriptor in table.descriptors.values():
                if key_of(descriptor.file) == key:
                    return _captured(descriptor.file, number)
    raise CaptureError("a file is locked that no descriptor is left of: who holds the lock can't be captured")


def _owner(owner: Hashable, tables: Sequence[DescriptorTable], number: Number) -> tuple[str, int]:
    if isinstance(owner, OpenFile):
        return "file", _captured(owner, number)
    for index, table in enumerate(tables):
        if table is owner:
            return "table", index
    raise CaptureError("a file is locked by a process that is gone: the lock can't be captured")


def _captured(file: OpenFile, number: Number) -> int:
    found = number(file)
    if found is None:
        raise CaptureError("a file is locked that only a mapping holds: the lock can't be captured")
    return found


def restore(
    state: Sequence[State], locks: FileLocks, tables: Mapping[int, Files], file: Callable[[int], OpenFile]
) -> None:
    """Lock again what `capture` described; everything is open already."""
    for described in state:
        ranges: list[Lock] = []
        for sort, index, *rest in described["ranges"]:
            owner: Hashable
            if sort == "table":
                owner = tables[index].table
                tables[index].watch_locks(file(described["file"]))
            else:
                owner = file(index)
                file(index).on_last_close = locks.closed
            ranges.append(Lock(owner, *rest))
        whole = {file(index): kind for index, kind in described["whole"]}
        for each in whole:
            each.on_last_close = locks.closed
        locks.go_on(file(described["file"]), ranges, whole)
