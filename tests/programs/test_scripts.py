"""Scripts of many processes, by Debian's static bash and busybox, print and end as on the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu.grants import Grants
from aether_emu.linux.files.mounts import Bind
from tests.programs.run import HOST_ISA, ISAS, run_emulated, run_natively

pytestmark = pytest.mark.debian

_CONFIGURE = Path(__file__).resolve().parent / "configure"
_SHELLS = {"busybox": ["sh"], "bash-static": []}
_OPTIONS = ["--prefix=/opt/a", "--with-colour=x&y|z"]


@pytest.fixture(scope="module")
def tools(static: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each ISA a folder with busybox under the names of all its applets."""
    found = {}
    for isa in ISAS:
        folder = found[isa] = tmp_path_factory.mktemp(isa)
        (folder / "busybox").hardlink_to(static / isa / "bin" / "busybox")
        listed = run_natively(static / HOST_ISA / "bin" / "busybox", ["--list"], folder).output
        for name in listed.decode().split():
            if name != "busybox":
                (folder / name).symlink_to("busybox")
    return found


def _check(shell: str, isa: str, options: list[str], tools: dict[str, Path], static: Path, cwd: Path) -> None:
    words = [*_SHELLS[shell], str(_CONFIGURE)]
    native = run_natively(static / HOST_ISA / "bin" / shell, [*words, str(tools[HOST_ISA]), *options], cwd)
    binds = [Bind(tools[isa], "/tools", writable=False), Bind(_CONFIGURE, str(_CONFIGURE), writable=False)]
    grants = Grants(cwd=cwd, binds=binds)
    words += ["/tools", *options]
    assert run_emulated(static / isa / "bin" / shell, words, grants, isa=isa) == native
    assert native.status


@pytest.mark.parametrize("isa", ISAS)
def test_a_configure_script_finds_what_it_finds_on_the_host(
    isa: str, tools: dict[str, Path], static: Path, workplace: Path
) -> None:
    _check("busybox", isa, _OPTIONS, tools, static, workplace)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_a_configure_script_whose_tools_are_all_programs_ends_by_a_signal_as_on_the_host(
    isa: str, tools: dict[str, Path], static: Path, workplace: Path
) -> None:
    _check("bash-static", isa, [*_OPTIONS, "--enable-speed"], tools, static, workplace)


_JOBS = r"""
cat <<E | while read a b; do echo "$b:$a"; done
1 one
2 $(echo two | tr a-z A-Z)
E
(sleep 0.02; echo late) & (echo early; exit 7) & wait $!; echo $?; wait; echo $?
trap 'echo "usr1 in $0"' USR1; kill -USR1 $$; (kill -USR1 $$); trap - USR1
yes | head -n 3 | sort | uniq -c; set -o pipefail; false | cat; echo $?
find tree -type f | sort | xargs -n 1 sh -c 'echo "$0 $(wc -c <$0)"'
tar cf - tree | gzip | gunzip | tar tf - | sort
awk -F'\t' '{n[$2]++} END {for (k in n) print k, n[k]}' text | sort -k2nr -k1 | head -n 4
sed -n '1~50p' text | cut -f1 | paste -s -d+ | sed 's/0*\([1-9]\)/\1/g'
sh -c 'exit 300'; echo $?; (sh -c 'kill -TERM $$'; exit $?); echo $?
exec 3>&1; x=$( (echo shown >&3; echo held) ); echo "<$x>"
mkfifo /tmp/p.$$; (seq 4 >/tmp/p.$$ &); cat /tmp/p.$$; rm /tmp/p.$$
"""


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shell", _SHELLS)
def test_jobs_and_pipes_end_as_on_the_host(
    shell: str, isa: str, tools: dict[str, Path], static: Path, workplace: Path
) -> None:
    def words(folder: str) -> list[str]:
        return [*_SHELLS[shell], "-c", f"PATH={folder}; export PATH\n{_JOBS}", "jobs"]

    native = run_natively(static / HOST_ISA / "bin" / shell, words(str(tools[HOST_ISA])), workplace)
    grants = Grants(cwd=workplace, binds=[Bind(tools[isa], "/tools", writable=False)])
    assert run_emulated(static / isa / "bin" / shell, words("/tools"), grants, isa=isa) == native


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_a_pipeline_of_500_programs_ends_as_on_the_host(isa: str, static: Path, workplace: Path) -> None:
    words = ["sh", "-c", f"seq 100 {'| cat ' * 498} | md5sum"]
    native = run_natively(static / HOST_ISA / "bin" / "busybox", words, workplace)
    assert run_emulated(static / isa / "bin" / "busybox", words, Grants(cwd=workplace), isa=isa) == native
