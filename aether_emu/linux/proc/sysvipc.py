"""/proc/sysvipc: what processes share by numbers, as `ipcs` lists it (proc_sysvipc_shm(5) and its likes)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from aether_emu.linux.ipc.identifiers import Shared
from aether_emu.linux.kernel import Kernel


def _text(head: str, rows: Iterable[str]) -> bytes:
    return "".join(line + "\n" for line in (head, *rows)).encode()


def _owners(each: Shared) -> str:
    return f"{each.uid:5} {each.gid:5} {each.creator_uid:5} {each.creator_gid:5}"


def _name(each: Shared) -> str:
    return f"{each.key:10} {each.identifier:10}  {each.mode & 0o7777:4o}"


def _segments(kernel: Kernel) -> bytes:
    head = (
        "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      "
        "atime      dtime      ctime                   rss                  swap"
    )
    shift = kernel.physical.frames.page_shift
    return _text(
        head,
        (
            f"{_name(each)} {each.size:21} {each.maker:5} {each.user:5}  {each.attached:5} {_owners(each)} "
            f"{each.attach_time:10} {each.detach_time:10} {each.change_time:10} "
            f"{each.present() << shift:21} {each.in_swap() << shift:21}"
            for each in (() if kernel.system_v is None else kernel.system_v.segments.all())
        ),
    )


def _semaphores(kernel: Kernel) -> bytes:
    head = "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime"
    sets = () if kernel.system_v is None else kernel.system_v.semaphores.all()
    return _text(
        head,
        (
            f"{_name(each)} {len(each.values):10} {_owners(each)} {each.operation_time:10} "
            f"{each.change_time:10}"
            for each in sets
        ),
    )


def _messages(kernel: Kernel) -> bytes:
    head = (
        "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      "
        "stime      rtime      ctime"
    )
    queues = () if kernel.system_v is None else kernel.system_v.messages.all()
    return _text(
        head,
        (
            f"{_name(each)}  {each.bytes:10} {len(each.messages):10} {each.sender:5} {each.receiver:5} "
            f"{_owners(each)} {each.send_time:10} {each.receive_time:10} {each.change_time:10}"
            for each in queues
        ),
    )


SHARED: dict[str, Callable[[Kernel], bytes]] = {"shm": _segments, "sem": _semaphores, "msg": _messages}
"""The texts by name."""
