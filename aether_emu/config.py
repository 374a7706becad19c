"""Every parameter of a machine in one frozen, validated `Config`: defaults, then TOML, then options.

A parameter is declared once, as a field with a rule. The rule parses what a file or an option says,
refuses what is not allowed and describes itself for the documentation, so the three cannot disagree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from aether_emu.errors import ConfigError, suggestion
from aether_emu.rules import (
    GIB,
    KIB,
    MIB,
    TIB,
    Choice,
    Devices,
    Flag,
    HostName,
    HostPath,
    Picture,
    Pools,
    Rule,
    Runs,
    SlabDebug,
    Whole,
    Word,
    format_size,
    run_sizes,
)

_HEADER = r"\s*\[\s*([^][]+?)\s*\]"  # of a TOML table
_ASSIGNMENT = r"""\s*(?:["']([^"']*)["']|([\w.-]+))\s*="""
_MOST_SPLIT_PCIDS = (1 << 11) - 1
_OPTIONS = {"granule": "page_size", "la57": "virtual_bits"}  # parameters as the command line calls them


def _parameter(default: Any, rule: Rule, meaning: str) -> Any:
    """A dataclass field under `rule`. `meaning` is the documentation, with the unit."""
    return field(default=default, metadata={"rule": rule, "meaning": meaning})


def _cost(default: int, meaning: str, low: int = 0) -> Any:
    return _parameter(default, Whole(low, 10**12), meaning)


def _validate(parameters: ClockCosts | Config, prefix: str = "") -> None:
    for parameter in fields(parameters):
        rule: Rule | None = parameter.metadata.get("rule")
        value = getattr(parameters, parameter.name)
        if rule is not None and not rule.check(value):
            raise ConfigError(prefix + parameter.name, value, rule.allowed)


class Parameter(NamedTuple):
    """One row of the documentation of the parameters. `optional`: the default is to leave it out."""

    name: str
    type: str
    default: str
    allowed: str
    meaning: str
    optional: bool


@dataclass(frozen=True, kw_only=True)
class ClockCosts:
    """What each event adds to virtual time, in ns (the TOML table `[clock]`).

    They have the magnitudes of a server of about 2020 and are there to make time plausible and
    repeatable. They are not measurements of this machine and nothing should be tuned by them.
    """

    # Never 0: a program that waits by reading a clock in a loop must get somewhere.
    block: int = _cost(2, "ns for each executed block (a straight run of about five instructions)", low=1)
    fault_minor: int = _cost(
        500, "ns for a fault that needs no copy and no storage: demand-zero, a page found present"
    )
    fault_copy: int = _cost(1_000, "ns for a fault that copies a page (copy-on-write)")
    fault_denied: int = _cost(1_500, "ns for a fault that ends in a signal")
    swap_page: int = _cost(
        4_000,
        "ns for storing a page in the swap area, or loading it",
    )
    swap_disk: int = _cost(60_000, "ns for writing a page to the swap file, or reading it")
    file_page: int = _cost(
        20_000, "ns for reading a page of a file into the page cache, or writing it back, where they count"
    )
    system_call: int = _cost(100, "ns for a system call, whatever it does")
    flush_page: int = _cost(200, "ns for invalidating one page in a TLB")
    flush_all: int = _cost(500, "ns for a full TLB flush")
    interrupt: int = _cost(100, "ns for sending an interrupt to another CPU, for it to flush")
    interrupt_delivery: int = _cost(700, "ns at least from sending it to its acknowledgement")
    interrupt_taken: int = _cost(300, "ns of the CPU that takes it, besides what it flushes")
    broadcast: int = _cost(200, "ns for a broadcast invalidation and the wait for it (ARM64: TLBI and DSB)")
    kpti_switch: int = _cost(
        100, "ns for a change between the two roots of a split address space (kpti), on each way in and out"
    )
    lock: int = _cost(
        20, "ns for taking a lock that the CPU had last; this and the following with `locks` only"
    )
    lock_transfer: int = _cost(60, "ns for taking one that another CPU had last, or shares")
    area_edit: int = _cost(400, "ns of a call that changes areas, under its locks")
    area_find: int = _cost(100, "ns of that to choose an address")
    table_edit: int = _cost(50, "ns for which a leaf table's lock is held to change an entry")
    frame_list: int = _cost(50, "ns for which the allocator's lock is held, for a frame or a batch")
    fork_page: int = _cost(30, "ns of a fork for each page that it copies the entry of")
    huge_page: int = _cost(
        150,
        "ns for each page that a huge page or a run of pages brings, or copies, or that compaction moves",
    )

    def __post_init__(self) -> None:
        _validate(self, "clock.")


class CostOptions(TypedDict, total=False):
    """The fields of `ClockCosts`, as keywords."""

    block: int
    fault_minor: int
    fault_copy: int
    fault_denied: int
    swap_page: int
    swap_disk: int
    file_page: int
    system_call: int
    flush_page: int
    flush_all: int
    interrupt: int
    interrupt_delivery: int
    interrupt_taken: int
    broadcast: int
    kpti_switch: int
    lock: int
    lock_transfer: int
    area_edit: int
    area_find: int
    table_edit: int
    frame_list: int
    fork_page: int
    huge_page: int


class Options(TypedDict, total=False):
    """The fields of `Config`, as keywords of `Machine`. Sizes and addresses may be text with a unit."""

    ram: int | str
    host_step: int | str
    cpus: int
    shootdown: str
    shootdown_delay: int
    shootdown_pages: int
    lazy_tlb: bool
    tlb_fault: str
    tlb_fault_one_in: int
    slab_debug: str
    slab_merge: bool
    slab_fault: str
    slab_fault_one_in: int
    pcids: int
    asid_bits: int
    kpti: bool
    locks: str
    swap: int | str
    swap_pool: int | str | None
    swap_file: str | None
    swap_readahead: int
    page_cache: str
    swappiness: int
    reclaim: str
    kswapd: bool
    min_free: int | str | None
    watermark_scale: int
    thp: str
    shmem_thp: str
    mthp: str
    hugepages: str
    thp_defrag: str
    khugepaged_sleep: int
    khugepaged_pages: int
    khugepaged_none: int | None
    khugepaged_shared: int | None
    framebuffer: str
    devices: str
    write_combining: int
    ksm: bool
    ksm_sleep: int
    ksm_pages: int
    ksm_zero_pages: bool
    aperture: int | str
    page_size: int | str
    virtual_bits: int | None
    kernel_base: int | str | None
    user_base: int | str
    max_mmap_areas: int
    stack_limit: int | str
    memory_limit: int | str | None
    open_files: int
    fault_around: int
    real_time: bool
    aslr: bool
    aslr_once: bool
    tlbsan: bool
    seed: int
    uid: int
    gid: int
    hostname: str
    clock: CostOptions


@dataclass(frozen=True, kw_only=True, repr=False)
class Config:
    """The parameters of one machine. Invalid ones cannot be constructed: ConfigError says what is allowed.

    A TOML file names them as the fields here: all at the top level, except the costs of the clock,
    which stand in the table `[clock]`. Sizes and addresses may be text with a unit.

        ram = "1G"
        seed = 7
        aslr = false

        [clock]
        fault_copy = 2_000
    """

    ram: int = _parameter(
        512 * MIB,
        Whole(2 * MIB, 512 * GIB, page_aligned=True, written="size"),
        "bytes of RAM of the machine",
    )
    swap: int = _parameter(
        0,
        Whole(0, 16 * TIB, page_aligned=True, written="size"),
        "bytes of the swap area, to which pages go when RAM is short; 0: there is none, and they never do",
    )
    swap_pool: int | None = _parameter(
        None,
        Whole(0, TIB, absent="a fifth of RAM", written="size"),
        "bytes that compressed pages of the swap area may take of the host's memory; of more the oldest go "
        "to its file",
    )
    swap_file: str | None = _parameter(
        None,
        HostPath("a temporary file"),
        "file of the host for the swap area, at least as long as that and nobody else's; a temporary one is "
        "made when the pool is full",
    )
    swap_readahead: int = _parameter(
        8,
        Whole(1, 64, power_of_two=True),
        "pages that one fault brings back from the swap area, the wanted one included; 1 is off",
    )
    page_cache: str = _parameter(
        "outside",
        Word(("outside", "counted")),
        "whether the pages of files that programs map count as RAM, and are dropped when it is short; "
        "outside: they take none, and stay",
    )
    swappiness: int = _parameter(
        60,
        Whole(0, 200),
        "how readily pages go to the swap area, against those of counted files: 100 is equally",
    )
    reclaim: str = _parameter(
        "mglru",
        Word(("mglru", "clock")),
        "in which order pages leave memory: by generations (Linux: multi-generational LRU), or by a clock "
        "with two hands",
    )
    kswapd: bool = _parameter(
        True,
        Flag(),
        "whether pages go in the background below the low watermark; else whoever needs a frame waits",
    )
    min_free: int | None = _parameter(
        None,
        Whole(0, GIB, absent="four times the root of the KiB of RAM", written="size"),
        "bytes of RAM that are kept free where memory can be reclaimed (Linux: min_free_kbytes)",
    )
    watermark_scale: int = _parameter(
        10, Whole(1, 3000), "how far the watermarks are apart at least, in 10,000ths of RAM"
    )
    host_step: int = _parameter(
        64 * MIB,
        Whole(0, 512 * GIB, written="size"),
        "free RAM is given back to the host each time that so many bytes were freed; 0: not before the end",
    )
    aperture: int = _parameter(
        GIB,
        Whole(2 * MIB, 32 * GIB, multiple=2 * MIB, written="size"),
        "bytes of physical address space in which file contents appear; address space, not memory",
    )
    cpus: int = _parameter(1, Whole(1, 64), "CPUs that tasks are spread over; one works at a time, by turns")
    shootdown: str = _parameter(
        "flushed",
        Word(("flushed", "early", "deferred")),
        "when a CPU that had others drop translations goes on: once they have flushed; early, once they have "
        "taken the interrupt; or deferred, at once where it only gave memory back, which then waits for them",
    )
    shootdown_delay: int = _parameter(
        100,
        Whole(0, 1_000_000),
        "the most blocks that a CPU executes, with what its TLB holds, before it takes such an interrupt",
    )
    shootdown_pages: int = _parameter(
        8, Whole(1, 4096), "the most pages that are flushed one by one; more are one full flush"
    )
    lazy_tlb: bool = _parameter(
        True, Flag(), "whether a CPU without tasks is not interrupted, and flushes when it gets one"
    )
    tlb_fault: str = _parameter(
        "none",
        Word(("none", "drop", "late", "narrow", "free-early", "no-break", "no-wake", "reuse-tag")),
        "a fault of shootdowns to provoke, see `docs/how-to/break.md`: a flush that is dropped, late or too "
        "narrow, memory given back early, no break before make, no flush when a lazy CPU wakes, a tag that "
        "is used again without its flush",
    )
    tlb_fault_one_in: int = _parameter(
        1, Whole(1, 1_000_000), "how rare it is: of so many opportunities one is taken"
    )
    slab_debug: str = _parameter(
        "none",
        SlabDebug(),
        "what is checked of kernel objects, in Linux's letters: F that none is freed twice, Z red zones "
        "around them, P poison in free ones, U who allocated and freed them; `FZ,mm_struct`: only that one",
    )
    slab_merge: bool = _parameter(
        False,
        Flag(),
        "whether kernel objects of about the same size share a cache, where nothing is checked",
    )
    slab_fault: str = _parameter(
        "none",
        Word(("none", "overrun", "use-after-free", "double-free", "free-list")),
        "a misuse of kernel objects to provoke: a store beyond an object's end, a store to a freed one, one "
        "that is freed twice, or an overwritten pointer of the list of free ones",
    )
    slab_fault_one_in: int = _parameter(
        1, Whole(1, 1_000_000), "how rare it is: of so many stores, or frees, one goes wrong"
    )
    pcids: int = _parameter(
        6,
        Whole(0, 4095),
        "x86_64's PCIDs that each CPU gives to address spaces, by turns (Linux: 6); 0: CR4.PCIDE is off",
    )
    asid_bits: int = _parameter(16, Choice((8, 16)), "width of arm64's ASIDs (TCR_EL1.AS)")
    kpti: bool = _parameter(
        False,
        Flag(),
        "whether programs run without the supervisor's half, but for what leads into it",
    )
    locks: str = _parameter(
        "none",
        Word(("none", "space", "area", "leaf")),
        "which locks operations on memory wait for in virtual time, modelled: none; one for each address "
        "space and one for the allocator; those of areas and leaf tables as well, as in Linux; or those of "
        "leaf tables in place of the space's",
    )
    thp: str = _parameter(
        "never",
        Word(("never", "madvise", "always")),
        "where programs get huge pages without asking for each: nowhere, in memory that they advise it for "
        "(MADV_HUGEPAGE), or in all private anonymous memory",
    )
    shmem_thp: str = _parameter(
        "never",
        Word(("never", "within_size", "advise", "always", "deny", "force")),
        "where shared memory and files of memfd_create get huge pages at a fault, as Linux's shmem_enabled: "
        "`within_size` where the object reaches so far, `force` in /tmp and /dev/shm too, `deny` not even "
        "by MADV_COLLAPSE",
    )
    mthp: str = _parameter(
        "none",
        Runs(),
        "the runs of pages that a fault brings where no huge page fits, if `thp`, or `shmem_thp`, permits it "
        "there",
    )
    hugepages: str = _parameter(
        "none",
        Pools(),
        "the pools of huge pages that are taken out of RAM at the start, for programs that ask for such "
        "(MAP_HUGETLB); sizes are those of the granule: 2M and 1G with pages of 4K, 32M of 16K, 512M of 64K",
    )
    thp_defrag: str = _parameter(
        "madvise",
        Word(("never", "madvise", "always")),
        "where a fault moves other pages to make room for a huge page: nowhere, in memory that was advised "
        "to have some, or wherever it may have one; a collapse does unless this is never",
    )
    khugepaged_sleep: int = _parameter(
        10_000,
        Whole(0, 10**9),
        "ms of virtual time between two looks for tables that can become huge pages; 0: nobody looks",
    )
    khugepaged_pages: int = _parameter(4096, Whole(1, 10**9), "pages that it looks at each time")
    khugepaged_none: int | None = _parameter(
        None,
        Whole(0, 8191, absent="all but one"),
        "the most pages of a table that may be absent when it becomes a huge page",
    )
    khugepaged_shared: int | None = _parameter(
        None,
        Whole(0, 8192, absent="half of them"),
        "the most pages of a table that may be shared with other processes then",
    )
    framebuffer: str = _parameter(
        "none",
        Picture(),
        "the pixels of the framebuffer /dev/fb0, whose memory is taken of RAM; none: there is no such device",
    )
    devices: str = _parameter(
        "none",
        Devices(),
        "devices whose registers programs map: a timer (/dev/timer0), an engine that copies (/dev/dma0)",
    )
    write_combining: int = _parameter(
        0,
        Whole(0, 64),
        "write-combining buffers of a CPU, modelled: statistics then count the bursts that stores to the "
        "framebuffer become, and every store of the program is slower; 0: none are counted",
    )
    ksm: bool = _parameter(
        False,
        Flag(),
        "merge equal pages of memory that programs advise it for (MADV_MERGEABLE, PR_SET_MEMORY_MERGE); root "
        "may change that later (/sys/kernel/mm/ksm/run)",
    )
    ksm_sleep: int = _parameter(20, Whole(1, 10**9), "ms of virtual time between two looks for equal pages")
    ksm_pages: int = _parameter(100, Whole(1, 10**9), "pages that are looked at each time")
    ksm_zero_pages: bool = _parameter(
        False, Flag(), "whether pages of zeros become the zero page, instead of one merged page"
    )
    page_size: int = _parameter(
        4096,
        Choice((4 * KIB, 16 * KIB, 64 * KIB), written="size"),
        "bytes in a base page, the granule; x86_64 has 4K alone",
    )
    virtual_bits: int | None = _parameter(
        None,
        Choice((39, 42, 47, 48, 57), absent="48"),
        "width of virtual addresses: x86_64 has 48 and 57 (five levels); arm64, for either half, 48, and 39 "
        "with pages of 4K, 47 of 16K, 42 of 64K",
    )
    kernel_base: int | None = _parameter(
        None,
        Whole(
            0xFFFF_8000_0000_0000,
            0xFFFF_FFFF_8000_0000,
            page_aligned=True,
            absent="the middle of the upper half, 0xffff800000000000 with 48 bits",
            written="address",
        ),
        "first virtual address that belongs to the supervisor: RAM's direct map stands above it",
    )
    user_base: int = _parameter(
        0x1_0000,
        Whole(0, 1 << 46, page_aligned=True, written="address"),
        "lowest virtual address a program may map (Linux: vm.mmap_min_addr)",
    )
    max_mmap_areas: int = _parameter(
        65_530, Whole(16, 2**31 - 1), "areas in one address space; the next mapping gets ENOMEM"
    )
    stack_limit: int = _parameter(
        8 * MIB,
        Whole(128 * KIB, TIB, page_aligned=True, written="size"),
        "bytes to which the initial stack may grow (RLIMIT_STACK)",
    )
    memory_limit: int | None = _parameter(
        None,
        Whole(MIB, 1 << 47, page_aligned=True, absent="no limit", written="size"),
        "bytes of address space a process may map (RLIMIT_AS)",
    )
    open_files: int = _parameter(1024, Whole(8, 1 << 20), "file descriptors of one process (RLIMIT_NOFILE)")
    fault_around: int = _parameter(
        16,
        Whole(1, 512, power_of_two=True),
        "pages of a file that one read fault maps, the wanted one included; 1 is off",
    )
    real_time: bool = _parameter(
        False, Flag(), "whether clocks are the host's and waits take real time: no run can be repeated then"
    )
    aslr: bool = _parameter(True, Flag(), "whether addresses are randomised, from the seed")
    aslr_once: bool = _parameter(
        False,
        Flag(),
        "whether all programs of a run get the same random addresses: they start quicker, for the engine "
        "translates their libraries once",
    )
    tlbsan: bool = _parameter(
        False,
        Flag(),
        "whether an independent checker ends the run when a CPU may still hold a translation that somebody "
        "relies on being gone",
    )
    seed: int = _parameter(0, Whole(0, 2**64 - 1), "the one source of all chance; same seed, same run")
    uid: int = _parameter(1000, Whole(0, 2**32 - 2), "user id that programs see")
    gid: int = _parameter(1000, Whole(0, 2**32 - 2), "group id that programs see")
    hostname: str = _parameter(
        "aether",
        HostName(),
        "node name that uname tells",
    )
    clock: ClockCosts = field(default_factory=ClockCosts)

    def __post_init__(self) -> None:
        _validate(self)
        if self.kpti and self.pcids > _MOST_SPLIT_PCIDS:
            more = "which takes a bit of them for the second root"
            raise ConfigError("pcids", self.pcids, f"at most {_MOST_SPLIT_PCIDS} with kpti, {more}")
        if self.swap_file is not None and not self.swap:
            raise ConfigError("swap_file", self.swap_file, "left out where `swap` is 0")
        self._check_huge_pages()
        if not isinstance(self.clock, ClockCosts):
            raise ConfigError("clock", self.clock, "a table of costs")
        for parameter in fields(self):
            rule: Rule | None = parameter.metadata.get("rule")
            value = getattr(self, parameter.name)
            if isinstance(rule, Whole) and rule.page_aligned and value is not None and value % self.page_size:
                raise ConfigError(
                    parameter.name, rule.format(value), f"{rule.allowed}, which is {self.page_size}"
                )

    def _check_huge_pages(self) -> None:
        """Of page size, RAM and huge pages: a huge page has as many pages as a table has entries."""
        huge = self.page_size * (self.page_size // 8)
        if self.thp != "never" and self.ram <= huge:
            why = f"never with {format_size(self.ram)} of RAM: a huge page has {format_size(huge)} here"
            raise ConfigError("thp", self.thp, why)
        shared = self.shmem_thp not in ("never", "deny")
        if shared and self.ram <= huge:
            why = f"never with {format_size(self.ram)} of RAM: a huge page has {format_size(huge)} here"
            raise ConfigError("shmem_thp", self.shmem_thp, why)
        for size in run_sizes(self.mthp):
            if not 4 * self.page_size <= size:
                shortest = format_size(4 * self.page_size)
                raise ConfigError("mthp", self.mthp, f"runs of {shortest} or more, which are 4 pages")
        if self.write_combining and self.framebuffer == "none":
            raise ConfigError("write_combining", self.write_combining, "0 without a framebuffer")
        if self.mthp != "none" and self.thp == "never" and not shared:
            raise ConfigError("mthp", self.mthp, "none where thp and shmem_thp are never")

    def __repr__(self) -> str:
        """What differs from the defaults, as it would be written."""
        shown = []
        for parameter in fields(self):
            value, rule = getattr(self, parameter.name), parameter.metadata.get("rule")
            if rule is None:
                if value != ClockCosts():
                    shown.append(f"clock={value}")
            elif value != parameter.default:
                text = rule.format(value)
                shown.append(f"{parameter.name}={text if isinstance(value, int) else repr(value)}")
        return f"Config({', '.join(shown)})"

    @classmethod
    def load(
        cls, toml_path: str | Path | None = None, overrides: Mapping[str, object] | None = None
    ) -> Config:
        """Defaults, replaced by what `toml_path` says, replaced by what `overrides` says.

        `overrides` has the shape of the file: `{"ram": "1G", "clock": {"block": 3}}`. A None in it
        stands for an option that was not given and changes nothing. Raises ConfigError on a bad value,
        an unknown name, and a file that cannot be read or is not TOML.
        """
        values: dict[str, Any] = {}
        costs: dict[str, Any] = {}
        if toml_path is not None:
            source = _read_toml(toml_path)
            try:
                _parse(cls, source, values, costs)
            except ConfigError as error:
                raise error.at(cls.where(toml_path, error.name) or str(toml_path)) from None
        _parse(cls, overrides or {}, values, costs)
        return cls(**values, clock=ClockCosts(**costs))

    @staticmethod
    def where(toml_path: str | Path, name: str) -> str | None:
        """`FILE:LINE` of the line in a TOML file that sets the parameter, or None if none does."""
        line = _line_of(Path(toml_path).read_text(encoding="utf-8", errors="replace"), name)
        return None if line is None else f"{toml_path}:{line}"

    @classmethod
    def describe(cls) -> list[Parameter]:
        """A row for each parameter in the order of the fields, the clock's last as `clock.NAME`."""
        rows = []
        for prefix, owner in (("", cls), ("clock.", ClockCosts)):
            for parameter in fields(owner):
                rule: Rule | None = parameter.metadata.get("rule")
                if rule is not None:
                    default = rule.format(parameter.default)
                    meaning = parameter.metadata["meaning"]
                    optional = parameter.default is None
                    name = prefix + parameter.name
                    rows.append(Parameter(name, rule.type, default, rule.allowed, meaning, optional))
        return rows


