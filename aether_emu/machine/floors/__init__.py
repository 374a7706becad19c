"""Bare engines with the least around them: what benchmarks compare with."""
