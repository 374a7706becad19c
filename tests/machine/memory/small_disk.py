"""A disk of 64 KiB that a test can fill, without touching any disk of the host."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.machine.child import survives

PAGE = 4096


def on_small_disk(folder: Path, scenario: Callable[[], None]) -> None:
    """Run the scenario in a child that sees a disk of 64 KiB at `folder`, in a mount namespace of its own."""
    new_namespace, new_user = 0x20000, 0x10000000
    recursive_private = 0x4000 | 0x40000
    user, group = os.getuid(), os.getgid()

    def enter() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(new_namespace | (new_user if user else 0)) == 0, os.strerror(ctypes.get_errno())
        if user:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        assert libc.mount(None, b"/", None, ctypes.c_ulong(recursive_private), None) == 0
        disk = libc.mount(b"tmpfs", bytes(folder), b"tmpfs", ctypes.c_ulong(0), b"size=64k")
        assert disk == 0, f"no mount: {os.strerror(ctypes.get_errno())}"
        scenario()

    survives(enter)


def fill_disk(folder: Path) -> None:
    """Leave no free block on the small disk: all goes into its file `filler`."""
    with (folder / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
        while True:
            filler.write(bytes(PAGE))
