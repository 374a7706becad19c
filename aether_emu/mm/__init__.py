"""What is common to all architectures: page tables, areas, faults, frames."""
