"""How many pseudo-terminals a machine has."""

MOST = 4096
"""At one time (kernel.pty.max)."""
