"""A guest's files behind system calls, alone or beside the real kernel's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.linux.calls.twin import Served, Twin
from tests.linux.files.conftest import Guest, guest_in


@contextlib.contextmanager
def twin_in(base: Path) -> Iterator[Twin]:
    """Fresh directories below `base`; every descriptor must be back afterwards."""
    native = base / "native"
    native.mkdir()
    with guest_in(base) as guest:
        twin = Twin(Served(guest.files), b"/w", native)
        try:
            yield twin
        finally:
            twin.close()


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    """A process in a namespace with /w writable and /r read-only, standing in /w."""
    with guest_in(tmp_path) as made:
        yield made


@pytest.fixture
def served(guest: Guest) -> Iterator[Served]:
    """Its system calls."""
    with contextlib.closing(Served(guest.files)) as made:
        yield made


@pytest.fixture
def twin(tmp_path: Path) -> Iterator[Twin]:
    """See `twin_in`."""
    with twin_in(tmp_path) as made:
        yield made
