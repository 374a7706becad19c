"""Why an access was refused, in words of the areas and their protection."""

from __future__ import annotations

from dataclasses import dataclass

from aether_emu.arch.arm64 import syndrome as arm_syndrome
from aether_emu.arch.paging import Access
from aether_emu.arch.x86_64 import syndrome as x86_syndrome
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.signal import SignalInfo
from aether_emu.mm.allocation import Area
from aether_emu.mm.limits import GUARD_PAGES
from aether_emu.mm.objects.file import FileBacking
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace

_WORDS = {Access.READ: "a read of", Access.WRITE: "a write to", Access.EXECUTE: "a jump to"}
_UNTAGGED = (1 << 56) - 1
_NEAR = 1 << 30  # bytes from an area that an address may have meant
_RIGHTS = ((Protection.READ, "read"), (Protection.WRITE, "written"), (Protection.EXECUTE, "executed"))


@dataclass(frozen=True)
class Refusal:
    """An access that a page, or the lack of one, refused.

    `address` is where it went, and `given` the pointer, which may have a tag in its top byte besides (arm64).
    """

    address: int
    access: Access
    given: int

    @property
    def kind(self) -> Access:
        """Read, write or execute alone."""
        return next(kind for kind in (Access.EXECUTE, Access.WRITE, Access.READ) if self.access & kind)

    @property
    def words(self) -> str:
        """Such as "a write to 0x10"."""
        tagged = f" (given with a tag, {self.given:#x})" if self.given != self.address else ""
        return f"{_WORDS[self.kind]} {self.address:#x}{tagged}"


def refusal_of(isa: str, info: SignalInfo) -> Refusal | None:
    """The access that a signal tells of; None when it was no page that made it."""
    record = info.record
    if record is None or record.address is None or info.number not in (sig.SIGSEGV, sig.SIGBUS):
        return None
    if isa == "arm64":
        if not arm_syndrome.is_translation_abort(record.error):
            return None
        # A jump has lost its tag before it fails (DDI 0487, D8.8).
        return Refusal(
            record.address,
            arm_syndrome.access_of(record.error) or Access.READ,
            info.address if info.address & _UNTAGGED == record.address & _UNTAGGED else record.address,
        )
    if record.trap != x86_syndrome.VECTOR_PAGE_FAULT:
        return None
    return Refusal(record.address, x86_syndrome.access_of(record.error), record.address)


def reasons(space: AddressSpace, refusal: Refusal) -> list[str]:
    """Sentences about why it was refused."""
    va, area = refusal.address, space.areas.find(refusal.address)
    if area is None:
        return _outside(space, va, refusal)
    if va >= space.limits.user_end:
        return _supervisor()
    if area.denied & int(refusal.kind):
        return _denied(area, va, refusal)
    return _nothing_behind(space, area, va)


def named(area: Area) -> str:
    """An area in a sentence."""
    rights = "".join(
        letter if area.protection & bit else "-"
        for bit, letter in ((Protection.READ, "r"), (Protection.WRITE, "w"), (Protection.EXECUTE, "x"))
    )
    what = area.name or "anonymous memory"
    return f"{what} ({rights}{'s' if area.shared else 'p'})"


def _supervisor() -> list[str]:
    return ["The address belongs to the supervisor: no program may touch it."]


def _denied(area: Area, va: int, refusal: Refusal) -> list[str]:
    if not area.protection:
        return [f"It lies in {named(area)}, which permits nothing (PROT_NONE)."]
    kind = {Access.READ: "read", Access.WRITE: "written", Access.EXECUTE: "executed"}[refusal.kind]
    allowed = [word for bit, word in _RIGHTS if area.protection & bit]
    sentence = f"It lies {va - area.start:#x} bytes into {named(area)}, which may be {_joined(allowed)}"
    told = [f"{sentence}, and not {kind}."]
    if refusal.kind == Access.WRITE and isinstance(area.backing, FileBacking):
        told.append("Its bytes are the file's: constants and string literals of a program lie there.")
    if refusal.kind == Access.EXECUTE and area.grows_down:
        told.append("It is the stack: a return address or a function pointer was overwritten, or is wrong.")
    return told


def _joined(words: list[str]) -> str:
    return " and ".join(words)


def _nothing_behind(space: AddressSpace, area: Area, va: int) -> list[str]:
    """An area permits the access: there is no page."""
    offset = (area.offset << space.table.format.page_shift) + va - area.start
    match area.backing:
        case FileBacking() as backing:
            size = backing.file.size
            if offset < size:
                return [f"The host could not give the page at offset {offset:#x} of {area.name}."]
            end = "its end" if offset == size else f"{offset - size:#x} bytes behind its end"
            return [
                f"It lies at offset {offset:#x} of {area.name}, {end}: the file has {size:#x} bytes, and the "
                "page behind the last one is not there."
            ]
        case SharedMemory() as backing:
            size = backing.pages << space.table.format.page_shift
            return [f"It lies at offset {offset:#x} of shared memory that has {size:#x} bytes."]
    return [f"It lies in {named(area)}, which permits the access; no page could be had for it."]


def _outside(space: AddressSpace, va: int, refusal: Refusal) -> list[str]:
    fmt = space.table.format
    if not fmt.canonical(va):
        return [f"It is no address: those of this machine have {fmt.virtual_bits} bits."]
    if va >= space.limits.user_end:
        return _supervisor()
    if va < space.page_size:
        return [f"Nothing is ever mapped there: {_null(va, refusal)}."]
    above = space.areas.following(va)
    if above is not None and above.grows_down:
        told = _below_stack(space, above, va)
        if told:
            return told
    return ["Nothing is mapped there.", *_neighbours(space, va)]


def _null(va: int, refusal: Refusal) -> str:
    if refusal.kind == Access.EXECUTE:
        return "a call of a null pointer" if not va else "a jump through a null pointer"
    return "a null pointer" if not va else f"a null pointer, and {va:#x} bytes behind it"


def _below_stack(space: AddressSpace, stack: Area, va: int) -> list[str]:
    """Why the stack did not grow down to an address, if it is near enough that it might have."""
    page = va & -space.page_size
    below = space.areas.preceding(stack.start)
    size, limit = stack.end - page, space.limits.stack
    if va < stack.start - max(2 * limit, 64 << 20):
        return []
    distance = f"It lies {stack.start - va:#x} bytes below the stack, which has {stack.length >> 10} KiB"
    if size > limit:
        return [
            f"{distance} and may have {limit >> 10} KiB (RLIMIT_STACK): a recursion without an end, or too "
            "large a local variable."
        ]
    guard = GUARD_PAGES * space.page_size
    if below is not None and page - below.end < guard:
        return [f"{distance} and may come no nearer than {guard >> 10} KiB to {named(below)} below it."]
    return [f"{distance}; a limit of the process let it grow no further."]


def _neighbours(space: AddressSpace, va: int) -> list[str]:
    """What lies nearest, below and above."""
    below, above = space.areas.preceding(va), space.areas.following(va)
    near = []
    if below is not None:
        near.append((va - below.end, f"{va - below.end:#x} bytes behind the end of {named(below)}"))
    if above is not None and not above.grows_down:
        near.append((above.start - va, f"{above.start - va:#x} bytes before {named(above)}"))
    return [f"It lies {min(near)[1]}."] if near and min(near)[0] < _NEAR else []
