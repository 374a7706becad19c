"""Verification: what a specification, the engine's MMU and silicon make of the same page tables.

For other projects' tests: `open_image` and `image_of` give memory, `walk` one address, `lint` findings.
"""

from aether_emu.verify.images import Image, ImageError, image_of, open_image
from aether_emu.verify.lint import lint
from aether_emu.verify.lint_rules import Finding, Severity
from aether_emu.verify.tables import Survey, Tables, Walk, open_tables, survey, walk

__all__ = [
    "Finding",
    "Image",
    "ImageError",
    "Severity",
    "Survey",
    "Tables",
    "Walk",
    "image_of",
    "lint",
    "open_image",
    "open_tables",
    "survey",
    "walk",
]
