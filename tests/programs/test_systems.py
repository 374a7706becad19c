"""Programs of many processes and threads, dynamically linked, in a Debian: servers, git, Python."""

from __future__ import annotations

import sqlite3
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from aether_emu.grants import Grants
from aether_emu.linux.files.mounts import Bind
from tests.programs.run import ISAS, Outcome, run_emulated, run_natively

pytestmark = pytest.mark.debian

every_isa = pytest.mark.parametrize("isa", ISAS)

_STRESSORS = """
    clone 3  epoll 5  eventfd 9  fifo 9  fork 3  futex 9  itimer 3  kill 9  mq 100  mutex 9  pipe 9  poll 9
    pthread 3  sem 9  signal 9  sigq 9  sigsegv 9  sockpair 5  switch 9  timer 3  vfork 3  zombie 3
"""

_MEMORY_STRESSORS = {
    "mmap": (2, "--mmap-bytes 256K"),
    "mremap": (5, "--mremap-bytes 512K"),
    "shm": (1, "--shm-bytes 1M --shm-objs 4"),
    "shm-sysv": (1, "--shm-sysv-bytes 1M --shm-sysv-segs 4"),
    "memfd": (1, "--memfd-bytes 2M --memfd-fds 8"),
    "userfaultfd": (50, "--userfaultfd-bytes 1M"),
    "bigheap": (100, ""),
    "vm": (1, "--vm-bytes 256K --vm-method all"),
}


def _run(script: str, root: Path, isa: str, *, binds: tuple[Bind, ...] = (), **options: Any) -> Outcome:
    words = ["-c", f"export PATH=/usr/bin:/bin HOME=/tmp LC_ALL=C; cd /tmp; {script}"]
    return run_emulated(
        "/usr/bin/bash", words, Grants(root=root / isa, binds=list(binds)), isa=isa, **options
    )


@every_isa
def test_stress_ng_verifies_what_it_does(isa: str, systems: Path) -> None:
    words = _STRESSORS.split()
    pairs = [(name, times) for name, times in zip(words[::2], words[1::2], strict=True)]
    options = " ".join(f"--{name} 1 --{name}-ops {times}" for name, times in pairs)
    outcome = _run(f"stress-ng --temp-path /tmp --verify --metrics-brief {options}", systems, isa)
    _check_stressors(outcome, {name for name, _ in pairs})


@pytest.mark.parametrize("cpus", [1, pytest.param(2, marks=pytest.mark.slow)])
@every_isa
def test_stress_ng_verifies_memory_that_goes_to_a_swap_file(isa: str, cpus: int, systems: Path) -> None:
    """In less RAM than any of them takes, with a pool of a few pages, under TLBSan."""
    script = "; ".join(
        f"stress-ng --temp-path /tmp --verify --metrics-brief --seed 5 --{name} {cpus} "
        f"--{name}-ops {times * cpus} {more} || exit"
        for name, (times, more) in _MEMORY_STRESSORS.items()
    )
    memory: dict[str, Any] = {"ram": "3M", "swap": "64M", "swap_pool": "96K", "tlbsan": True, "cpus": cpus}
    outcome = _run(f"{script}; cat /proc/vmstat", systems, isa, **memory)
    _check_stressors(outcome, set(_MEMORY_STRESSORS))
    (away,) = [line.split()[1] for line in outcome.output.decode().splitlines() if line[:8] == "pswpout "]
    assert int(away) > 100, "pages went to the file"


def _check_stressors(outcome: Outcome, names: set[str]) -> None:
    """All have ended as they should, and each has done something."""
    said = (outcome.output + outcome.errors).decode()
    assert outcome.status == 0, said
    assert "fail:" not in said
    done = {line.split()[3]: int(line.split()[4]) for line in said.splitlines() if _is_figure(line)}
    assert set(done) == names
    assert all(done.values())


def _is_figure(line: str) -> bool:
    words = line.split()
    return "metrc:" in words and len(words) > 4 and words[4].isdigit()


@every_isa
def test_two_processes_write_one_database_and_the_host_can_read_it(
    isa: str, systems: Path, tmp_path: Path
) -> None:
    script = """
        sqlite3 /w/d 'create table t(writer, n)'
        for writer in 1 2; do (
            for n in 1 2; do sqlite3 -cmd '.timeout 60000' /w/d "insert into t values($writer, $n)"; done
        ) & done; wait
        sqlite3 /w/d 'pragma integrity_check'
    """
    outcome = _run(script, systems, isa, binds=(Bind(tmp_path, "/w", writable=True),))
    assert outcome == Outcome(0, b"ok\n", b"")
    with sqlite3.connect(tmp_path / "d") as database:
        rows = database.execute("select writer, n from t order by writer, n").fetchall()
    assert rows == [(writer, n) for writer in (1, 2) for n in (1, 2)]


