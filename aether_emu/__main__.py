"""`python -m aether_emu` is the `aether` command."""

from __future__ import annotations

from aether_emu.cli.main import main

if __name__ == "__main__":  # worker processes import this file
    main("python -m aether_emu")
