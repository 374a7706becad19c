"""Calls with every bit and command there is, one after another: what strace(1) writes of their arguments.

`python -m tests.observe.strace.flags` writes expected/flags.txt, and wants what `record` wants. No call here
does anything: each has a descriptor or an address that is none.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from aether_emu.linux.abi.x86_64_calls import SYSTEM_CALLS
from tests.observe.strace.record import EXPECTED

FLAGS = EXPECTED / "flags.txt"
_VARIED = None
_NO_FD, _NO_FOLDER, _NO_PATH = -1, -1, 0
_CALLS: tuple[tuple[str, tuple[int | None, ...]], ...] = (
    ("openat", (_NO_FOLDER, _NO_PATH, _VARIED, 0o600)),
    ("pipe2", (0, _VARIED)),
    ("dup3", (_NO_FD, _NO_FD, _VARIED)),
    ("fcntl", (_NO_FD, 4, _VARIED)),
    ("fcntl", (_NO_FD, _VARIED, 0)),
    ("flock", (_NO_FD, _VARIED)),
    ("close_range", (0xFFFF_FFFF, 0, _VARIED)),
    ("newfstatat", (_NO_FOLDER, _NO_PATH, 0, _VARIED)),
    ("statx", (_NO_FOLDER, _NO_PATH, _VARIED, 0, 0)),
    ("statx", (_NO_FOLDER, _NO_PATH, 0, _VARIED, 0)),
    ("faccessat2", (_NO_FOLDER, _NO_PATH, _VARIED, 0)),
    ("faccessat2", (_NO_FOLDER, _NO_PATH, 0, _VARIED)),
    ("renameat2", (_NO_FOLDER, _NO_PATH, _NO_FOLDER, _NO_PATH, _VARIED)),
    ("fallocate", (_NO_FD, _VARIED, 0, 0)),
    ("fadvise64", (_NO_FD, 0, 0, _VARIED)),
    ("sync_file_range", (_NO_FD, 0, 0, _VARIED)),
    ("lseek", (_NO_FD, 0, _VARIED)),
    ("preadv2", (_NO_FD, 0, 0, 0, 0, _VARIED)),
    ("splice", (_NO_FD, 0, _NO_FD, 0, 0, _VARIED)),
    ("setxattr", (_NO_PATH, 0, 0, 0, _VARIED)),
    ("mmap", (0, 0, _VARIED, 2, -1, 0)),
    ("mmap", (0, 0, 0, _VARIED, -1, 0)),
    ("mremap", (1, 0, 0, _VARIED, 0)),
    ("madvise", (1, 0, _VARIED)),
    ("msync", (1, 0, _VARIED)),
    ("mlock2", (1, 0, _VARIED)),
    ("pkey_alloc", (1, _VARIED)),
    ("rt_sigprocmask", (_VARIED, 1, 0, 0)),
    ("clock_nanosleep", (0, _VARIED, 0, 0)),
    ("clock_getres", (_VARIED, 0)),
    ("getrusage", (_VARIED, 1)),
    ("getpriority", (_VARIED, -5)),
    ("getrandom", (1, 1, _VARIED)),
    ("wait4", (-1, 0, _VARIED, 0)),
    ("waitid", (0, 0, 0, _VARIED, 0)),
    ("socket", (0, _VARIED, 0)),
    ("futex", (1, _VARIED, 0, 0, 0, 0)),
    ("epoll_ctl", (_NO_FD, _VARIED, _NO_FD, 0)),
    ("mknodat", (_NO_FOLDER, _NO_PATH, _VARIED, 0)),
    ("rt_sigaction", (_VARIED, 0, 0, 0)),
    ("arch_prctl", (_VARIED, 0)),
)
_VALUES = (*range(16), *(1 << bit for bit in (*range(4, 23), 24, 26, 31)), 0xFFFF_FFFF)


def made() -> list[tuple[str, list[int]]]:
    """Every call, with its arguments."""
    return [
        (name, [value if argument is _VARIED else argument for argument in arguments])
        for name, arguments in _CALLS
        for value in _VALUES
    ]


def _make() -> None:
    libc = ctypes.CDLL(None)
    numbers = {name: number for number, name in SYSTEM_CALLS.items()}
    for name, arguments in made():
        libc.syscall(numbers[name], *(ctypes.c_long(argument) for argument in arguments))
    os._exit(0)


def record() -> None:
    """Run the calls under strace."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "lines"
        command = [sys.executable, "-m", "tests.observe.strace.flags", "make"]
        subprocess.run(["strace", "-o", output, *command], executable="/usr/bin/strace", check=True)
        lines = output.read_text().splitlines()[-len(made()) - 2 : -2]
    texts = [re.sub(r" += [^=]*$", "", line) for line in lines]
    FLAGS.write_text("".join(f"{text}\n" for text in texts))


if __name__ == "__main__":
    if sys.argv[1:]:
        _make()
    record()
