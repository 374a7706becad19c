"""What strace(1) says of our test programs: `python -m tests.observe.strace.record` writes expected/NAME.txt.

It wants strace 6.1, Linux on x86_64 and the superuser. The lines here are from Linux 6.18.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tests.observe.strace.lines import comparable
from tests.programs.run import ENVIRONMENT
from tests.programs.workplace import furnish

EXPECTED = Path(__file__).parent / "expected"
PROGRAMS = Path(__file__).parents[2] / "programs" / "bin"
NAMES = ("calls", "control", "files", "memory", "numbers", "control-glibc", "memory-glibc")


def record(name: str) -> None:
    """Run one program under strace, in a fresh folder with the files that the programs work on."""
    with tempfile.TemporaryDirectory() as folder:
        work, output = Path(folder) / "work", Path(folder) / "lines"
        furnish(work)
        subprocess.run(
            ["strace", "-o", output, PROGRAMS / "x86_64" / name],
            executable="/usr/bin/strace",
            cwd=work,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        lines = comparable(output.read_text().splitlines())
    (EXPECTED / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    for each in NAMES:
        record(each)
