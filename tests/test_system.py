"""Assembling a machine, what a guest may see, and that everything is given back."""

from __future__ import annotations

import errno
import gc
import os
import tempfile
from pathlib import Path

import pytest

from aether_emu.computer import LeakError
from aether_emu.config import Config
from aether_emu.errors import ConfigError, ProgramError, Refused
from aether_emu.grants import Grants, program_isa
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.mounts import Bind
from aether_emu.linux.files.streams import BufferStream
from aether_emu.mm.frames.table import Kind
from aether_emu.rules import format_size
from aether_emu.system import Machine
from tests.guests.running import TARGETS, Target
from tests.linux.exec.crafted import ISAS, OPEN_ARGUMENT, OPENED, PROGRAMS, READ_STDIN, crafted


def _machine(isa: str, **options: object) -> Machine:
    return Machine(isa, config=Config.load(overrides={"ram": "8M", "aperture": "4M", **options}))


def _of(target: Target) -> Machine:
    return _machine(target.isa, page_size=target.page_size)


every_target = pytest.mark.parametrize("target", TARGETS, ids=str)


def _streams(stdin: bytes = b"") -> dict[str, BufferStream]:
    return {"stdin": BufferStream(stdin), "stdout": BufferStream(), "stderr": BufferStream()}


def _program(base: Path, code: dict[str, bytes], isa: str = "x86_64", name: str = "p") -> Path:
    path = base / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(crafted(isa=isa, code=code[isa]))
    return path


def _run(
    program: str | Path,
    *arguments: str | Path,
    isa: str = "x86_64",
    stdin: bytes = b"",
    grants: Grants | None = None,
) -> int:
    """The exit status of a program."""
    machine = _machine(isa)
    try:
        argv = [os.fspath(text) for text in (program, *arguments)]
        machine.load(program, argv, grants=grants, streams=_streams(stdin))
        return machine.run().status
    finally:
        machine.close()


@pytest.mark.parametrize(
    ("cwd", "program"),
    [
        ("home", "p"),
        ("home", "./p"),
        ("home", "sub/../p"),
        ("home", "../home/p"),
        ("home", "{}/home/p"),
        ("home", "../other/q"),
        ("home", "{}/other/q"),
        ("home", "link-inside"),
        ("home", "link-outside"),
        ("home", "link-to-link"),
        ("home/sub", "../p"),
        ("home/sub", "../../other/q"),
        ("linked-home", "p"),
        ("linked-home", "../other/q"),  # of the real home: a directory knows one parent
        ("other", "../linked-home/p"),
        ("other", "{}/linked-home/link-outside"),
        ("/", "{}/home/p"),
    ],
)
def test_a_program_is_found_as_a_shell_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cwd: str, program: str
) -> None:
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    _program(tmp_path, READ_STDIN, name="home/p")
    _program(tmp_path, READ_STDIN, name="other/q")
    (home / "link-inside").symlink_to("p")
    (home / "link-outside").symlink_to(tmp_path / "other" / "q")
    (home / "link-to-link").symlink_to("link-outside")
    (tmp_path / "linked-home").symlink_to(home)
    monkeypatch.chdir(tmp_path / cwd)
    assert _run(program.format(tmp_path), stdin=b"123") == 3


