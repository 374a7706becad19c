"""The start of a run: CPU time of `aether run hello` beside that of importing what it needs.

Both are child processes; their time is user and system time as wait4 reports it. One run of each
goes before, so that modules are compiled and everything is in the host's cache.
"""

from __future__ import annotations

import os
import subprocess
import sys

from aether_emu.observe.bench import guests
from aether_emu.observe.bench.figure import BenchError, Figure

IMPORTS = "import unicorn, numpy, click"
COMMAND = "from aether_emu.cli.main import main; main()"  # what the script `aether` consists of


def figure(isa: str, goal: float, *, repetitions: int = 9) -> Figure:
    """The figure for `hello`."""
    hello = str(guests.path_of(isa, "hello"))
    warm: set[str] = set()

    def child(*arguments: str) -> float:
        if arguments[-1] not in warm:
            cpu_seconds(arguments)
            warm.add(arguments[-1])
        return cpu_seconds(arguments)

    return Figure(
        name="start",
        isa=isa,
        what="whole process, CPU time",
        program="aether run hello",
        floor_is=f'python -c "{IMPORTS}"',
        unit="process",
        ours=lambda: child("-c", COMMAND, "run", hello),
        floor=lambda: child("-c", IMPORTS),
        repetitions=repetitions,
        goal=goal,
    )


def cpu_seconds(arguments: tuple[str, ...]) -> float:
    """User and system seconds of a child Python that finds the package. Raises BenchError if it fails."""
    paths = [str(guests.SOURCE_TREE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else one side would be compiled anew each time
    environment.pop("OPENBLAS_NUM_THREADS", None)  # which this command has set for itself
    with subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stderr is not None, "stderr is a pipe"
        try:
            complaint = process.stderr.read().decode(errors="replace").strip()
            _pid, status, usage = os.wait4(process.pid, 0)
        except BaseException:  # Ctrl-C need not have reached it
            process.kill()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = complaint.splitlines()[-1:] or [f"exit status {process.returncode}"]
        raise BenchError(f"{' '.join(arguments)}: {last[0]}")
    return usage.ru_utime + usage.ru_stime
