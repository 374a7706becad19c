"""Layer 1: what each ISA's manual says, as data and pure functions. No engine."""
