"""What all tests share: how hypothesis draws its cases."""

from __future__ import annotations

from hypothesis import settings

# The same cases on every run and host, and no verdict that depends on how fast the host is.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")