_LARGE_DATABASE = """
    pragma mmap_size=268435456;
    create table t(id integer primary key, name text, filling blob);
    with recursive c(n) as (select 1 union all select n+1 from c where n<6500)
        insert into t select n, 'row '||n, zeroblob(1500) from c;
    update t set name = name||'!' where id % 7 = 0;
    select count(*), sum(length(filling)) from t where name like '%!';
    select name from t where id in (1, 1999, 6500);
    pragma integrity_check;
"""


@every_isa
def test_a_mapped_database_larger_than_memory_is_written_and_read(
    isa: str, systems: Path, tmp_path: Path
) -> None:
    (tmp_path / "script").write_text(_LARGE_DATABASE)
    grants = Grants(root=systems / isa, binds=[Bind(tmp_path, "/w", writable=True)])
    script = """
        sqlite3 /w/d < /w/script
        while read name value; do case $name in
            pgsteal_file|workingset_refault_file) echo $name $value
        esac; done < /proc/vmstat
        while read line; do echo $line; done < /proc/pressure/memory
    """
    words = ["-c", f"export PATH=/usr/bin:/bin HOME=/tmp LC_ALL=C; {script}"]
    ran = run_emulated("/usr/bin/bash", words, grants, isa=isa, ram="12M", page_cache="counted")
    lines = ran.output.decode().splitlines()
    assert lines[:6] == ["268435456", "928|1392000", "row 1", "row 1999", "row 6500", "ok"]
    figures = dict(line.split() for line in lines[6:8])
    assert int(figures["pgsteal_file"]) > (12 << 20) // 4096
    assert int(figures["workingset_refault_file"]) > 0
    assert lines[8].startswith("some ")
    assert not lines[8].endswith(" total=0"), "tasks waited for what had gone"
    assert (tmp_path / "d").stat().st_size > 12 << 20
    with sqlite3.connect(tmp_path / "d") as database:
        assert database.execute("select count(*) from t where name like '%!'").fetchall() == [(928,)]


@pytest.mark.slow
@every_isa
def test_git_clones_and_commits(isa: str, systems: Path) -> None:
    script = """
        git config --global user.name n; git config --global user.email e; git init -q -b main one; cd one
        seq 100 >f; git add f; git commit -qm first; cd ..; git clone -q one two; cd two
        echo more >>f; git commit -qam second; git push -q origin HEAD:other; git fsck --strict
        test "$(git rev-parse HEAD)" = "$(git -C ../one rev-parse other)"; echo $?; git status --short
        git diff --stat HEAD~1; git log --format=%s
    """
    outcome = _run(script, systems, isa)
    lines = outcome.output.decode().splitlines()
    assert (outcome.status, lines[0], lines[-2:]) == (0, "0", ["second", "first"])
    assert outcome.errors == b""
    assert "1 insertion" in lines[2]


@every_isa
def test_a_server_answers_its_clients_over_the_loopback(isa: str, systems: Path) -> None:
    script = """
        redis-server --port 7000 --save '' >/dev/null &
        until test "$(redis-cli -p 7000 ping 2>/dev/null)" = PONG; do sleep 0.1; done
        redis-cli -p 7000 set key value; redis-benchmark -p 7000 -n 60 -c 3 -t incr,lpush -q >/dev/null
        redis-cli -p 7000 get counter:__rand_int__; redis-cli -p 7000 llen mylist; redis-cli -p 7000 get key
        redis-cli -p 7000 shutdown nosave; wait; echo $?
    """
    assert _run(script, systems, isa) == Outcome(0, b"OK\n60\n60\nvalue\n0\n", b"")


_NGINX = """
user root root; worker_processes 2; pid /tmp/nginx.pid; error_log /tmp/log notice;
events { worker_connections 64; }
http {
    access_log off; client_body_temp_path /tmp/1; proxy_temp_path /tmp/2; fastcgi_temp_path /tmp/3;
    uwsgi_temp_path /tmp/4; scgi_temp_path /tmp/5;
    sendfile on; server { listen 127.0.0.1:8080; root /w; }
}
"""


