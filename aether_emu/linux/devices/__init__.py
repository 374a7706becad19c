"""Devices with memory that programs map: a framebuffer, and what is driven by registers."""
