"""What all tests share: how hypothesis draws its cases, and what signals do."""

from __future__ import annotations

import signal

from hypothesis import settings

from aether_emu.interruption import watcher

# The same cases on every run and host, and no verdict that depends on how fast the host is.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")

# Whoever runs the tests in the background lets them ignore these; the programs that they start must not.
for number, usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGQUIT, signal.SIG_DFL),
):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)

# The thread that hears of signals stays once it is there, with its pipe: no test takes that for its own leak.
watcher()