@pytest.fixture
def granted(tmp_path: Path) -> Path:
    """A working directory with a file, beside a directory with a secret."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "secret").write_text("not yours")
    (tmp_path / "home" / "link").symlink_to(tmp_path / "other" / "secret")
    return tmp_path


def _opens(base: Path, path: str | Path, grants: Grants | None = None) -> int:
    """OPENED, or the errno that the guest gets."""
    program = _program(base, OPEN_ARGUMENT, name="bin/open")
    return _run(program, path, grants=grants)


def test_the_working_directory_is_visible_and_nothing_else(
    granted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(granted / "home")
    assert _opens(granted, "file") == OPENED
    assert _opens(granted, granted / "home" / "file") == OPENED
    for hidden in ("/etc/passwd", "../other/secret", granted / "other" / "secret", "link", "/proc/1/maps"):
        assert _opens(granted, hidden) == errno.ENOENT


def test_standing_in_the_root_shows_nothing_of_the_host(
    granted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    assert _opens(granted, "/etc/passwd") == errno.ENOENT
    assert _opens(granted, "etc/passwd") == errno.ENOENT
    assert _opens(granted, "/etc/passwd", Grants(cwd=Path("/"))) == OPENED, "asked for, it does"


def test_a_working_directory_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match="cwd"):
        program_isa(_program(tmp_path, OPEN_ARGUMENT))


def test_binds_are_read_only_unless_they_say_otherwise(granted: Path) -> None:
    for writable in (False, True):
        grants = Grants(cwd=granted / "home", binds=[Bind(granted / "other", "/data", writable)])
        assert _opens(granted, "/data/secret", grants) == OPENED
        assert _opens(granted, "/data/missing", grants) == errno.ENOENT
        machine = _machine("x86_64")
        try:
            process = machine.load(granted / "bin" / "open", grants=grants)
            outcomes = []
            for path in (b"/data/new", bytes(granted / "home" / "new")):
                try:
                    process.files.open(fl.AT_FDCWD, path, fl.O_WRONLY | fl.O_CREAT, 0o600)
                    outcomes.append(0)
                except Refused as refused:
                    outcomes.append(refused.errno)
        finally:
            machine.close()
        assert outcomes == [0 if writable else errno.EROFS, errno.EROFS]


@pytest.mark.parametrize("isa", ISAS)
def test_root_becomes_the_guests_root(tmp_path: Path, isa: str) -> None:
    """The program is a path of the guest: its links, also absolute ones, stay below the root."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "passwd").write_text("the guest's")
    _program(root, OPEN_ARGUMENT, isa, "bin/open")
    (root / "bin" / "linked").symlink_to("/bin/open")
    (root / "escaping").symlink_to("/../../../../../../../etc/hostname")
    grants = Grants(root)
    for program in ("/bin/open", "bin/open", "/bin/linked"):
        assert program_isa(program, grants) == isa
        assert _run(program, "etc/passwd", isa=isa, grants=grants) == OPENED, "it stands in /"
    for hidden in ("/escaping", tmp_path, root / "etc" / "passwd"):
        assert _run("bin/open", hidden, isa=isa, grants=grants) == errno.ENOENT


@pytest.mark.parametrize("program", ["/missing", "bin/missing", "../../etc/passwd"])
def test_a_program_that_the_root_does_not_hold(tmp_path: Path, program: str) -> None:
    with pytest.raises(
        ProgramError, match=r"no such file in the guest(, whose working directory is /)?$"
    ) as caught:
        program_isa(program, Grants(tmp_path))
    assert caught.value.exit_status == 127
    assert ("working directory" in str(caught.value)) == (program[0] != "/")


@every_target
def test_two_machines_run_at_once(target: Target) -> None:
    """Interleaved block by block, each with its own memory, streams and end."""
    machines = [_of(target), _machine("x86_64"), _machine("arm64", aslr=False)]
    streams = [_streams() for _ in machines]
    try:
        for machine, own in zip(machines, streams, strict=True):
            machine.load(PROGRAMS / machine.abi.isa / "hello", ["hello"], streams=own)
        pending = list(machines)
        while pending:
            pending = [machine for machine in pending if machine.run_for(5) is None]
    finally:
        for machine in machines:
            machine.close()
    assert [bytes(own["stdout"].written) for own in streams] == [b"hello, world\nargc = 1\n"] * 3


@every_target
def test_a_frame_that_is_not_given_back_is_named(target: Target) -> None:
    machine = _of(target)
    machine.load(PROGRAMS / target.isa / "hello", streams=_streams())
    machine.run()
    frame = machine.buddy.alloc()
    machine.frames.claim(frame, 1, Kind.ANON, 77)
    with pytest.raises(LeakError, match=rf"1 frame\(s\) leaked: frame {frame} \(ANON, owner 77\)") as caught:
        machine.close()
    assert [leak.frame for leak in caught.value.leaks] == [frame]
    machine.close()


