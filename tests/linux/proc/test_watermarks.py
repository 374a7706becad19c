"""/proc/zoneinfo and the settings of watermarks, for root and for others."""

from __future__ import annotations

import pytest

from aether_emu.errors import Refused
from aether_emu.linux.files.flags import AT_FDCWD, O_RDONLY, O_WRONLY
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.task.process import Process
from aether_emu.system import Machine
from tests.guests.running import program


def loaded(uid: int, **options: object) -> tuple[Machine, Process]:
    made = Machine("x86_64", ram="64M", uid=uid, gid=uid, **options)  # type: ignore[arg-type]  # any
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    return made, made.load(program("x86_64", "hello"), ["hello"], streams=streams)


def read(process: Process, name: str) -> bytes:
    number = process.files.open(AT_FDCWD, f"/proc/{name}".encode(), O_RDONLY)
    data = process.files.read(number, 4096)
    process.files.close(number)
    assert isinstance(data, bytes)
    return data


def write(process: Process, name: str, data: bytes) -> None:
    number = process.files.open(AT_FDCWD, f"/proc/sys/vm/{name}".encode(), O_WRONLY)
    try:
        process.files.write(number, data)
    finally:
        process.files.close(number)


@pytest.mark.parametrize("swap", [0, "64M"])
def test_root_moves_the_marks(swap: object) -> None:
    made, process = loaded(0, swap=swap)
    assert read(process, "sys/vm/min_free_kbytes") == b"1024\n"
    assert read(process, "sys/vm/watermark_scale_factor") == b"10\n"
    write(process, "min_free_kbytes", b"2048\n")
    write(process, "watermark_scale_factor", b"1000\n")
    assert read(process, "sys/vm/min_free_kbytes") == b"2048\n"
    assert read(process, "sys/vm/watermark_scale_factor") == b"1000\n"
    rows = dict(line.rsplit(maxsplit=1) for line in read(process, "zoneinfo").decode().splitlines()[1:])
    figures = {name.strip(): int(value) for name, value in rows.items()}
    assert (figures["min"], figures["high"]) == (512, 512 + made.buddy.total // 10 * 2)
    assert figures["pages free"] == made.buddy.free_frames
    for name, wrong in (
        ("min_free_kbytes", b"x"),
        ("watermark_scale_factor", b"0"),
        ("watermark_scale_factor", b"3001"),
    ):
        with pytest.raises(Refused, match="EINVAL"):
            write(process, name, wrong)
    made.close()


def test_another_user_moves_nothing() -> None:
    made, process = loaded(1000)
    with pytest.raises(Refused, match="EACCES"):
        write(process, "min_free_kbytes", b"2048\n")
    made.close()
