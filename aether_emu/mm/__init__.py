"""The memory of programs, on every architecture: areas, faults, page tables, objects, frames. See README.md."""
