"""The memory of programs: areas, faults, page tables, objects, frames. README.md has the picture."""
