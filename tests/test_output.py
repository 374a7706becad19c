"""Outputs: refused before the work, whole or not there, and never where they would hurt."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from aether_emu.errors import ConfigError
from aether_emu.output import Output, OutputError, remove_unfinished


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_there_when_it_is_whole_and_not_before(tmp_path: Path) -> None:
    output = Output("report", tmp_path / "new")
    assert names(tmp_path) == []
    with output.open() as file:
        file.write(b"half")
        assert not (tmp_path / "new").exists()
        file.write(b" and whole")
    assert (tmp_path / "new").read_bytes() == b"half and whole"
    assert names(tmp_path) == ["new"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), ValueError])
def test_an_older_file_stays_when_the_new_one_is_not_finished(
    tmp_path: Path, error: type[BaseException] | BaseException
) -> None:
    (tmp_path / "file").write_text("older")
    output = Output("report", tmp_path / "file")
    expected = OutputError if isinstance(error, OSError) else error
    with pytest.raises(expected if isinstance(expected, type) else type(expected)), output.open() as file:
        file.write(b"new")
        raise error
    assert (tmp_path / "file").read_text() == "older"
    assert names(tmp_path) == ["file"]


@pytest.fixture(params=[True, False], ids=["without names", "with names"])
def nameless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file system has files without a name: this one, and one as others are."""
    if not request.param:
        monkeypatch.delattr(os, "O_TMPFILE")
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY, raising=False)  # what older kernels see of it
    return bool(request.param)


@pytest.mark.parametrize("older", [None, b"older"])
def test_nothing_is_to_be_seen_before_a_file_is_whole(
    tmp_path: Path, nameless: bool, older: bytes | None
) -> None:
    path = tmp_path / "file"
    if older is not None:
        path.write_bytes(older)
    there = names(tmp_path)
    with Output("report", path).open() as file:
        file.write(b"new")
        assert len(names(tmp_path)) == len(there) + (not nameless)
        assert (path.read_bytes() if path.exists() else None) == older
    assert names(tmp_path) == ["file"]
    assert path.read_bytes() == b"new"


def test_a_name_that_is_taken_meanwhile_is_replaced(tmp_path: Path, nameless: bool) -> None:
    with Output("report", tmp_path / "file").open() as file:
        file.write(b"new")
        (tmp_path / "file").write_bytes(b"another's")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"new"


def test_what_is_half_written_can_be_taken_away_from_outside(tmp_path: Path, nameless: bool) -> None:
    output = Output("report", tmp_path / "file")
    gone: Any = contextlib.nullcontext() if nameless else pytest.raises(OutputError)
    with gone, output.open() as file:
        file.write(b"new")
        assert len(names(tmp_path)) == (not nameless)
        remove_unfinished()
        assert names(tmp_path) == []
    assert names(tmp_path) == (["file"] if nameless else [])


def test_mode_and_link_of_an_older_file_stay(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("older")
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    Output("report", tmp_path / "link").write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_new_file_has_the_mode_that_the_user_gives_files_and_memory_is_private(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        Output("report", tmp_path / "file").write(b"")
        Output("core", tmp_path / "core", regular=True).write(b"")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "core")]
    assert modes == [0o640, 0o600]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing/file", "No such file or directory"),
        ("", "it is a directory"),
        ("folder", "it is a directory"),
        ("plain/file", "Not a directory"),
        ("a\0b", "null"),
    ],
)
def test_a_place_where_nothing_can_be_written_is_refused_before(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").write_text("")
    with pytest.raises(ConfigError, match=why):
        Output("report", str(tmp_path / name))
    assert names(tmp_path) == ["folder", "plain"]


def test_a_full_device_is_found_when_it_is_written_to() -> None:
    output = Output("report", "/dev/full")
    with pytest.raises(OutputError, match="report /dev/full cannot be written: No space left on device"):
        output.write(b"text")
    with pytest.raises(ConfigError, match="a regular file"):
        Output("core", "/dev/full", regular=True)


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        Output("report", path).write(b"text")
        assert os.read(reader, 100) == b"text"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_dash_is_standard_output_and_a_file_behind_it_is_not_replaced(
    capfd: pytest.CaptureFixture[str],
) -> None:
    print("before", flush=True)
    Output("report", "-").write(b"text\n")
    Output("report", "/dev/stdout").write(b"again\n")
    print("after", flush=True)
    assert capfd.readouterr().out == "before\ntext\nagain\nafter\n"
