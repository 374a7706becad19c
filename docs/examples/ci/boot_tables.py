"""Stands for your kernel's build: writes the memory that its boot code would leave, from address 0 on."""

import struct
import sys

PRESENT, WRITABLE, LARGE, NO_EXECUTE = 1, 2, 1 << 7, 1 << 63

memory = bytearray(8 << 20)


def entry(table: int, index: int, value: int) -> None:
    struct.pack_into("<Q", memory, table + 8 * index, value)


entry(0x1000, 511, 0x2000 | PRESENT | WRITABLE)  # PML4
entry(0x2000, 510, 0x3000 | PRESENT | WRITABLE)  # PDPT
entry(0x3000, 0, 0x200000 | PRESENT | LARGE)  # text, at the upper half's last 2 GiB
entry(0x3000, 1, 0x400000 | PRESENT | WRITABLE | LARGE | NO_EXECUTE)  # data

with open(sys.argv[1], "wb") as image:
    image.write(memory)
