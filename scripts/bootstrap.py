"""Make .venv hold what a lock file says, and the `aether` command: `bootstrap.py CALLER LOCKFILE`.

CALLER is the name that messages begin with. Needs Python's standard library only, and speaks only on
stderr. Safe against interruption (a half-made .venv is made anew) and against a second first use at
the same time (which waits). .venv may be moved together with the work tree.
"""

# Even a Python that is too old must be able to read this file, to say so: hence no newer syntax.
import contextlib
import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
UNFINISHED = VENV / ".unfinished"
LOCKS = ("requirements.lock", "requirements-dev.lock")  # the second holds all of the first
NEWEST_FIRST = ("python3.14", "python3.13", "python3.12", "python3.11")

# There if the host's `env` can hold a signal back: Ctrl-C then waits until Python can answer it.
WAITS = VENV / ".ctrl-c-waits"
WAITING = ("/usr/bin/env", "--block-signal=INT")

# What pip would write for a console script, but finding its Python beside itself.
ENTRY = """\
#!/bin/sh
'''exec' {waiting}"$(dirname -- "$(readlink -f -- "$0")")/python" "$0" "$@"
' '''
import sys

from aether_emu.cli.main import main

if __name__ == "__main__":  # processes that it spawns import this file
    sys.exit(main())
"""


class BootstrapError(Exception):
    """Why there is no usable .venv, in one line."""


def use_recent_python() -> None:
    """Go on as a Python of 3.11 or later: this one, or else another that PATH has."""
    if sys.version_info >= (3, 11):  # noqa: UP036  # whatever `python3` is runs this file
        return
    for name in NEWEST_FIRST:
        python = shutil.which(name)
        if python:
            os.execv(python, [python, *sys.argv])
    raise BootstrapError(f"needs Python 3.11 or later; python3 is {sys.version.split()[0]}")


def is_current(lock_name: str) -> bool:
    """Whether `.venv` was completed for the present contents of the lock file."""
    stamp = VENV / lock_name
    runs = os.access(VENV / "bin/python", os.X_OK)
    return runs and stamp.is_file() and stamp.read_bytes() == (ROOT / lock_name).read_bytes()


def is_usable() -> bool:
    """Whether `.venv` is whole, with a Python that still runs and is recent enough."""
    if UNFINISHED.exists():
        return False
    check = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
    try:
        return (
            subprocess.run(
                [VENV / "bin/python", "-I", "-c", check], capture_output=True, check=False
            ).returncode
            == 0
        )
    except OSError:
        return False


def run(what: str, *command: str) -> None:
    """Run a silent command. If it fails, show what it said."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        close_fds=False,  # the child holds the lock too, should we be killed before it
    )
    if done.returncode:
        sys.stderr.write(done.stdout)
        raise BootstrapError(f"{what} failed, see above")


def make_venv() -> None:
    """An empty environment, in place of whatever stands there."""
    if importlib.util.find_spec("ensurepip") is None:
        raise BootstrapError(
            f"{sys.executable} cannot make virtual environments; install its venv module (python3-venv)"
        )
    if VENV.is_symlink() or VENV.is_file():
        VENV.unlink()
    elif VENV.exists():
        shutil.rmtree(VENV)
    VENV.mkdir()
    UNFINISHED.touch()
    # By its full name: when the host's python3 moves on, this link dangles and .venv is made anew.
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    run("making .venv", python, "-I", "-m", "venv", str(VENV))


def can_wait() -> bool:
    """Whether `env` knows the option, which came with coreutils 8.31."""
    try:
        return subprocess.run([*WAITING, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def install(lock_name: str) -> None:
    """Install what the lock file names, then the work tree itself, as a path and a command."""
    UNFINISHED.touch()
    for name in LOCKS:
        (VENV / name).unlink(missing_ok=True)
    pip = (
        str(VENV / "bin/python"),
        "-I",
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "--quiet",
    )
    run(
        "installing the packages", *pip, "install", "--require-hashes", "--requirement", str(ROOT / lock_name)
    )
    for site in VENV.glob("lib/python3*/site-packages"):
        (site / "aether_emu.pth").write_text(os.path.relpath(ROOT, site.resolve()) + "\n")
    entry = VENV / "bin/aether"
    waits = can_wait()
    entry.write_text(ENTRY.format(waiting=" ".join((*WAITING, "")) if waits else ""))
    entry.chmod(0o755)
    if waits:
        WAITS.touch()
    UNFINISHED.unlink()
    for name in LOCKS[: LOCKS.index(lock_name) + 1]:
        part = VENV / (name + ".part")
        shutil.copyfile(ROOT / name, part)
        part.replace(VENV / name)


@contextlib.contextmanager
def one_at_a_time(caller: str) -> "Iterator[None]":
    """Wait while another process is here. The lock is on the work tree's folder: it leaves nothing behind."""
    folder = os.open(ROOT, os.O_RDONLY)
    os.set_inheritable(folder, True)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{caller}: waiting for another first use to finish", file=sys.stderr)
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def ensure(caller: str, lock_name: str) -> None:
    """Bring `.venv` up to date, if nobody did in the meantime."""
    if is_current(lock_name):
        return
    fresh = not is_usable()
    with (ROOT / lock_name).open("rb") as lock_file:
        packages = sum(b"==" in line for line in lock_file)
    why = "first use" if fresh else "the locked packages changed"
    print(f"{caller}: {why}: installing {packages} packages into .venv", file=sys.stderr)
    if fresh:
        make_venv()
    install(lock_name)


def main() -> int:
    """Exit status: 0 if .venv is ready, 1 if not, 130 after Ctrl-C."""
    _, caller, lock_name = sys.argv
    try:
        use_recent_python()
        with one_at_a_time(caller):
            ensure(caller, lock_name)
    except KeyboardInterrupt:
        return 130
    except (BootstrapError, OSError) as error:
        print(f"{caller}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
