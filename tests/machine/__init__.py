"""Tests of the emulated computer."""
