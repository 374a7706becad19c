"""What a caller gives a program: what it may see of the host, arguments, variables, streams; checked here.

Grants(root, binds, cwd) --visible--> the program's path in the guest, what is bound where, its folder
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field
from pathlib import Path

from aether_emu.errors import ConfigError, ProgramError, shown
from aether_emu.linux.exec.loader import program_image
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.mounts import Bind
from aether_emu.linux.files.namespace import IN_MEMORY, Namespace
from aether_emu.linux.files.proc import Provided
from aether_emu.linux.files.streams import DescriptorStream, Stream
from aether_emu.records import dataclass


@dataclass
class Grants:
    """What of the host a guest may see.

    `root` becomes the guest's /, read-only, and the guest starts there. Without it the guest stands in
    `cwd`, granted read-only: None is the host's working directory, unless that is /, for standing
    there is no reason to show everything. `binds` are added to either.
    """

    root: Path | None = None
    binds: list[Bind] = field(default_factory=list)
    cwd: Path | None = None


def host_path(name: str, value: object) -> str:
    """A path of the host. ConfigError for what is none."""
    if isinstance(value, str | os.PathLike):
        path = os.fspath(value)
        if isinstance(path, str):
            return path
    raise ConfigError(name, value, "a path, as a str or a Path")


def _require_no_nul(name: str, path: str) -> None:
    if "\0" in path:
        raise ConfigError(name, path, "a path without NUL characters")


def checked_grants(grants: object) -> Grants:
    """What may be seen of the host, nothing more than it must where there is None. Raises ConfigError."""
    if grants is None:
        return Grants()
    if not isinstance(grants, Grants):
        raise ConfigError("grants", grants, "a Grants, such as Grants(root=Path('/srv/root'))")
    for name, value in (("root", grants.root), ("cwd", grants.cwd)):
        if value is not None:
            _require_no_nul(name, host_path(name, value))
    if not isinstance(grants.binds, list | tuple) or not all(isinstance(one, Bind) for one in grants.binds):
        raise ConfigError("binds", grants.binds, "a list of Bind, such as [Bind(Path('/srv/data'), '/data')]")
    for bind in grants.binds:
        _require_no_nul("Bind.host", host_path("Bind.host", bind.host))
        if not isinstance(bind.guest, str):
            raise ConfigError("Bind.guest", bind.guest, "an absolute path, as a str")
    return grants


def run_seconds(timeout: object) -> float | None:
    """Seconds that a run may take. ConfigError for what is no such number."""
    if timeout is None:
        return None
    if isinstance(timeout, int | float) and not isinstance(timeout, bool):
        try:
            seconds = float(timeout)
        except OverflowError:
            seconds = math.inf
        if seconds >= 0:
            return seconds
    raise ConfigError("timeout", timeout, "a number of seconds, 0 or more, or None for no limit")


def call_names(names: object) -> list[str]:
    """Names of system calls, or the one. ConfigError for what is no row of strings."""
    if isinstance(names, str):
        return [names]
    if isinstance(names, Collection) and not isinstance(names, bytes):
        row = list(names)
        if all(isinstance(name, str) for name in row):
            return row
    raise ConfigError("names", names, 'names of system calls, such as ["openat"]')


def program_texts(name: str, values: Sequence[str | bytes | os.PathLike[str]]) -> list[bytes]:
    """Strings for a new program as bytes. ConfigError for what is no row of strings."""
    if isinstance(values, str | bytes):
        raise ConfigError(name, values, f"a list of strings, such as [{values!r}]")
    try:
        texts = [os.fsencode(value) for value in values]
    except TypeError:
        raise ConfigError(name, values, "a list of strings") from None
    for text in texts:
        if b"\0" in text:
            raise ConfigError(name, os.fsdecode(text), "a string without NUL characters")
    return texts


def program_variables(env: Mapping[str, str]) -> list[bytes]:
    """An environment as a new program gets it. ConfigError for what is no mapping of strings to strings."""
    if not isinstance(env, Mapping) or not all(
        isinstance(text, str) for pair in env.items() for text in pair
    ):
        raise ConfigError("env", env, "a mapping of strings to strings")
    return program_texts("env", [f"{key}={value}" for key, value in env.items()])


def complete_streams(given: Mapping[str, Stream]) -> dict[str, Stream]:
    """All three standard streams, the host's where none is given. ConfigError for other names."""
    streams = standard_streams()
    if not isinstance(given, Mapping) or given.keys() - streams.keys():
        names = sorted(given) if isinstance(given, Mapping) else given
        raise ConfigError("streams", names, "streams by the names stdin, stdout and stderr")
    return streams | dict(given)


