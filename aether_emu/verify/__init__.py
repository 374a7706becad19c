"""Verification: what a specification, the engine's MMU and silicon make of the same page tables.

For other projects' tests: `open_image` and `image_of` give memory, `walk` one address, `lint` findings;
`differential` puts a suite of cases to specification and engine, `judge` an encoder of yours.
"""

from typing import TYPE_CHECKING

from aether_emu.verify.tables.images import Image, ImageError, image_of, open_image
from aether_emu.verify.tables.lint import lint
from aether_emu.verify.tables.lint_rules import Finding, Severity
from aether_emu.verify.tables.survey import Survey, survey
from aether_emu.verify.tables.walking import Tables, Walk, open_tables, walk

if TYPE_CHECKING:
    from aether_emu.verify.cases.suites import differential
    from aether_emu.verify.judging.encodings import judge

__all__ = [
    "Finding",
    "Image",
    "ImageError",
    "Severity",
    "Survey",
    "Tables",
    "Walk",
    "differential",
    "image_of",
    "judge",
    "lint",
    "open_image",
    "open_tables",
    "survey",
    "walk",
]


def __getattr__(name: str) -> object:
    """`differential` and `judge` bring the engine with them: imported when somebody asks."""
    if name == "differential":
        from aether_emu.verify.cases.suites import differential  # noqa: PLC0415  # as said above

        return differential
    if name == "judge":
        from aether_emu.verify.judging.encodings import judge  # noqa: PLC0415  # as said above

        return judge
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
