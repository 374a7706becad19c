"""The path walk: POSIX resolution, Linux's limits, and no way out of the grants."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files import walk
from tests.linux.files.conftest import CWD, Guest, guest_in, host_descriptors, refused


def test_a_link_is_resolved_in_the_guests_namespace(guest: Guest) -> None:
    (guest.w / "absolute").symlink_to("/r/file")
    (guest.w / "host_path").symlink_to(guest.r / "file")
    assert guest.read_all(b"absolute") == b"read only"
    with refused(errno.ENOENT):
        guest.read_all(b"host_path")


def test_dot_dot_stops_at_the_guests_root_and_crosses_grants_by_guest_path(guest: Guest) -> None:
    assert guest.read_all(b"../../../../r/./file") == b"read only"
    with refused(errno.ENOENT):
        guest.read_all(b"../outside/secret")


def test_dot_dot_after_a_link_is_the_targets_parent(guest: Guest) -> None:
    (guest.w / "a" / "b").mkdir(parents=True)
    (guest.w / "a" / "file").write_bytes(b"a's")
    (guest.w / "to_b").symlink_to("a/b")
    assert guest.read_all(b"to_b/../file") == b"a's"


@pytest.mark.parametrize("depth", [3, walk._TRAIL + 8])
def test_many_dot_dot_at_any_depth(guest: Guest, depth: int) -> None:
    deep = guest.w.joinpath(*["d"] * depth)
    deep.mkdir(parents=True)
    (guest.w / "file").write_bytes(b"top")
    down = b"/".join([b"d"] * depth)
    up = b"/".join([b".."] * depth)
    assert guest.read_all(down + b"/" + up + b"/file") == b"top"
    guest.files.chdir(down)
    assert guest.read_all(up + b"/file") == b"top"
    assert guest.files.getcwd() == b"/w/" + down


def test_a_long_way_down_needs_few_host_descriptors(guest: Guest) -> None:
    path = b"/".join([b"d"] * 150)
    (guest.w / os.fsdecode(path)).mkdir(parents=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd) for fd in host_descriptors())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + walk._TRAIL + 10, hard))
    try:
        assert guest.files.stat(CWD, path).is_directory
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_forty_links_are_followed_and_no_more(guest: Guest) -> None:
    (guest.w / "0").write_bytes(b"end")
    for number in range(1, 42):
        (guest.w / str(number)).symlink_to(str(number - 1))
    assert guest.read_all(b"40") == b"end"
    with refused(errno.ELOOP):
        guest.read_all(b"41")


def test_a_loop_ends(guest: Guest) -> None:
    (guest.w / "loop").symlink_to("loop/x")
    with refused(errno.ELOOP):
        guest.read_all(b"loop")


@pytest.mark.parametrize(
    ("path", "number"),
    [
        (b"", errno.ENOENT),
        (b"a\0b", errno.EINVAL),
        (b"x" * 256, errno.ENAMETOOLONG),
        (b"/" + b"x" * 256, errno.ENAMETOOLONG),
        (b"/dev/" + b"x" * 256, errno.ENAMETOOLONG),
        (b"missing/" + b"x" * 256, errno.ENOENT),
        (b"./" * 2048, errno.ENAMETOOLONG),
        (b"file/", errno.ENOTDIR),
        (b"file/.", errno.ENOTDIR),
        (b"file/..", errno.ENOTDIR),
        (b"file/x", errno.ENOTDIR),
        (b"to_file_slash", errno.ENOTDIR),
        (b"/dev/null/x", errno.ENOTDIR),
    ],
)
def test_paths_that_linux_refuses(guest: Guest, path: bytes, number: int) -> None:
    (guest.w / "file").touch()
    (guest.w / "to_file_slash").symlink_to("file/")
    with refused(number):
        guest.files.stat(CWD, path)


def test_a_path_of_4095_bytes_is_walked(guest: Guest) -> None:
    assert guest.files.stat(CWD, b"./" * 2047 + b".").is_directory


def test_no_path_is_deeper_than_the_bound(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "DEEPEST", 3)
    guest.files.mkdir(CWD, b"a", 0o777)
    guest.files.mkdir(CWD, b"a/b", 0o777)
    with refused(errno.ENAMETOOLONG):
        guest.files.mkdir(CWD, b"a/b/c", 0o777)


def test_a_directory_moved_by_the_guest_keeps_its_way_up(guest: Guest) -> None:
    files = guest.files
    files.mkdir(CWD, b"a", 0o777)
    files.mkdir(CWD, b"a/in", 0o777)
    files.mkdir(CWD, b"b", 0o777)
    files.chdir(b"a/in")
    files.rename(CWD, b"/w/a", CWD, b"/w/b/moved")
    assert files.getcwd() == b"/w/b/moved/in"
    files.chdir(b"..")
    assert files.getcwd() == b"/w/b/moved"


def test_a_removed_working_directory_has_no_name_but_a_parent(guest: Guest) -> None:
    files = guest.files
    files.mkdir(CWD, b"gone", 0o777)
    files.chdir(b"gone")
    files.rmdir(CWD, b"/w/gone")
    with refused(errno.ENOENT):
        files.getcwd()
    with refused(errno.ENOENT):
        files.mkdir(CWD, b"x", 0o777)
    files.chdir(b"..")
    assert files.getcwd() == b"/w"


# Escapes


def test_a_directory_swapped_for_a_link_between_calls_leads_nowhere(guest: Guest) -> None:
    """An outsider on the host replaces directories that the guest stands in, holds and names."""
    inner = guest.w / "dir" / "in"
    inner.mkdir(parents=True)
    files = guest.files
    held = files.open(CWD, b"dir/in", fl.O_RDONLY | fl.O_DIRECTORY)
    files.chdir(b"dir/in")
    shutil.rmtree(guest.w / "dir")
    (guest.w / "dir").symlink_to(guest.outside)
    for path in (b"/w/dir/secret", b"../secret", b"../../outside/secret", b"secret"):
        with refused(errno.ENOENT):
            files.open(CWD, path, fl.O_RDONLY)
        with refused(errno.ENOENT):
            files.open(held, path, fl.O_RDONLY)


def test_a_directory_moved_out_of_the_grant_gives_no_way_up(guest: Guest) -> None:
    (guest.w / "dir").mkdir()
    guest.files.chdir(b"dir")
    (guest.w / "dir").rename(guest.outside / "dir")
    for path in (b"../secret", b"../../outside/secret"):
        with refused(errno.ENOENT):
            guest.files.open(CWD, path, fl.O_RDONLY)


def test_a_swap_in_the_middle_of_a_walk_is_not_followed(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The component turns into a link to the outside between the look at it and its use."""
    (guest.w / "dir").mkdir()
    (guest.w / "dir" / "secret").write_bytes(b"the guest's own")
    real_fstat = os.fstat

    def fstat_then_swap(fd: int) -> os.stat_result:
        status = real_fstat(fd)
        if (guest.w / "dir").is_dir() and not (guest.w / "dir").is_symlink():
            (guest.w / "dir").rename(guest.w / "was")
            (guest.w / "dir").symlink_to(guest.outside)
        return status

    monkeypatch.setattr(os, "fstat", fstat_then_swap)
    try:
        found = guest.read_all(b"/w/dir/secret")
    except Refused as refusal:
        assert refusal.errno == errno.ENOENT
    else:
        assert found == b"the guest's own"


