"""Verification: what a specification, the engine's MMU and silicon make of the same page tables."""