@every_target
@pytest.mark.parametrize("stage", ["new", "loaded", "running", "ended", "refused"])
def test_close_gives_everything_back_at_any_time_and_twice(
    target: Target, stage: str, tmp_path: Path
) -> None:
    _close_at("new", target, tmp_path)  # the first machine of a process opens what all share
    gc.collect()  # machines of other tests may still have files open
    before = os.listdir("/proc/self/fd")
    memory = _close_at(stage, target, tmp_path)
    assert os.listdir("/proc/self/fd") == before
    for start, end in memory:
        assert not _is_mapped(start, end)


def _close_at(stage: str, target: Target, tmp_path: Path) -> list[tuple[int, int]]:
    """Where in the host's memory the RAM and the aperture were of a machine that was closed at this stage."""
    machine = _machine(target.isa, page_size=target.page_size, ram="22M", aperture="26M")
    if stage in ("loaded", "running", "ended"):
        machine.load(PROGRAMS / target.isa / "hello", streams=_streams())
    if stage == "running":
        assert machine.run_for(3) is None
    elif stage == "ended":
        machine.run()
    elif stage == "refused":
        (tmp_path / "text").write_text("text")
        with pytest.raises(ProgramError):
            machine.load(tmp_path / "text", streams=_streams())
    memory = [(part.host_address, part.host_address + part.size) for part in (machine.ram, machine.aperture)]
    machine.close()
    machine.close()
    return memory


def _is_mapped(start: int, end: int) -> bool:
    """Whether this process has memory in the whole range. Small things may stand there by now."""
    mapped = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(text, 16) for text in line.split()[0].split("-"))
        mapped += max(0, min(last, end) - max(first, start))
    return mapped == end - start


def test_a_machine_that_cannot_be_made_says_why() -> None:
    with pytest.raises(ConfigError, match="arch='riscv'"):
        Machine("riscv")
    with pytest.raises(ConfigError, match="ram="):
        Machine(ram="1M")
    with pytest.raises(ConfigError, match="kernel_base="):
        Machine(kernel_base=0xFFFF_FFFF_0000_0000, ram="2G")
    with pytest.raises(ConfigError, match=r"rum=.* is no parameter: did you mean ram"):
        Machine(rum="1G")  # type: ignore[call-arg]  # what mypy refuses too


_HELLO = b"hello, world\nargc = 1\n"
_GEOMETRIES = [(4096, 39), (4096, 48), (16384, 47), (16384, 48), (65536, 42), (65536, 48)]


@pytest.mark.parametrize(("page", "bits"), _GEOMETRIES)
def test_a_program_runs_in_addresses_of_any_width_that_the_granule_gives(page: int, bits: int) -> None:
    """Up to the very end of them: the stack is there when nothing is randomised."""
    machine, streams = _machine("arm64", page_size=page, virtual_bits=bits, aslr=False), _streams()
    try:
        process = machine.load(PROGRAMS / "arm64" / "hello", ["hello"], streams=streams)
        assert max(area.end for area in process.mm.areas) == 1 << bits
        assert machine.format.virtual_bits == bits
        assert machine.run().status == 0
    finally:
        machine.close()
    assert bytes(streams["stdout"].written) == _HELLO