@pytest.mark.parametrize("path", [b"/proc/self/fd/%d/../secret", b"/proc/self/fd/%d/../../outside/secret"])
def test_magic_links_go_up_by_guest_path(guest: Guest, path: bytes) -> None:
    held = guest.files.open(CWD, b"/w", fl.O_RDONLY | fl.O_DIRECTORY)
    with refused(errno.ENOENT):
        guest.files.open(CWD, path % held, fl.O_RDONLY)


def test_a_magic_link_gives_no_more_than_the_grant(guest: Guest) -> None:
    fd = guest.files.open(CWD, b"/r/file", fl.O_RDONLY)
    with refused(errno.EROFS):
        guest.files.open(CWD, b"/proc/self/fd/%d" % fd, fl.O_RDWR)
    with refused(errno.EROFS):
        guest.files.open(CWD, b"/proc/self/fd/%d" % fd, fl.O_RDONLY | fl.O_TRUNC)
    with refused(errno.EXDEV):
        guest.files.link(CWD, b"/proc/self/fd/%d" % fd, CWD, b"mine", fl.AT_SYMLINK_FOLLOW)


def test_a_hard_link_or_rename_between_grants_is_refused(guest: Guest) -> None:
    with refused(errno.EXDEV):
        guest.files.link(CWD, b"/r/file", CWD, b"/w/mine")
    with refused(errno.EXDEV):
        guest.files.rename(CWD, b"/r/file", CWD, b"/w/mine")


