"""Tests of `aether_emu.litmus`."""
