"""Which version this is: the release's tag, told by the installed package or by git in a work tree."""

from __future__ import annotations

from pathlib import Path

UNRELEASED = "0.1.0"
"""An archive without history is called so, and untagged history counts from it. pyproject.toml has it too."""


def version() -> str:
    """As PEP 440 has it: `0.1.0` at the tag v0.1.0, `0.1.1.dev3+g1234567` three commits later.

    setuptools-scm names an installed package by the same rules.
    """
    from importlib.metadata import PackageNotFoundError  # noqa: PLC0415  # rarely asked, and slow to import
    from importlib.metadata import version as installed  # noqa: PLC0415  # as above

    root = Path(__file__).resolve().parents[1]
    if (root / ".git").exists():
        return _of_history(root) or UNRELEASED
    try:
        return installed("aether_emu")
    except PackageNotFoundError:
        return UNRELEASED


def _of_history(root: Path) -> str | None:
    """The version of a work tree; None when git cannot tell."""
    described = _git(root, "describe", "--tags", "--long", "--match", "v[0-9]*")
    if described is None:
        count, commit = _git(root, "rev-list", "--count", "HEAD"), _git(root, "rev-parse", "--short", "HEAD")
        if count is None or commit is None:
            return None
        described = f"v{UNRELEASED}-{count}-g{commit}"
    tag, distance, commit = described.rsplit("-", 2)
    if distance == "0":
        return tag[1:]
    release, _, last = tag[1:].rpartition(".")
    return f"{release}.{int(last) + 1}.dev{distance}+{commit}"


def _git(root: Path, *arguments: str) -> str | None:
    """What git says in one line; None when it is not there, or has nothing to say."""
    import subprocess  # noqa: PLC0415  # as above

    try:
        said = subprocess.run(
            ["git", "-C", root, *arguments],
            capture_output=True,
            text=True,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.stdout.strip()
