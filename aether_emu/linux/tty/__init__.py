"""Terminals: pseudo-terminals inside the machine, and the one that the run itself has.

    modes        struct termios, and its older and newer sisters
    discipline   what becomes of bytes on their way: editing, echo, signals, columns (N_TTY)
    terminal     what every terminal has: modes, size, whose it is
    pty          pairs of a terminal and its master, /dev/ptmx, /dev/pts
    console      the terminal of the host that the run was started at

Nothing here knows a process: whom a signal reaches is the business of `calls/terminals`.
"""
