"""Running a program twice: on the host itself and on the emulated machine."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aether_emu.grants import Grants
from aether_emu.linux.files.streams import BufferStream
from aether_emu.system import Machine

HOST_ISA = {"x86_64": "x86_64", "aarch64": "arm64"}[platform.machine()]
ISAS = ("x86_64", "arm64")
LARGER_PAGES = [pytest.param("arm64", 16384, id="arm64-16K"), pytest.param("arm64", 65536, id="arm64-64K")]
ENVIRONMENT = {"PATH": "/nowhere", "LC_ALL": "C", "TZ": "UTC", "HOME": "/"}
_PATIENCE = 120  # seconds: far more than any of them takes on the host, so that one that hangs has a name


@dataclass(frozen=True)
class Outcome:
    """What a run left behind: `status` is the exit status, or minus the signal that ended it."""

    status: int
    output: bytes
    errors: bytes


def run_natively(program: Path, arguments: list[str], directory: Path, source: bytes = b"") -> Outcome:
    """Run on the host, with `directory` as the working directory and `source` on stdin."""
    done = subprocess.run(
        [program.name, *arguments],
        executable=program,
        cwd=directory,
        env=ENVIRONMENT,
        input=source,
        capture_output=True,
        check=False,
        timeout=_PATIENCE,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def run_emulated(
    program: Path | str,
    arguments: list[str],
    grants: Grants,
    source: bytes = b"",
    *,
    isa: str = HOST_ISA,
    granule: int = 4096,
    live_state: bool = True,
    **options: Any,
) -> Outcome:
    """Run on a fresh machine with pages of `granule` bytes, under the host's own user but for `uid`.

    Closing the machine fails if a frame leaks. `options` are those of `Machine`.
    """
    output, errors = BufferStream(), BufferStream()
    options = {"ram": "256M", "seed": 7, "uid": os.getuid(), "gid": os.getgid(), **options}
    machine = Machine(isa, page_size=granule, live_state=live_state, **options)
    try:
        machine.load(
            program,
            [Path(program).name, *arguments],
            env=ENVIRONMENT,
            grants=grants,
            streams={"stdin": BufferStream(source), "stdout": output, "stderr": errors},
        )
        ended = machine.run()
    finally:
        machine.close()
    status = -ended.signal if ended.signal else ended.code
    return Outcome(status, bytes(output.written), bytes(errors.written))
