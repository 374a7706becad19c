"""Debian's static bash: scripts that need no second process."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu.grants import Grants
from tests.programs.run import HOST_ISA, ISAS, LARGER_PAGES, run_emulated, run_natively

pytestmark = pytest.mark.debian

_SCRIPTS = {
    "arith": r"""
echo $((2**62-1)) $((0xff & ~3)) $((7/-2)) $((-7%3)) $((a=5,a+=3,a<<2))
let x=5*5; echo $x $((x>20?1:0)); ((x++)); echo $x
""",
    "arrays": r"""
a=(one two three)
a+=(four)
a[10]=ten
echo ${#a[@]} ${a[@]} ${!a[@]} ${a[@]:1:2}
unset "a[1]"
echo "${a[*]}"
b=("${a[@]/o/0}")
printf "<%s>" "${b[@]}"
echo
""",
    "assoc": r"""
declare -A m
m[x]=1
m[y]=2
m[long key]=3
for k in "${!m[@]}"; do echo "$k=${m[$k]}"; done
echo ${#m[@]}
unset "m[x]"
declare -p m
""",
    "herestring": r"""
read -r a b <<< "hello big world"; echo "$b|$a"
while IFS=: read -r x y; do echo "$y-$x"; done <<EOF
1:2
3:4
EOF
""",
    "readloop": r"""
n=0
while read -r num w line; do ((n+=10#$num)); done < text
echo $n
mapfile -t L < text
echo ${#L[@]} "${L[7]}"
""",
    "printf": r"""
printf "%05d|%-10s|%x|%q|%b|%.3f|%(%Y-%m-%d)T\n" 42 left 255 "a b'c" "x\ty" 3.14159 1000000000
printf "%s\n" {a..e}{1..3}
printf -v v "%08.3f" 2.5
echo $v
""",
    "expand": r"""
p=/usr/local/lib/libx.so.1.2
echo ${p##*/} ${p%/*} ${p%%.*} ${p#*/} ${p/lib/LIB} ${p//l/L} ${p:5:5} ${p: -3} ${#p}
s=Hello
echo ${s^^} ${s,,} ${s~~} ${u:-def} ${u:=set} $u ${s:+alt}
""",
    "regex": r"""
[[ "2024-05-17x" =~ ^([0-9]{4})-([0-9]+)-([0-9]+) ]] && echo "${BASH_REMATCH[@]}"
[[ abc == a* ]] && echo glob
[[ abc =~ ^b ]] || echo no
shopt -s extglob
case foobar in @(foo|baz)*) echo ext;; esac
""",
    "trap": r"""
trap "echo usr1" USR1; trap "echo exit; exit 7" EXIT; kill -USR1 $$; echo after; kill -USR1 $$
""",
    "killed": r"""
echo before; kill -TERM $$; echo never
""",
    "segv": r"""
kill -SEGV $$
""",
    "unset": r"""
set -u; echo ${nothing}
""",
    "errexit": r"""
set -eE; trap "echo line \$LINENO" ERR; f() { false; }; f; echo never
""",
    "functions": r"""
f() { local i=$1; ((i<=1)) && { r=1; return; }; f $((i-1)); ((r*=i)); }
f 20
echo $r
g() { return 42; }
g
echo $?
fib() { if (($1<2)); then R=$1; else fib $(($1-1)); local t=$R; fib $(($1-2)); ((R+=t)); fi; }
fib 12
echo $R
""",
    "glob": r"""
echo *
shopt -s globstar nullglob
echo tree/**
echo nomatch*
echo [tT]ext
cd tree
pwd
echo a/*
[ -L link ] && echo link
""",
    "redirect": r"""
exec 3<text
read -r x <&3
read -r y <&3
exec 3<&-
echo "$y"
echo err >&2
{ echo a; echo b; } 2>&1
echo gone 2>/dev/null >/dev/null
""",
    "heredoc": r"""
cat() { while IFS= read -r l; do echo "[$l]"; done; }; x=5; cat <<E
v=$x $((x*2))
E
cat <<"E"
raw $x
E
""",
    "loop": r"""
for ((i=0;i<300;i++)); do s=$((s+i*i)); done
echo $s
until ((i<=290)); do ((i--)); done
echo $i
for i in {10..1..3}; do echo -n "$i "; done
echo
i=0
while :; do ((++i>5)) && break; ((i%2)) && continue; echo $i; done
""",
    "string": r"""
s=""
for ((i=0;i<500;i++)); do s+="x$i,"; done
echo ${#s} ${s: -20}
IFS=,
set -- $s
echo $# $3
t=$'a\tb\x41\u00e9'
echo "$t" ${#t}
""",
    "declare": r"""
type echo; type -t f cd; declare -i n=5+5; echo $n; declare -r c=1; c=2; echo not; 
""",
    "builtins": r"""
help -s echo
umask
ulimit -s
echo $SHLVL $BASH_VERSION $OSTYPE
declare -f
alias a=b
alias
shopt -p extglob
test -v BASH && echo set
getopts ab: o -b val
echo $o $OPTARG
hash
dirs
pushd tree
popd
""",
    "eval": r"""
x=y
y=z
echo ${!x}
eval "echo \$$x"
declare -n ref=y
ref=changed
echo $y
set -- a b c
shift
echo $@ $#
echo "${@:1:1}"
source ./script.sh 1 2
echo $?
""",
    "syntax": r"""
if; then
""",
    "command": r"""
nosuchcommand
""",
    "seconds": r"""
echo $((SECONDS<100))
printf "%(%s)T\n" 0
TZ=UTC printf "%(%c)T\n" 86400
echo ${EPOCHSECONDS:+y}
RANDOM=42
echo $RANDOM $RANDOM
""",
    "readtimeout": r"""
read -t 0.01 x < text; echo $x; read -n 3 y < text; echo $y; read -d T z < text; echo ${#z}
""",
    "select": r"""
PS3="? "; select x in a b; do echo "got $x"; break; done <<< 2
""",
    "wait": r"""
wait; echo $?; jobs; kill -l 9 15; kill -0 $$; echo $?; kill -0 999999; echo $?
""",
    "ignore": r"""
trap "" TERM; kill -TERM $$; echo survived; trap - TERM; trap; kill -INT $$; echo x
""",
    "test": r"""
[ -r text ] && [ -w gone ] 
echo $?
[[ -d tree && ! -e gone ]] 
echo $?
[ text -nt gone ]
echo $?
[ -x tree ]
echo $?
[ -s empty ]
echo $?
""",
    "big": r"""
for ((i=0;i<3000;i++)); do a[i]=$i; done; echo ${#a[@]} ${a[2999]}
""",
    "deep": r"""
f() { (( $1 > 0 )) && f $(($1-1)); return 0; }; f 150; echo done
""",
}  # fmt: skip

_SAMPLE = ("arith", "assoc", "trap", "killed", "expand")


def _check(
    name: str, static: Path, workplace: Path, isa: str, granule: int = 4096, live_state: bool = True
) -> None:
    arguments, source = ["-c", _SCRIPTS[name].strip()], b"input line\n"
    native = run_natively(static / HOST_ISA / "bin" / "bash-static", arguments, workplace, source)
    emulated = run_emulated(
        static / isa / "bin" / "bash-static",
        arguments,
        Grants(cwd=workplace),
        source,
        isa=isa,
        granule=granule,
        live_state=live_state,
    )
    assert emulated == native


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", _SCRIPTS)
def test_a_script_works_as_on_the_host(name: str, isa: str, static: Path, workplace: Path) -> None:
    _check(name, static, workplace, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", _SAMPLE)
def test_a_script_works_with_copied_state(name: str, isa: str, static: Path, workplace: Path) -> None:
    _check(name, static, workplace, isa, live_state=False)


@pytest.mark.parametrize(("isa", "granule"), LARGER_PAGES)
@pytest.mark.parametrize("name", _SAMPLE)
def test_a_script_works_on_larger_pages(
    name: str, isa: str, granule: int, static: Path, workplace: Path
) -> None:
    _check(name, static, workplace, isa, granule)
