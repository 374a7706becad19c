"""Litmus tests of page tables: what CPUs may see while entries change, against published verdicts.

A test (`text` reads one) is a few threads of loads, stores, entry writes and invalidations, and a condition
on how they end. `explore` runs every interleaving of it, times everything that a TLB may have kept (`rules`,
what the manuals allow), on emulated CPUs over one RAM (`laboratory`). `suite` has the tests that come with
the package, and compares what was reached with the verdict that each file quotes.
"""
