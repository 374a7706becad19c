"""Debian's static busybox: a hundred small programs in one file."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from aether_emu.grants import Grants
from tests.programs.run import HOST_ISA, ISAS, LARGER_PAGES, run_emulated, run_natively

pytestmark = pytest.mark.debian

# One command a line; a last word `<file` names what stands on stdin.
_COMMANDS = r"""
echo -e a\tb\n
cat text
wc text bytes
sort text
sort -k2,2 -k1nr text
head -n 7 text
tail -n 5 text
tail -c 100 text
tr a-z A-Z <text
cut -f1,3 text
sed -n 's/Line \([0-9]*\)/<\1>/p' text
sed -e '1,10d;s/word//g;$!N;P;D' text
awk '{s+=$1;c[$2]++} END{n=0; for(k in c)n+=c[k]; print n, length($0), sprintf("%.10g %e", s/7, s)}' text
awk 'BEGIN{for(i=0;i<2000;i++)x=x*1.0001+i; printf "%.15g %s\n", x, sin(1)+exp(2)+log(3)+sqrt(2)+atan2(1,2)}'
grep -n 'word1[0-6]' text
grep -E -c '(word3|MiXed)$' text
grep -i -o 'mixed' text
md5sum text bytes
sha1sum text bytes
sha256sum text bytes
sha512sum bytes
sha3sum bytes
cksum text
sum text
crc32 text
od -An -tx1 -v bytes
od -c bytes
hexdump -C bytes
xxd bytes
base64 bytes
expr 7 * 6
expr abcdef : 'abc\(.*\)'
seq 1 3 40
seq -w 0.5 0.25 3
printf '%s|%05d|%-8s|%x|%c|%.3f|%e|%g\n' s 42 left 255 c 3.14159 12345.678 1e-10
test -f text -a -d tree -a ! -e gone
test -f gone
[ 1 -lt 2 ]
factor 1234567 97 1000000
dc -e '16 o 10 i 255 p 2 100 ^ p'
bc <calc
diff text other
diff -u text other
cmp text other
cmp text text
tac text
rev text
nl text
fold -w 20 text
expand text
unexpand -a text
find tree -type f -name '*o*'
find tree -name two -size -2
stat -c '%n %s %F' text tree tree/link
readlink tree/link
readlink -f tree/link
realpath tree/a/../a/one
basename /a/b/c.txt .txt
dirname /a/b/c.txt
env
date -u -d @1000000000
date -u -d @1000000000 +%Y-%m-%dT%H:%M:%S
gzip -c text
gunzip -c text.gz
bzip2 -c text
bunzip2 -c text.bz2
xzcat text.xz
tar -tf tree.tar
tar -tvf tree.tar
tar -xOf tree.tar a/one
cpio -t <archive.cpio
strings bytes
true
false
uniq -c text
paste text other
comm text other
tsort <pairs
ls
ls -1a tree
ls -R tree
uuencode name <bytes
cal 1 2001
sh -c 'i=0; while [ $i -lt 50 ]; do i=$((i+1)); done; echo $i ${#i}'
sh -c 'f() { echo "f:$1"; }; f x; case abc in a*) echo m;; esac; echo ${x:-d}'
sh -c 'while read a b c; do echo "$b:$a"; done <text'
sh -c 'echo *; cd tree && pwd; echo a/*/*; exit 3'
sh -c 'kill -TERM $$'
sh -c 'trap "echo got" USR1; kill -USR1 $$; echo after'
sh -c 'trap "echo bye" EXIT; set -e; false; echo no'
sh -c 'printf "%d %s\n" 5 a; x="a b c"; for w in $x; do echo $w; done; echo ${x#a } ${x%c}'
cat gone
ls gone
tee <text
cryptpw -m sha512 secret saltsalt
mkpasswd -m md5 secret saltsalt
pwd
ascii
unix2dos <text
dos2unix <text
lzma -c text
""".strip().splitlines()

# Every group of applets once, for the machines that differ from the usual ones.
_SAMPLE = [
    line for line in _COMMANDS if line.split()[0] in ("awk", "dc", "sha512sum", "tar", "xzcat", "find")
]


def _check(
    line: str, static: Path, workplace: Path, isa: str, granule: int = 4096, live_state: bool = True
) -> None:
    words, source = shlex.split(line), b""
    if words[-1].startswith("<"):
        source = (workplace / words.pop()[1:]).read_bytes()
    native = run_natively(static / HOST_ISA / "bin" / "busybox", words, workplace, source)
    emulated = run_emulated(
        static / isa / "bin" / "busybox",
        words,
        Grants(cwd=workplace),
        source,
        isa=isa,
        granule=granule,
        live_state=live_state,
    )
    assert emulated == native


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("line", _COMMANDS)
def test_an_applet_works_as_on_the_host(line: str, isa: str, static: Path, workplace: Path) -> None:
    _check(line, static, workplace, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("line", _SAMPLE)
def test_an_applet_works_with_copied_state(line: str, isa: str, static: Path, workplace: Path) -> None:
    _check(line, static, workplace, isa, live_state=False)


@pytest.mark.parametrize(("isa", "granule"), LARGER_PAGES)
@pytest.mark.parametrize("line", _SAMPLE)
def test_an_applet_works_on_larger_pages(
    line: str, isa: str, granule: int, static: Path, workplace: Path
) -> None:
    _check(line, static, workplace, isa, granule)


@pytest.mark.parametrize("isa", ISAS)
def test_uname_names_the_emulated_machine(isa: str, static: Path, workplace: Path) -> None:
    busybox, names = static / isa / "bin" / "busybox", {"x86_64": b"x86_64\n", "arm64": b"aarch64\n"}
    assert run_emulated(busybox, ["uname", "-m"], Grants(cwd=workplace), isa=isa).output == names[isa]


_IN_TMP = r"""
set -e
d=$(mktemp -d /tmp/aether.XXXXXX)
trap 'rm -r $d' EXIT
cd $d
mkdir -p a/b; echo one >a/f; ln a/f a/b/g; ln -s b/g a/l; chmod 640 a/f; touch -d @1000000 a/f
stat -c '%A %h %s' a/f a/l; stat -c %Y a/f; cat a/l
tar cf t.tar a; mkdir out; tar xf t.tar -C out; find out | sort; ls -l out/a/f | cut -c1-10
mv a/b out; mv -f out/b/g a/f; ls -R
mkfifo p; (seq 5 >p &); sort -rn p
seq 3000 | sort -rn -T $d | head -n 1
i=0; while [ $i -lt 60 ]; do echo $i >n$i; i=$((i+1)); done; cat n* | wc
exec 3>gone; rm gone; echo late >&3; ls gone 2>&1 || true
dd if=/dev/zero of=big bs=4k count=1 seek=100 2>/dev/null; du big; truncate -s 5 big; stat -c %s big
rmdir out || true; rm -r out
"""


@pytest.mark.parametrize("isa", ISAS)
def test_a_script_works_in_tmp_as_on_the_host(isa: str, static: Path, workplace: Path) -> None:
    """Nothing is bound there, and nothing of it reaches the host."""
    native = run_natively(static / HOST_ISA / "bin" / "busybox", ["sh", "-c", _IN_TMP], workplace, b"")
    busybox = static / isa / "bin" / "busybox"
    assert run_emulated(busybox, ["sh", "-c", _IN_TMP], Grants(cwd=workplace), isa=isa) == native
