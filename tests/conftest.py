"""What all tests share: how hypothesis draws its cases."""

from __future__ import annotations

from hypothesis import settings

from aether_emu.interruption import watcher

# The same cases on every run and host, and no verdict that depends on how fast the host is.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")

# The thread that hears of signals stays once it is there, with its pipe: no test takes that for its own leak.
watcher()
