"""Swap: what entries say of pages that are out of memory, the slots they name, and where the bytes are."""
