"""Tools that look at a machine without changing what it does.

`strace` writes system calls, faults and signals as lines, `crash` explains a signal that killed a program,
`stats` counts what happened, `core` writes memory as an ELF core, `bench` measures beside a floor.
"""
