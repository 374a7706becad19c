"""What engines and hosts are known to do otherwise than the manuals: each with its reference.

A laboratory predicts them by name; they are counted apart. One that a run had cases for and did not
meet is reported as gone, which is a failure: the list would be wrong.
"""

from __future__ import annotations

KNOWN: dict[str, str] = {
    "rmw-reads-first": (
        "Unicorn judges a locked read-modify-write on x86_64 as a read, and as a write only where the read "
        "goes through: a fault then has W/R clear (Intel SDM 3A 4.7 has it set)"
    ),
    "block-at-any-level": (
        "Unicorn takes block descriptors at levels whose granule has none, such as L0 with pages of 4K "
        "(Arm ARM D8.3.1: a translation fault)"
    ),
    "block-low-bits": (
        "Unicorn lays the address bits below a block's size, which are RES0, over the output address "
        "(Arm ARM D8.3.1)"
    ),
    "amd-reserves-g": ("AMD reserves bit 8 of PML4 and PML5 entries (AMD64 APM 2, 5.3.3); Intel ignores it"),
    "pvm-alignment": ("kvm_pvm runs ring 3 as if CR0.AM were 1: with EFLAGS.AC, unaligned accesses get #AC"),
}

NOT_ASKED: tuple[str, ...] = (
    "PCID and ASID tags, global entries: every switch of the engine drops everything",
    "a walk through a hole reads 0 in this engine; a bus would answer with an external abort or all ones",
    "SCTLR_EL1.EPAN, LPA and LPA2 on ARM64: the engine has none of them",
    "hardware access flag and dirty state on ARM64 (TCR_EL1.HA, HD): the engine has none",
    "memory types have no effect in this engine: they are compared as encodings only",
)
"""What no case can show here."""