def standard_streams() -> dict[str, Stream]:
    """The host's own stdin, stdout and stderr."""
    return {name: DescriptorStream(fd) for fd, name in enumerate(("stdin", "stdout", "stderr"))}


class _Nobody:
    """What /proc and /sys show of a process before there is one."""

    pid = tid = 0
    texts: Mapping[str, Provided] = {}  # never written
    system: Mapping[str, Provided] = {}

    def numbers(self) -> Sequence[int]:
        return ()

    def find(self, number: int) -> None:
        return None


def program_isa(
    program: str | os.PathLike[str], grants: Grants | None = None, *, executable: bool = False
) -> str:
    """The ISA that a program's header names; it is found where `Machine.load` will find it.

    Raises ProgramError, ConfigError as that. `executable`: ProgramError also where a shell would say that the
    file may not be executed, which is no concern of `load`.
    """
    program, grants = host_path("program", program), checked_grants(grants)
    path, binds, cwd = visible(os.fspath(program), grants)
    namespace = Namespace(grants.root, binds, cwd, random=bytes)
    try:
        files = Files(namespace, _Nobody())
        try:
            return program_image(
                files, os.fsencode(path), shown(os.fspath(program)), executable=executable
            ).isa
        finally:
            files.close_all()
    finally:
        namespace.close()


def _in_memory(path: str | Path) -> list[Path]:
    """The tmpfs that a path of the guest lies in, if any."""
    places = [Path("/", *map(os.fsdecode, place)) for place in IN_MEMORY]
    return [place for place in places if Path(path).is_relative_to(place)]


def is_in_memory(path: str) -> bool:
    """Whether a path of the guest is in a tmpfs, which hides what `Grants.root` has there."""
    return bool(_in_memory(os.path.normpath(path)))


def _is_hidden(host: Path, cwd: Path) -> bool:
    """Whether a tmpfs lies over what the grant of `cwd` shows of a program."""
    return any(not cwd.is_relative_to(place) for place in _in_memory(host))


def _in_root(program: str, root: Path, binds: Sequence[Bind]) -> list[Bind]:
    """A bind for a program of the root that a tmpfs would hide, and no other bind shows."""
    path = Path(os.path.normpath(program))
    if not _in_memory(path) or any(path.is_relative_to(bind.guest) for bind in binds):
        return []
    top = Path(root).resolve()
    host = top.joinpath(path.relative_to("/")).resolve()
    if not (host.is_file() and host.is_relative_to(top)):
        return []
    return [Bind(host, str(path))]


def visible(program: str, grants: Grants) -> tuple[str, list[Bind], str]:
    """(guest path of the program, binds, guest working directory)."""
    if not program:  # "" would be the working directory
        raise ProgramError("'': no such file", 127)
    if grants.root is not None:
        return program, [*_in_root(program, grants.root, grants.binds), *grants.binds], "/"
    try:
        host = Path(program).resolve(strict=True)
        if host.is_dir():
            raise ProgramError(f"{shown(program)}: is a directory")
    except FileNotFoundError:
        raise ProgramError(f"{shown(program)}: no such file", 127) from None
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL
        raise ProgramError(f"{shown(program)}: {getattr(error, 'strerror', None) or error}") from None
    try:
        cwd = Path(grants.cwd or Path.cwd()).resolve()
    except OSError as error:
        raise ConfigError("cwd", str(grants.cwd or "."), f"the host says {error.strerror}") from None
    granted = grants.cwd is not None or cwd != Path("/")
    binds = [Bind(cwd, str(cwd))] if granted else []
    if not (granted and host.is_relative_to(cwd)) or _is_hidden(host, cwd):
        binds.append(Bind(host, str(host)))
    return str(host), [*binds, *grants.binds], str(cwd)
