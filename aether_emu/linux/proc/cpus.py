"""Sets of CPUs in words, as Linux prints them (lib/bitmap.c: %*pb and %*pbl)."""

from __future__ import annotations


def as_list(mask: int) -> str:
    """CPUs by number, those in a row as a range: "0-3,5"."""
    parts: list[str] = []
    number = 0
    while mask >> number:
        if not mask >> number & 1:
            number += 1
            continue
        end = number
        while mask >> end + 1 & 1:
            end += 1
        parts.append(str(number) if end == number else f"{number}-{end}")
        number = end + 1
    return ",".join(parts)


def as_mask(mask: int, count: int) -> str:
    """A bit for each of `count` CPUs, in hexadecimal; words of 32 bits are set apart by commas."""
    words = -(-count // 32)
    digits = -(-(count - 32 * (words - 1)) // 4)
    parts = [f"{mask >> 32 * (words - 1):0{digits}x}"]
    parts += [f"{mask >> 32 * index & 0xFFFF_FFFF:08x}" for index in reversed(range(words - 1))]
    return ",".join(parts)
