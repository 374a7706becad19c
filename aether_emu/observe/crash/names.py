"""Names of functions as sources have them: those of C++ (Itanium ABI 5) and Rust (RFC 2603, and before)."""

from __future__ import annotations

_MANGLED = ("_Z", "_R")
_LANGUAGES = ("itanium", "rust")
_LONG = 40  # characters; of longer ones the parameters are left out


def readable(name: str) -> str:
    """A symbol's name with what a compiler has made of it undone, or the name as it is if that is nothing.

    The name may be anything: `demangle` bounds depth and length of what it makes of one.
    """
    if not name.startswith(_MANGLED):
        return name
    from demangle import DemanglingError, signature  # only few programs have such names

    try:
        parts = signature(name, language=_LANGUAGES)
    except DemanglingError:
        return name
    if len(parts.demangled) <= _LONG or not parts.qualified_name:
        return parts.demangled
    part = "" if parts.qualified_name.endswith(parts.decoration) else parts.decoration
    return f"{parts.qualified_name}{part}"