@every_isa
def test_a_web_server_with_workers_serves_files_and_stops(isa: str, nginx: Path, tmp_path: Path) -> None:
    content = b"".join(b"%d\n" % n for n in range(60_000))
    (tmp_path / "index.html").write_bytes(b"a page\n")
    (tmp_path / "numbers").write_bytes(content)
    (tmp_path / "nginx.conf").write_text(_NGINX)
    script = r"""
        export PATH=$PATH:/usr/sbin
        nginx -c /w/nginx.conf 2>/dev/null; echo $?
        wget -qO- http://127.0.0.1:8080/
        wget -qO- http://127.0.0.1:8080/numbers | sha256sum
        wget -qO- http://127.0.0.1:8080/none; echo $?
        nginx -c /w/nginx.conf -s quit 2>/dev/null; echo $?
        while test -e /tmp/nginx.pid; do sleep 0.1; done
        [[ $(</tmp/log) == *SIGIO*code\ 0*code\ 0* || $(</tmp/log) == *code\ 0*SIGIO*code\ 0* ]]; echo $?
    """
    outcome = _run(script, nginx, isa, binds=(Bind(tmp_path, "/w", writable=False),))
    digest = sha256(content).hexdigest().encode()
    assert (outcome.status, outcome.errors) == (0, b"")
    assert outcome.output == b"0\na page\n%b  -\n8\n0\n0\n" % digest


@every_isa
def test_ipcs_lists_what_ipcmk_makes_and_ipcrm_removes(isa: str, nginx: Path) -> None:
    script = """
        ipcmk -M 1000; ipcmk -S 3; ipcmk -Q; ipcs | while read -r _ number owner mode size _; do
            echo $number $owner $mode $size; done
        ipcs -s -i 0 | tail -n 2; ipcs -u | head -n 3 | tail -n 1; ipcs -l | tail -n 2
        ipcrm -m 0 -s 0 -q 0; ipcs -s -i 0; ipcrm -q 5; echo $?; ipcmk -S 2; ipcrm -a; cat /proc/sysvipc/sem
    """
    outcome = _run(script, nginx, isa)
    assert outcome.errors == b"ipcs: id 0 not found\nipcrm: invalid id (5)\n"
    lines = [" ".join(line.split()) for line in outcome.output.decode().splitlines() if line.strip()]
    assert lines == [
        *("Shared memory id: 0", "Semaphore id: 0", "Message queue id: 0"),
        *("Message Queues --------", "msqid owner perms used-bytes", "0 root 644 0"),
        *("Shared Memory Segments --------", "shmid owner perms bytes", "0 root 644 1000"),
        *("Semaphore Arrays --------", "semid owner perms nsems", "0 root 644 3"),
        *("2 0 0 0 0", "allocated queues = 1"),
        *("semaphore max value = 32767", "1", "Semaphore id: 1"),
        "key semid perms nsems uid gid cuid cgid otime ctime",
    ]


@every_isa
def test_tools_read_the_machine_from_sys(isa: str, nginx: Path) -> None:
    script = """
        nproc --all; lscpu | while IFS=: read -r name value; do echo $name: $value; done
        cat /sys/kernel/mm/transparent_hugepage/enabled /sys/class/net/lo/mtu /sys/devices/system/node/online
        stat -c '%s %a %F' /sys/devices/system/cpu/online; stat -f -c %T /sys
        { echo 1 >/sys/devices/system/cpu/online; } 2>/dev/null || ls /sys/fs | wc -l
    """
    outcome = _run(script, nginx, isa)
    lines = outcome.output.decode().splitlines()
    assert (outcome.status, outcome.errors, lines[0]) == (0, b"", "1")
    assert {"CPU(s): 1", "On-line CPU(s) list: 0", "Thread(s) per core: 1", "NUMA node(s): 1"} <= {*lines}
    assert "NUMA node0 CPU(s): 0" in lines
    assert lines[-6:] == ["always madvise [never]", "65536", "0", "4096 444 regular file", "sysfs", "0"]


_C = r"""
#include <stdio.h>
#include <stdlib.h>
static int order(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
int main(int count, char **words) {
    int n[] = {3, 1, 2};
    qsort(n, 3, sizeof *n, order);
    printf("%d%d%d %d %s %.3f\n", n[0], n[1], n[2], count, words[1], atof(words[1]) / 3);
    return 5;
}
"""


@every_isa
def test_what_a_compiler_makes_runs(isa: str, systems: Path, tmp_path: Path) -> None:
    (tmp_path / "p.c").write_text(_C)
    script = "tcc -c /w/p.c -o p.o && tcc p.o -o p && ./p 7"
    outcome = _run(script, systems, isa, binds=(Bind(tmp_path, "/w", writable=False),))
    assert outcome == Outcome(5, b"123 2 7 2.333\n", b"")


@every_isa
def test_sort_merges_what_does_not_fit_its_buffer(isa: str, systems: Path, tmp_path: Path) -> None:
    lines = sorted(f"{n * 7919 % 20011}\n" for n in range(20000))
    (tmp_path / "lines").write_text("".join(reversed(lines)))
    script = "sort -S 64k --parallel=3 -T /tmp /w/lines"
    outcome = _run(script, systems, isa, binds=(Bind(tmp_path, "/w", writable=False),))
    assert outcome == Outcome(0, "".join(lines).encode(), b"")


