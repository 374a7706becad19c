"""Random system calls, made by a guest: a loop in machine code walks a table of calls, and notes each answer.

A seed gives a table. Numbers are all that an ISA has, and some that it has not; arguments are what a call
of that name wants, or anything. Memory and descriptors persist, so that later calls meet what earlier ones
left. A call may destroy the loop itself (unmap it, jump away): the program dies then, as under Linux.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aether_emu.grants import Grants
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.mounts import Bind
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.proc.texts import ProcessTexts
from aether_emu.linux.task.deadlock import Deadlock
from aether_emu.linux.task.ended import Ended
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.program import Program
from aether_emu.linux.task.scheduler import Interrupted
from aether_emu.linux.task.task import Task
from aether_emu.machine.cpu import UserFault
from aether_emu.mm.protection import Protection
from aether_emu.mm.user import UserMemory
from aether_emu.system import Machine
from tests.linux.calls.looks import Looks

_LOOPS = {
    # l: mov rax, [rbx]; rdi, rsi, rdx, r10, r8, r9 likewise; syscall; mov [rbx+56], rax; add rbx, 64; jmp l
    "x86_64": "488b03488b7b08488b7310488b53184c8b53204c8b43284c8b4b300f05488943384883c340ebd9",
    # l: ldr x8, [x19]; ldp x0 to x5; svc #0; str x0, [x19, #56]; add x19, x19, #64; b l
    "arm64": "680240f9608640a9628e41a9649642a9010000d4601e00f973020191f9ffff17",
}
# A signal handler that does nothing, and behind it what it returns through.
_HANDLERS = {
    "x86_64": b"\xc3".ljust(16) + bytes.fromhex("b80f0000000f05"),
    "arm64": bytes.fromhex("c0035fd6"),
}
_TABLE_REGISTER = {"x86_64": "rbx", "arm64": "x19"}
_UNANSWERED = 0x5A5A_5A5A_5A5A_5A5A

CODE, TABLE, DATA, STACK = 0x1000_0000, 0x1100_0000, 0x2000_0000, 0x3000_0000
"""Where things are: the loop, its table, memory for arguments, the stack."""
HANDLER = CODE + 0x100
READABLE, FORBIDDEN, SHARED, HOLE = 0x2100_0000, 0x2200_0000, 0x2300_0000, 0x2400_0000
_PAGES = 16
_SIZE = _PAGES << 16  # sixteen pages of any size
_TEXTS = DATA + 0x1000
_STRUCTURES = DATA + 0x4000
_EVERYTHING = Protection.READ | Protection.WRITE | Protection.EXECUTE
_LAST = (1 << 64) - 1
_PATHS = (
    b"/w/f", b"/w/d", b"/w/l", b"", b"/", b"..", b".", b"/proc/self/fd/3", b"/dev/zero", b"/dev/urandom",
    b"x" * 300, b"/w/" + b"d/../" * 60 + b"f", b"\xff\xfe", b"/w/new", b"/w/d/new", b"/proc/self/maps",
    b"/proc/self/smaps", b"/proc/self/clear_refs", b"/proc/self/pagemap", b"/dev/full", b"/w/f/", b"new",
    b"/proc/self/exe", b"/dev/stdout", b"/proc/self/status", b"/proc/self/fd",
    *(b"\x01\0\0name", b"\x01\0/w/name", b"\x02\0\x1f\x90\x7f\0\0\x01" + bytes(8)),
    b"\x0a\0\x1f\x90" + bytes(24),
)  # fmt: skip
_STEP = 512

Draw = Callable[[random.Random], int]


def _structures() -> bytes:
    """Memory that means something to many calls: times, vectors, sets, limits, events, actions."""
    second = 10**9
    words = [
        *(0, 1, 0, 0, 5, second - 1, -1, 5, 0, second, (1 << 63) - 1, 999, 1 << 40, 1 << 62),
        *(DATA, 64, READABLE, 4096, DATA + 128, 0, FORBIDDEN, 10, SHARED, 1 << 20, DATA, 1 << 30, HOLE, 7),
        *(HANDLER, 0x0400_0004, HANDLER + 16, 0, 0, 0, 0, 0, 1, 0, 0, 0, -1, -1, 1024, 4096),
        *(3 | 1 << 32, 4 | 5 << 32, 5 | 1 << 32, 9 | 4 << 32, 0x4242, 18, 0, 0, 2, 0o644, 0, 0, 1 << 31, 1),
        *(1, 1 << 63, 0x8000_0001, 7, DATA, 130, 0, DATA + 8, 2, 0),
    ]
    return b"".join((word & _LAST).to_bytes(8, "little") for word in words)


def _one_of(*values: int) -> Draw:
    return lambda chance: chance.choice(values)


def _bits(*bits: int) -> Draw:
    return lambda chance: sum(chance.sample(bits, chance.randint(0, min(3, len(bits)))))


def _address(chance: random.Random) -> int:
    base = chance.choice((*(DATA,) * 3, *(_STRUCTURES,) * 2, READABLE, FORBIDDEN, SHARED, HOLE, STACK))
    place = base + chance.choice((0, 0, 8, 16, 24, 64, 1, 4095, 4096, 4092, _SIZE - 1, _SIZE - 8, _SIZE))
    if chance.random() < 0.05:
        place |= 0xB << 56  # a tag
    return place


def _structure(chance: random.Random) -> int:
    return _STRUCTURES + 8 * chance.randint(0, 70) if chance.random() < 0.8 else _address(chance)


def _path(chance: random.Random) -> int:
    return _TEXTS + _STEP * chance.randrange(len(_PATHS)) if chance.random() < 0.9 else _address(chance)


def _page(chance: random.Random) -> int:
    base = chance.choice((DATA + 0x8000, READABLE, FORBIDDEN, SHARED, HOLE, HOLE, STACK))
    return base + chance.choice((0, 0, 0, 4096, 1 << 16, _SIZE // 2, _SIZE - 4096, _SIZE, 1, 1 << 21))


_ANYTHING = (
    *(0, 1, 2, 3, 4, 5, 7, 8, 16, 63, 64, 100, 127, 128, 255, 256, 511, 512, 1000, 1024, 1025, 4095, 4096),
    *(4097, 1 << 16, (1 << 21) - 1, 1 << 30, (1 << 31) - 1, 1 << 31, (1 << 31) + 1, 1 << 32, 1 << 40),
    *((1 << 47) - 4096, 1 << 47, 1 << 55, (1 << 63) - 1, 1 << 63, (1 << 63) + 1, _LAST, _LAST - 1),
    *(1 << 46, _LAST - 4095),
    *(0xFFFF_8000_0000_0000, 0xFFFF_FFFF, 0xFFFF_FF9C, _LAST - 99, 8, 0xDEAD_BEEF_DEAD_BEE8, CODE),
)  # fmt: skip
_MAP_FLAGS = _bits(0x10, 0x20, 0x20, 0x100, 0x2000, 0x4000, 0x8000, 0x100000)
_DRAWS: dict[str, Draw] = {
    "f": _one_of(*range(16), 3, 4, 5, 6, 7, 8, 9, 1000, _LAST, (1 << 31) - 1, 0xFFFF_FF9C),
    "d": _one_of(_LAST - 99, _LAST - 99, 3, 4, 5, 6, _LAST),  # AT_FDCWD
    "p": _path,
    "b": _address,
    "t": _structure,
    "m": _page,
    "s": _one_of(0, 1, 7, 8, 16, 64, 100, 4095, 4096, 4097, 8192, 65536, 1 << 20, 1 << 21, _SIZE, 1 << 27),
    "o": _one_of(0, 1, 8, 4095, 4096, 8192, 65536, 1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1, _LAST),
    "n": _one_of(0, 1, 2, 3, 5, 8, 16, 128, 1024, 1025, _LAST),
    "g": _bits(*(1 << bit for bit in range(25))),
    "r": _bits(1, 2, 4, 8, 1 << 24, 1 << 25),
    "M": lambda chance: chance.choice((1, 2, 2, 2, 3)) | _MAP_FLAGS(chance),
    "k": _one_of(*range(17), 20, 21, 22, 23, 31, 32, 64, 1024, 1033),
    "8": _one_of(8, 8, 8, 0, 4, 16, _LAST),
    "S": _one_of(0, 10, 12, 17, 18, 23, 28, 33, 34, 40, 64, 65),  # none that kills by default is likely
    "F": _one_of(1, 1, 1, 2, 2, 10, 16, 0),
    "T": _one_of(1, 2, 5, 1 | 1 << 11, 2 | 1 << 11, 5 | 1 << 19, 3, 0),
    "N": _one_of(16, 16, 28, 2, 3, 7, 9, 110, 128, 0, _LAST),
    "l": _one_of(1, 1, 6, 0, 41, 99),
    "O": _one_of(*range(1, 22), 26, 30, 38, 39, 67),
    "G": _bits(1, 2, 0x20, 0x40, 0x100, 0x2000, 0x4000, 0x8000, 0x10000, 1 << 30),
    "P": _one_of(0, 4242, 4242, 4243, 1, _LAST),
}
_SIGNATURES = """
read fbs;write fbs;open pgo;close f;stat pb;fstat fb;lstat pb;poll tnk;lseek fok;mmap msrMfo;mprotect msr
munmap ms;brk m;rt_sigaction Stb8;rt_sigprocmask ktb8;ioctl fgb;pread64 fbso;pwrite64 fbso;readv ftn
writev ftn;access pk;pipe b;select nbbbt;mremap mssgm;msync msk;mincore msb;madvise msk;dup f;dup2 ff
nanosleep tb;sendfile fftn;fcntl fkt;flock fk;fsync f;fdatasync f;truncate po;ftruncate fo;getdents fbs
getcwd bs;chdir p;fchdir f;rename pp;mkdir pg;rmdir p;creat pg;link pp;unlink p;symlink pp;readlink pbs
chmod pg;fchmod fg;chown pnn;fchown fnn;lchown pnn;umask g;gettimeofday bb;getrlimit kb;getrusage kb
sysinfo b;times b;setrlimit kt;kill PS;tkill PS;tgkill PPS;sigaltstack tb;rt_sigsuspend t8
rt_sigpending b8;rt_sigtimedwait tbt8;personality g;statfs pb;fstatfs fb;mlock ms;munlock ms;mlockall k
mlock2 msk;prctl ktttt;arch_prctl gb;futex bktttk;sched_getaffinity Psb;sched_setaffinity Pst
epoll_ctl fkft;epoll_wait ftnk;epoll_pwait ftnkt8;epoll_pwait2 ftntt8;clock_gettime kb;clock_getres kb
clock_nanosleep kktb;openat dpgo;mkdirat dpg;newfstatat dpbg;unlinkat dpg;renameat dpdp;renameat2 dpdpk
sched_getattr Pbsk;sched_setattr Ptk;sched_setscheduler Pkt;sched_setparam Pt;sched_getparam Pb;rseq tskk
membarrier kkk;setpriority kPk;getpriority kP;sched_rr_get_interval Pb;get_robust_list Pbb
linkat dpdpg;symlinkat pdp;readlinkat dpbs;fchmodat dpg;fchmodat2 dpgg;faccessat dpk;faccessat2 dpkg
pselect6 nbbbtt;ppoll tntt8;utimensat dptg;fallocate fkos;eventfd2 ng;epoll_create1 g;dup3 ffg;pipe2 bg
preadv ftno;pwritev ftno;preadv2 ftnokk;pwritev2 ftnokk;prlimit64 Pktb;getrandom bsk;memfd_create pg
copy_file_range ftftsk;statx dpgkb;close_range ffk;openat2 dpt8;getdents64 fbs;fadvise64 fosk
readahead fos;sync_file_range foog;futex_waitv tnktk;fchownat dpnng;mknodat dpgk;splice ftftsk
getxattr ppbs;fgetxattr fpbs;set_robust_list b8;set_tid_address b;getcpu bb;uname b;getgroups nb
socket FTn;socketpair FTnb;bind fpN;listen fn;connect fpN;accept fbt;accept4 fbtg;shutdown fk
getsockname fbt;getpeername fbt;sendto fbsGpN;recvfrom fbsGbt;sendmsg ftG;recvmsg ftG;sendmmsg ftnG
recvmmsg ftnGt;getsockopt flObt;setsockopt flOtN;tee ffsk;vmsplice ftnk
remap_file_pages mskog;process_madvise ftnkk;process_mrelease fk
"""  # fmt: skip
_BY_NAME = dict(entry.split() for line in _SIGNATURES.split("\n") for entry in line.split(";") if entry)
_ENDS = ("exit", "exit_group", "rt_sigreturn", "pause", "rt_sigsuspend")


def calls(isa: str, numbers: dict[int, str], seed: int, count: int) -> list[tuple[int, ...]]:
    """`count` calls, each (number, six arguments), and the end of the process."""
    chance = random.Random(f"{isa} {seed}")
    known = {name: number for number, name in numbers.items()}
    useful = [name for name in _BY_NAME if name in known]
    made = []
    for _ in range(count):
        draw = chance.random()
        if draw < 0.75:
            name = chance.choice(useful)
            number = known[name]
        elif draw < 0.97:
            number = chance.choice(list(numbers))
            name = numbers[number]
            if name in _ENDS and chance.random() < 0.9:
                continue
        else:
            number, name = chance.choice((*range(448, 520), 1000, 1 << 31, _LAST, 0x4000_0000)), ""
        wanted = _BY_NAME.get(name, "")
        made.append((number, *(_argument(chance, wanted[i : i + 1]) for i in range(6))))
    return [*made, (known["exit_group"], 0, 0, 0, 0, 0, 0)]


def _argument(chance: random.Random, kind: str) -> int:
    if kind and chance.random() < 0.85:
        return _DRAWS[kind](chance)
    if chance.random() < 0.3:
        return chance.choice(list(_DRAWS.values()))(chance)
    return chance.choice(_ANYTHING)


@dataclass(frozen=True)
class Outcome:
    """How a sequence went: `ended` is None when nobody could go on, or it was given up for taking so long.

    `answers` are those it lived to see.
    """

    ended: Ended | None
    given_up: bool
    answers: tuple[int, ...]
    output: bytes


class Fuzzed:
    """A machine that is about to make the calls of a seed, on a small tree of files at /w."""

    def __init__(self, isa: str, seed: int, count: int, base: Path, page_size: int = 4096) -> None:
        self.isa, self.waits_for_input = isa, False
        machine = self.machine = Machine(
            isa, ram="16M", aperture="16M", seed=seed, page_size=page_size, pause=self._nobody_comes
        )
        self.out = BufferStream()
        root, files = base / "root", base / "files"  # whose names on the host the guest cannot learn
        root.mkdir()
        (files / "d").mkdir(parents=True)
        (files / "f").write_bytes(bytes(range(256)) * 40)
        (files / "l").symlink_to("f")
        grants = Grants(root, [Bind(files, "/w", writable=True)])
        namespace = machine.namespace = machine.new_namespace("/hello", grants)
        process = machine.process = Process(
            machine.kernel, machine.new_space(), Program(b"/w/f", [b"f"], []), pid=4242
        )
        process.files = Files(namespace, ProcessTexts(process))
        process.files.attach({"stdin": BufferStream(b"in" * 50), "stdout": self.out, "stderr": self.out})
        task = Task(process)
        machine.entry.switch(task)
        self._fill(process, calls(isa, dict(machine.abi.system_calls), seed, count), files / "f")
        machine.abi.start(machine.cpu, CODE, STACK + _SIZE - 4096)
        machine.cpu.load_registers(machine.cpu.registers() | {_TABLE_REGISTER[isa]: TABLE})
        machine.scheduler.add(task)

    def _fill(self, process: Process, made: list[tuple[int, ...]], shared: Path) -> None:
        mm, cpu = process.mm, self.machine.cpu
        table = b"".join(struct.pack("<8Q", *call, _UNANSWERED) for call in made)
        self._calls = len(made)
        size = len(table) + -len(table) % (1 << 16)
        both = Protection.READ | Protection.WRITE
        for start, length, protection in (
            *((CODE, 1 << 16, _EVERYTHING), (TABLE, size, both), (DATA, _SIZE, both), (STACK, _SIZE, both)),
            *((READABLE, _SIZE, Protection.READ), (FORBIDDEN, _SIZE, Protection.NONE)),
        ):
            mm.insert(mm.new_area(start, start + length, protection))
        with shared.open("r+b") as file:
            mm.map_file(file, SHARED, _SIZE, both)
        cpu.copy_to_user(CODE, bytes.fromhex(_LOOPS[self.isa]))
        cpu.copy_to_user(HANDLER, _HANDLERS[self.isa])
        cpu.copy_to_user(TABLE, table)
        for index, path in enumerate(_PATHS):
            cpu.copy_to_user(_TEXTS + _STEP * index, path + b"\0")
        cpu.copy_to_user(_STRUCTURES, _structures())

    def run(self, looks: Looks) -> Outcome:
        """Make the calls, to the end of the process or until it waits for nothing that can come.

        `looks` may end the run now and then, and does so for good.
        """
        ended, going = None, True
        while going:
            try:
                self.machine.run()
                assert self.machine.process is not None
                ended, going = self.machine.process.ended, False
            except Interrupted:
                going = not self.waits_for_input and not looks.is_over
            except Deadlock:
                going = False
        return Outcome(ended, looks.is_over, self._answers(), bytes(self.out.written))

    def _nobody_comes(self) -> None:
        self.waits_for_input = True
        raise Interrupted

    def _answers(self) -> tuple[int, ...]:
        """What the calls returned, as far as the table can still be read."""
        assert self.machine.process is not None
        memory, answers = UserMemory(self.machine.process.mm), []
        for index in range(self._calls):
            try:
                (answer,) = struct.unpack("<q", memory.read(TABLE + 64 * index + 56, 8))
            except UserFault:
                break
            if answer == _UNANSWERED:
                break
            answers.append(answer)
        return tuple(answers)

    def close(self) -> None:
        """Give everything back. LeakError if a frame is missing."""
        self.machine.close()
