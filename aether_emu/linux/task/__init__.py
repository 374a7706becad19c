"""Tasks and processes: who runs, who waits, what signals they get."""
