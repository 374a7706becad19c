"""The kernel's own objects in emulated RAM: caches of them, slabs of frames, magazines of CPUs, checks."""