@pytest.mark.parametrize(
    ("isa", "page", "bits", "name"),
    [
        *(("x86_64", page, None, "page_size") for page in (16384, 65536)),
        *(("x86_64", 4096, bits, "virtual_bits") for bits in (39, 42, 47)),
        *(
            ("arm64", page, bits, "virtual_bits")
            for page in (4096, 16384, 65536)
            for bits in (39, 42, 47)
            if (page, bits) not in _GEOMETRIES
        ),
    ],
)
def test_a_geometry_that_the_isa_does_not_have_is_refused(
    isa: str, page: int, bits: int | None, name: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        _machine(isa, page_size=page, virtual_bits=bits)
    assert (caught.value.name, caught.value.value) == (
        name,
        format_size(page) if name == "page_size" else bits,
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("page", "bits"), _GEOMETRIES)
def test_the_kernels_half_begins_where_it_is_told_within_the_width(page: int, bits: int) -> None:
    lowest = (1 << 64) - (1 << bits - 1)
    with pytest.raises(ConfigError, match="kernel_base") as caught:
        _machine("arm64", page_size=page, virtual_bits=bits, kernel_base=lowest - page)
    assert f"{lowest:#x}" in str(caught.value) or "from 0xffff800000000000" in str(caught.value)
    with pytest.raises(ConfigError, match="multiple of the page size"):
        _machine("arm64", page_size=page, virtual_bits=bits, kernel_base=lowest + page // 2)
    machine, streams = (
        _machine("arm64", page_size=page, virtual_bits=bits, kernel_base=lowest + page),
        _streams(),
    )
    try:
        machine.load(PROGRAMS / "arm64" / "hello", ["hello"], streams=streams)
        assert machine.run().status == 0
        assert machine.kernel_base == lowest + page
    finally:
        machine.close()


def test_ram_that_the_kernels_half_cannot_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ram='512G' is not allowed: at most 253G with 39 bits"):
        _machine("arm64", virtual_bits=39, ram="512G")
    with pytest.raises(ConfigError, match="kernel_base='0xffffffff00000000' is not allowed: low enough"):
        _machine("arm64", virtual_bits=39, kernel_base=0xFFFF_FFFF_0000_0000, ram="4G")


def test_a_machine_that_failed_to_load_a_program_says_so() -> None:
    with _machine("x86_64") as machine:
        for why in ("not an ELF program", "failed to load one"):
            with pytest.raises(ProgramError, match=why):
                machine.load(__file__, streams=_streams())


def test_a_machine_takes_one_program() -> None:
    machine = _machine("x86_64")
    try:
        machine.load(PROGRAMS / "x86_64" / "hello", streams=_streams())
        with pytest.raises(ProgramError, match="has a program already"):
            machine.load(PROGRAMS / "x86_64" / "hello", streams=_streams())
        assert machine.run().status == 0
    finally:
        machine.close()


@pytest.mark.parametrize(
    ("program", "status"), [("missing", 127), (".", 126), ("file/below", 126), ("loop", 126)]
)
def test_a_program_that_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, status: int
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ProgramError) as caught:
        program_isa(program)
    assert caught.value.exit_status == status
    assert "\n" not in str(caught.value)


def test_a_pipe_as_program_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ProgramError):
        program_isa(tmp_path / "pipe")


def test_a_program_without_permission_is_refused() -> None:
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as directory:  # one that every user can reach
        base = Path(directory)
        base.chmod(0o755)
        _program(base, READ_STDIN).chmod(0)
        try:
            if user == 0:  # who may read everything
                os.seteuid(65534)
            with pytest.raises(ProgramError, match="EACCES") as caught:
                program_isa("p", Grants(base))
        finally:
            os.seteuid(user)
    assert caught.value.exit_status == 126


def test_the_name_is_the_links_and_exe_is_the_file(tmp_path: Path) -> None:
    """As in Linux: comm is what was executed, /proc/self/exe what it led to."""
    real = _program(tmp_path, READ_STDIN, name="bin/real")
    (tmp_path / "link").symlink_to("bin/real")
    for program, grants in ((tmp_path / "link", None), ("link", Grants(tmp_path))):
        machine = _machine("x86_64")
        try:
            process = machine.load(program, grants=grants, streams=_streams())
            assert process.tasks[0].name == b"link"
            shown = b"/bin/real" if grants else bytes(real)
            assert process.files.readlink(fl.AT_FDCWD, b"/proc/self/exe", 4096) == shown
        finally:
            machine.close()


def test_an_abandoned_machine_gives_back_the_folders_that_it_showed(tmp_path: Path) -> None:
    machine = Machine("x86_64", ram="64M")
    grants = Grants(binds=[Bind(tmp_path, "/data")])
    machine.load("guest/bin/x86_64/hello", ["hello"], grants=grants)

    def is_open() -> bool:
        links = Path("/proc/self/fd").iterdir()
        return any(link.is_symlink() and os.readlink(link) == str(tmp_path) for link in links)

    assert is_open()
    for _ in range(2):
        machine.abandon()
        assert not is_open()
