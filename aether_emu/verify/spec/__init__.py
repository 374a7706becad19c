"""What a page-table walk must give, read from the manuals anew.

A judge shares nothing with the judged: nothing here imports `aether_emu.arch`, and no table, constant
or function of the encoders is used. Every bit is written where its manual's section is named. The
walkers work on arrays, one element a case, so that a million entries cost a second.
"""
