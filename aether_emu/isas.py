"""What each instruction set brings to a machine: its page tables, and Linux's rules for it."""

from __future__ import annotations

from aether_emu.arch.paging import PageTableFormat
from aether_emu.computer import RAM_BASE, lowest_kernel_base
from aether_emu.config import Config
from aether_emu.errors import ConfigError, EncodingError
from aether_emu.linux.abi import Abi
from aether_emu.mm.kernel_half import TEXT
from aether_emu.mm.tags import Asids, Pcids, Tags
from aether_emu.records import dataclass
from aether_emu.rules import MIB, format_size

ISAS = ("x86_64", "arm64")
_PCID_BITS = 12
_USER_PCID, _USER_ASID = 1 << 11, 1  # what tells a program's tag from the supervisor's in its space (KPTI)
_ARM_NARROW = {4 << 10: 39, 16 << 10: 47, 64 << 10: 42}  # the narrower addresses of Linux for each granule


@dataclass(frozen=True)
class IsaParts:
    """What one instruction set brings: its page tables, Linux's rules for it, its instruction for chance.

    `tags` are those of address spaces, `tag_bits` wide; None and 0 where the configuration has none.
    """

    format: PageTableFormat
    abi: Abi
    random: str
    tags: Tags | None
    tag_bits: int


def parts_of(name: str, config: Config) -> IsaParts:
    """The parts of an ISA, imported when a machine of it is built: starting a program must stay quick.

    Raises ConfigError for what the ISA does not have: a page size, a width of addresses, PCIDs, ASIDs.
    """
    _refuse_tags_of_others(name, config)
    _refuse_faults_of_others(name, config)
    page, bits = config.page_size, config.virtual_bits or 48
    if name == "x86_64":
        if page != 4096:
            raise ConfigError(
                "page_size", format_size(page), "pages are 4K there", refusal="is not possible on x86_64"
            )
        if bits not in (48, 57):
            allowed = "addresses have 48 or 57 bits there"
            raise ConfigError("virtual_bits", bits, allowed, refusal="is not possible on x86_64")
        from aether_emu.arch.x86_64.stage1 import X86Format  # noqa: PLC0415  # as said above
        from aether_emu.linux.abi.x86_64 import X86Abi  # noqa: PLC0415  # as said above

        return IsaParts(X86Format(5 if bits == 57 else 4), X86Abi(bits), "rdrand", *_pcids(config))
    if name == "arm64":
        from aether_emu.arch.arm64.stage1 import ArmFormat  # noqa: PLC0415  # as said above
        from aether_emu.linux.abi.arm64 import ArmAbi  # noqa: PLC0415  # as said above

        try:
            fmt, abi = ArmFormat(page, bits), ArmAbi(page, bits)
        except EncodingError:
            allowed = f"addresses have 48 or {_ARM_NARROW[page]} bits there with pages of {format_size(page)}"
            raise ConfigError("virtual_bits", bits, allowed, refusal="is not possible on arm64") from None
        tags = Asids(config.asid_bits, config.cpus, _USER_ASID if config.kpti else 0)
        return IsaParts(fmt, abi, "rndr", tags, config.asid_bits)
    raise ConfigError("arch", name, " or ".join(ISAS))


def _pcids(config: Config) -> tuple[Tags | None, int]:
    """The tags of x86_64, and how wide they are."""
    if not config.pcids:
        if config.tlb_fault == "reuse-tag":
            raise ConfigError("tlb_fault", "reuse-tag", "pcids above 0", refusal="needs tags")
        return None, 0
    return Pcids(config.pcids, config.cpus, _USER_PCID if config.kpti else 0), _PCID_BITS


def _refuse_faults_of_others(name: str, config: Config) -> None:
    """ConfigError for a fault of shootdowns that this ISA cannot have."""
    only = {
        "no-wake": ("x86_64", "no CPU is left out of a broadcast"),
        "no-break": ("arm64", "no rule asks for one"),
    }
    isa, why = only.get(config.tlb_fault, (name, ""))
    if name in ISAS and isa != name:
        raise ConfigError(
            "tlb_fault", config.tlb_fault, f"it is {isa}'s: {why} here", refusal=f"is not possible on {name}"
        )


def _refuse_tags_of_others(name: str, config: Config) -> None:
    """ConfigError for a parameter that says something about tags which this ISA has not."""
    for parameter, isa in (("pcids", "x86_64"), ("asid_bits", "arm64")):
        value = getattr(config, parameter)
        if name in ISAS and name != isa and value != getattr(Config(), parameter):
            raise ConfigError(parameter, value, f"they are {isa}'s", refusal=f"is not possible on {name}")


def kernel_base_of(config: Config, fmt: PageTableFormat) -> int:
    """Where the supervisor's half begins. ConfigError where RAM's direct map does not fit above it."""
    lowest = lowest_kernel_base(fmt)
    base = lowest if config.kernel_base is None else config.kernel_base
    if base < lowest:
        raise ConfigError(
            "kernel_base", hex(base), f"at least {lowest:#x} with {fmt.virtual_bits} virtual bits"
        )
    if base + RAM_BASE + config.ram > TEXT:
        if config.kernel_base is None:
            most = format_size(TEXT - base - RAM_BASE & -MIB)
            raise ConfigError("ram", format_size(config.ram), f"at most {most} with {fmt.virtual_bits} bits")
        lower = f"low enough for a direct map of {config.ram} bytes of RAM below {TEXT:#x}"
        raise ConfigError("kernel_base", hex(base), lower)
    return base
