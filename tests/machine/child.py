"""Run a scenario in a forked child: a signal that kills it is then one failed test and not the end of all."""

from __future__ import annotations

import faulthandler
import os
import signal
import traceback
from collections.abc import Callable

HANG_SECONDS = 60
"""A child that still runs then is killed by SIGALRM, whatever it is stuck in."""


def outcome_of(scenario: Callable[[], None], *, keep_handlers: bool = False) -> tuple[int, str]:
    """Run it; return (signal that killed the child or 0, what it raised or "").

    With `keep_handlers` the handlers of fault signals stay as they are, for a machine made before the fork.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        failed = 1
        try:
            if not keep_handlers:
                faulthandler.disable()
            signal.alarm(HANG_SECONDS)
            scenario()
            failed = 0
        except BaseException:
            os.write(writer, traceback.format_exc()[-4000:].encode())
        finally:
            os._exit(failed)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        report = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, report


def survives(scenario: Callable[[], None]) -> None:
    """Assert that the scenario runs to its end: no signal, no exception."""
    killed_by, report = outcome_of(scenario)
    assert (killed_by, report) == (0, ""), f"killed by signal {killed_by}\n{report}"


def in_other_process(action: Callable[[], None]) -> None:
    """Let another process do something to a file, and wait until it has."""
    survives(action)
