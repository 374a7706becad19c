"""Tests of what the manuals say, as data and pure functions."""
