"""Tests of the memory manager common to all architectures."""
