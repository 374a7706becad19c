"""Benchmarks: each figure beside its floor, in the same run, on equally fresh memory.

figure       what a figure is, and how alternating pairs become a ratio
guests       the guest programs, on the machine and on bare engines
faults calls execution tables edits switching startup real     one family of figures each
catalogue    all of them by name, with the project's goals
report       a table for people, JSON for comparing two commits
"""
