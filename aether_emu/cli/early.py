"""The first thing that the command does: from here on Ctrl-C ends it with status 130, and no traceback.

Nothing is imported for it that is not in the interpreter already. Before it, Python itself starts, and would
show where it was interrupted: `scripts/aether` starts it with SIGINT blocked.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what `signal` wraps: that takes milliseconds to make its enums
import os

INTERRUPTED = 130


def listen() -> None:
    """Until the command is under way nothing is lost when it ends where it stands."""
    _signal.signal(_signal.SIGINT, lambda _number, _frame: os._exit(INTERRUPTED))
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, [_signal.SIGINT])