_NAMES = ("a", "b", "c", "d")
_TARGETS = st.one_of(
    st.sampled_from(
        ["/", "..", "../..", "../../../outside", "/outside", "/../outside/secret", "HOST", "HOST/.."]
    ),
    st.lists(
        st.sampled_from([*_NAMES, "..", ".", "", "outside", "w", "r", "secret"]), min_size=1, max_size=6
    ).map("/".join),
)
_OBJECTS = st.lists(
    st.tuples(
        st.lists(st.sampled_from(_NAMES), min_size=1, max_size=3).map("/".join),
        st.sampled_from(["dir", "link", "link"]),
        _TARGETS,
    ),
    max_size=12,
)
_PATHS = st.lists(
    st.sampled_from(
        [
            *_NAMES,
            "..",
            ".",
            "",
            "outside",
            "secret",
            "w",
            "/w",
            "/proc/self/fd/9",
            "/proc/self/cwd",
            "/proc/self/root",
        ]
    ),
    min_size=1,
    max_size=10,
).map("/".join)


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(objects=_OBJECTS, paths=st.lists(_PATHS, min_size=1, max_size=6))
def test_no_tree_and_no_path_reaches_the_secret(
    objects: list[tuple[str, str, str]], paths: list[str]
) -> None:
    """Directories and links at random, walked by random paths: what is found is inside, and nothing leaks."""
    base = Path(tempfile.mkdtemp())
    try:
        with guest_in(base) as guest:
            for name, kind, target in objects:
                where = guest.w / name
                try:
                    where.parent.mkdir(parents=True, exist_ok=True)
                    if kind == "dir":
                        where.mkdir()
                    else:
                        where.symlink_to(target.replace("HOST", str(guest.outside)) or ".")
                except OSError:
                    continue
            held = guest.files.open(CWD, b"/w", fl.O_RDONLY | fl.O_DIRECTORY)
            guest.files.dup2(held, 9)
            for path in paths:
                try:
                    with guest.files._lookup(CWD, path.encode()) as place:
                        if place.fd >= 0:
                            real = os.readlink(f"/proc/self/fd/{place.fd}")
                            assert real.startswith((f"{guest.w}", f"{guest.r}")), real
                        else:
                            assert place.node is not None
                except Refused:
                    continue
    finally:
        shutil.rmtree(base)


# openat2


def test_resolve_beneath_refuses_to_leave(guest: Guest) -> None:
    files = guest.files
    (guest.w / "d").mkdir()
    (guest.w / "d" / "in").touch()
    (guest.w / "d" / "up").symlink_to("../d/in")
    (guest.w / "d" / "absolute").symlink_to("/w/d/in")
    d = files.open(CWD, b"d", fl.O_PATH)
    files.close(files.open(d, b"in", fl.O_RDONLY, 0, fl.RESOLVE_BENEATH))
    for path in (b"../d/in", b"/w/d/in", b"up", b"absolute"):
        with refused(errno.EXDEV):
            files.open(d, path, fl.O_RDONLY, 0, fl.RESOLVE_BENEATH)


def test_resolve_in_root_makes_the_directory_the_root(guest: Guest) -> None:
    files = guest.files
    (guest.w / "d").mkdir()
    (guest.w / "d" / "in").touch()
    (guest.w / "d" / "absolute").symlink_to("/in")
    d = files.open(CWD, b"d", fl.O_PATH)
    for path in (b"/in", b"../../in", b"absolute"):
        files.close(files.open(d, path, fl.O_RDONLY, 0, fl.RESOLVE_IN_ROOT))


def test_resolve_refuses_links_and_mounts(guest: Guest) -> None:
    files = guest.files
    (guest.w / "link").symlink_to(".")
    with refused(errno.ELOOP):
        files.open(CWD, b"link/.", fl.O_RDONLY, 0, fl.RESOLVE_NO_SYMLINKS)
    with refused(errno.ELOOP):
        files.open(CWD, b"/proc/self/fd/0", fl.O_RDONLY, 0, fl.RESOLVE_NO_MAGICLINKS)
    for path in (b"/w/link", b"../r", b"/w/.."):
        with refused(errno.EXDEV):
            files.open(CWD, path, fl.O_RDONLY, 0, fl.RESOLVE_NO_XDEV)
