"""Tests of the allocator of kernel objects."""