def _read_toml(path: str | Path) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415  # most runs have no file

    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError("config", str(path), why, refusal="cannot be read") from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise ConfigError("config", str(path), str(error), refusal="is not TOML") from error


def _line_of(text: str, name: str) -> int | None:
    """The line that sets a parameter, such as `clock.block`: as a key, in its table, or the table's own."""
    table = found = None
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(_HEADER, line):
            table = header[1]
            found = number if table == name else found
        elif assignment := re.match(_ASSIGNMENT, line):
            key = ".".join(filter(None, (table, assignment[1] or assignment[2])))
            if key == name:
                return number
            if name.startswith(key + "."):
                found = number
    return found


def _parse(
    owner: type[Config], source: Mapping[str, object], values: dict[str, Any], costs: dict[str, Any]
) -> None:
    """Add what a source says to the parameters and to the clock's costs."""
    table = source.get("clock")
    if isinstance(table, Mapping):
        costs |= _parse_table(ClockCosts, table, "clock.")
    elif table is not None:
        raise ConfigError("clock", table, "a table of costs")
    values |= _parse_table(owner, {name: value for name, value in source.items() if name != "clock"})


def _nearest(name: str) -> str:
    """The parameter that somebody meant, or all there are."""
    known = [row.name for row in Config.describe()]
    last = name.rpartition(".")[2].lower().replace("-", "_")
    last = _OPTIONS.get(last, last)
    same = [full for full in known if full.rpartition(".")[2] == last]
    near = f"; did you mean {same[0]}?" if same else suggestion(name, known) or suggestion(last, known)
    return near.removeprefix("; ") or f"known are {', '.join(known)}"


def _parse_table(
    owner: type[ClockCosts | Config], table: Mapping[str, object], prefix: str = ""
) -> dict[str, Any]:
    """The given values under `owner`'s rules, parsed and checked. Refuses names it does not have."""
    rules: dict[str, Rule] = {f.name: f.metadata["rule"] for f in fields(owner) if "rule" in f.metadata}
    parsed: dict[str, object] = {}
    for name, value in table.items():
        if name not in rules:
            raise ConfigError(prefix + name, value, _nearest(prefix + name), refusal="is no parameter")
        if value is not None:
            parsed[name] = rules[name].parse(prefix + name, value)
            if not rules[name].check(parsed[name]):
                raise ConfigError(prefix + name, value, rules[name].allowed)
    return parsed
