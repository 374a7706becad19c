"""What all tests share: how hypothesis draws its cases, and what Ctrl-C is."""

from __future__ import annotations

import signal

from hypothesis import settings

from aether_emu.interruption import watcher

# The same cases on every run and host, and no verdict that depends on how fast the host is.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")

# Whoever runs the tests in the background lets them ignore SIGINT; the programs that they start must not.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The thread that hears of signals stays once it is there, with its pipe: no test takes that for its own leak.
watcher()