_THREADS = """
import os, queue, subprocess, threading
lock, results, total = threading.Lock(), queue.Queue(), 0
barrier = threading.Barrier(3)
def work(n):
    global total
    barrier.wait()
    for _ in range(50):
        with lock: total += n
    results.put(n)
threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3)]
for each in threads: each.start()
for each in threads: each.join()
print(total, sorted(results.get() for _ in threads))
child = os.fork()
if not child: os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(subprocess.run(["sort", "-r"], input=b"a\\nb\\n", capture_output=True).stdout)
print(subprocess.run("kill -9 $$", shell=True).returncode)
try: subprocess.run(["sleep", "50"], timeout=0.05)
except subprocess.TimeoutExpired: print("in time")
"""

_PROCESSES = """
import asyncio, multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
def square(n): return n * n
def tell(connection): connection.send(multiprocessing.get_start_method())
async def echo(reader, writer):
    writer.write((await reader.readline()).upper())
    writer.close()
async def talk():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async def one(n):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"line %d\\n" % n)
        return await reader.read()
    print(await asyncio.gather(*map(one, range(3))))
    child = await asyncio.create_subprocess_exec("echo", "x", stdout=-1)
    print(await child.communicate(), await asyncio.to_thread(square, 5))
if __name__ == "__main__":
    multiprocessing.set_start_method("fork", force=True)
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.Process(target=tell, args=(theirs,))
    child.start(); print(ours.recv()); child.join(); print(child.exitcode)
    with multiprocessing.Pool(2) as pool: print(pool.map(square, range(5)))
    for executor in (ProcessPoolExecutor(2, multiprocessing.get_context("fork")), ThreadPoolExecutor(2)):
        with executor: print(list(executor.map(square, range(3))))
    asyncio.run(talk())
"""  # fmt: skip


_FRESH_INTERPRETERS = """
import multiprocessing
from multiprocessing.shared_memory import SharedMemory
def square(n): return n * n
def work(name, lock, queue):
    shared = SharedMemory(name)
    with lock: shared.buf[1] += shared.buf[0]
    shared.close()
    queue.put(multiprocessing.get_start_method())
def check(method):
    context, shared = multiprocessing.get_context(method), SharedMemory(create=True, size=100)
    shared.buf[0], lock, queue = 7, context.Lock(), context.Queue()
    child = context.Process(target=work, args=(shared.name, lock, queue))
    child.start(); print(queue.get()); child.join(); print(child.exitcode, shared.buf[1])
    shared.close(); shared.unlink()
if __name__ == "__main__":
    %s
"""  # fmt: skip
_SPAWN = 'check("spawn")'
_FORKSERVER = (
    'with multiprocessing.get_context("forkserver").Pool(1) as pool: print(pool.map(square, range(5)))'
)
_FRESH = {_SPAWN: b"spawn\n0 7\n", _FORKSERVER: b"[0, 1, 4, 9, 16]\n"}


def _check_python(script: str, isa: str, systems: Path, tmp_path: Path) -> None:
    """The same as by the interpreter that runs this."""
    path = tmp_path / "script.py"
    path.write_text(f"import os; os.environ['PATH'] = '/usr/bin:/bin'\n{script}")
    native = run_natively(Path(sys.executable).resolve(), [str(path)], tmp_path)
    outcome = _run("exec python3 /w/script.py", systems, isa, binds=(Bind(tmp_path, "/w", writable=False),))
    assert outcome == Outcome(0, native.output, b"")


@every_isa
def test_python_has_threads_and_children(isa: str, systems: Path, tmp_path: Path) -> None:
    _check_python(_THREADS, isa, systems, tmp_path)


def _check_fresh_interpreters(how: str, isa: str, systems: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(_FRESH_INTERPRETERS % how)
    outcome = _run("exec python3 /w/script.py", systems, isa, binds=(Bind(tmp_path, "/w", writable=False),))
    assert outcome == Outcome(0, _FRESH[how], b"")


@pytest.mark.parametrize(("isa", "how"), [("x86_64", _FORKSERVER), ("arm64", _SPAWN)])
def test_python_starts_interpreters_for_its_workers(
    isa: str, how: str, systems: Path, tmp_path: Path
) -> None:
    """Each way on one ISA, for an interpreter takes seconds to start; the other halves below, marked slow."""
    _check_fresh_interpreters(how, isa, systems, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("isa", "how"), [("x86_64", _SPAWN), ("arm64", _FORKSERVER)])
def test_python_starts_interpreters_the_other_way(isa: str, how: str, systems: Path, tmp_path: Path) -> None:
    _check_fresh_interpreters(how, isa, systems, tmp_path)


@pytest.mark.slow
@every_isa
def test_python_forks_workers_and_talks_to_itself(isa: str, systems: Path, tmp_path: Path) -> None:
    _check_python(_PROCESSES, isa, systems, tmp_path)
