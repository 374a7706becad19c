"""Tests of the ARM64 tables."""
