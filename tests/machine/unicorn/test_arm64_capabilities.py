"""Every capability that programs are told of gives the right answer at EL0, and a few others are undefined.

The answers are those of standards (FIPS 180-4, FIPS 197, GB/T 32905 and 32907) or of arithmetic done here.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator
from math import isqrt

import pytest

from aether_emu.arch.arm64 import id_registers
from aether_emu.arch.arm64 import registers as regs
from aether_emu.machine.cpu import TrapKind
from tests.machine.unicorn.arm64_words import words
from tests.machine.unicorn.bare_arm64 import CODE, DATA, USER, BareArm64

M32, M64 = (1 << 32) - 1, (1 << 64) - 1


@pytest.fixture
def bare() -> Iterator[BareArm64]:
    made = BareArm64(random=lambda: 0x1234)
    yield made
    made.cpu.close()


def run(bare: BareArm64, source: str, **values: int) -> None:
    """Run lines with registers set; nothing but the final system call may happen."""
    for name, value in values.items():
        bare[name] = value
    bare.fill(bare.code, words(source + "\nsvc #0"))
    bare.cpu.flush_code()
    bare.go()
    assert (bare.faults, bare.traps, len(bare.calls)) == ([], [], 1)
    bare.calls.clear()


def lanes(*values: int, width: int = 32) -> int:
    """A vector register, lane 0 first."""
    return sum((value & (1 << width) - 1) << width * i for i, value in enumerate(values))


def split(value: int, width: int = 32) -> list[int]:
    return [value >> at & (1 << width) - 1 for at in range(0, 128, width)]


def octets(text: str) -> int:
    """A vector register whose byte 0 comes first in `text`."""
    return int.from_bytes(bytes.fromhex(text), "little")


def half(*values: float) -> int:
    return int.from_bytes(struct.pack(f"<{len(values)}e", *values), "little")


def single(*values: float) -> int:
    return int.from_bytes(struct.pack(f"<{len(values)}f", *values), "little")


def double(value: float) -> int:
    return int.from_bytes(struct.pack("<d", value), "little")


def rotate(value: int, left: int, width: int = 32) -> int:
    left %= width
    return (value << left | value >> width - left) & (1 << width) - 1


# ---- one proof for each capability


def fp(bare: BareArm64) -> None:
    run(bare, "fmadd d0, d1, d2, d3", v1=double(1.5), v2=double(2.5), v3=double(0.25))
    assert bare["v0"] == double(4.0)


def asimd(bare: BareArm64) -> None:
    run(bare, "add v0.4s, v1.4s, v2.4s", v1=lanes(1, M32, 3, 4), v2=lanes(5, 2, 7, 8))
    assert split(bare["v0"]) == [6, 1, 10, 12]


def aes(bare: BareArm64) -> None:
    """The first round of FIPS 197's appendix B, and back."""
    text, key = octets("3243f6a8885a308d313198a2e0370734"), octets("2b7e151628aed2a6abf7158809cf4f3c")
    source = "aese v0.16b, v1.16b\naesmc v2.16b, v0.16b\naesimc v3.16b, v2.16b\nmov v4.16b, v0.16b"
    run(bare, source + "\naesd v4.16b, v5.16b", v0=text, v1=key, v5=0)
    assert bare["v0"] == bare["v3"] == octets("d4bf5d30e0b452aeb84111f11e2798e5")
    assert bare["v2"] == octets("046681e5e0cb199a48f8d37a2806264c")
    assert bare["v4"] == text ^ key


def pmull(bare: BareArm64) -> None:
    a, b, c = 0xFEDC_BA98_7654_3210, 0x8000_0000_0000_0001, 0x0123_4567_89AB_CDEF
    source = "pmull v0.1q, v1.1d, v2.1d\npmull2 v3.1q, v1.2d, v2.2d"
    run(bare, source, v1=lanes(a, c, width=64), v2=lanes(b, c, width=64))
    products = [0, 0]
    for i in range(64):
        products[0] ^= a << i if b >> i & 1 else 0
        products[1] ^= c << i if c >> i & 1 else 0
    assert [bare["v0"], bare["v3"]] == products


def padded(size: int) -> bytes:
    """The message "abc" as one block of a Merkle-Damgard hash."""
    return b"abc\x80" + bytes(size - 5) + b"\x18"


def word_vectors(block: bytes) -> list[int]:
    numbers = struct.unpack(f">{len(block) // 4}I", block)
    return [lanes(*numbers[i : i + 4]) for i in range(0, len(numbers), 4)]


SHA1_START = (0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476, 0xC3D2_E1F0)


def sha1(bare: BareArm64) -> None:
    source = "".join(f"dup v{20 + i}.4s, w{2 + i}\n" for i in range(4))
    for i in range(20):
        w, x, y, z = (4 + (i + j) % 4 for j in range(4))
        source += f"add v17.4s, v{20 + i // 5}.4s, v{w}.4s\n"
        if i < 16:
            source += f"sha1su0 v{w}.4s, v{x}.4s, v{y}.4s\nsha1su1 v{w}.4s, v{z}.4s\n"
        step = ("sha1c", "sha1p", "sha1m", "sha1p")[i // 5]
        source += f"sha1h s18, s0\n{step} q0, s1, v17.4s\nmov v1.16b, v18.16b\n"
    message = {f"v{4 + i}": vector for i, vector in enumerate(word_vectors(padded(64)))}
    keys = {"x2": 0x5A82_7999, "x3": 0x6ED9_EBA1, "x4": 0x8F1B_BCDC, "x5": 0xCA62_C1D6}
    run(bare, source, v0=lanes(*SHA1_START[:4]), v1=SHA1_START[4], **message, **keys)
    end = (*split(bare["v0"]), bare["v1"] & M32)
    digest = b"".join((a + b & M32).to_bytes(4, "big") for a, b in zip(SHA1_START, end, strict=True))
    assert digest == hashlib.sha1(b"abc").digest()


def primes(count: int) -> list[int]:
    found: list[int] = []
    candidate = 2
    while len(found) < count:
        if all(candidate % prime for prime in found):
            found.append(candidate)
        candidate += 1
    return found


def cube_root(value: int) -> int:
    low, high = 0, 1 << value.bit_length() // 3 + 1
    while low < high:
        middle = low + high + 1 >> 1
        low, high = (middle, high) if middle**3 <= value else (low, middle - 1)
    return low


def constants(count: int, width: int) -> tuple[list[int], list[int]]:
    """Initial hash and round constants: fractional bits of the roots of primes (FIPS 180-4, 4.2 and 5.3)."""
    mask = (1 << width) - 1
    start = [isqrt(prime << 2 * width) & mask for prime in primes(8)]
    return start, [cube_root(prime << 3 * width) & mask for prime in primes(count)]


def sha2(bare: BareArm64) -> None:
    start, keys = constants(64, 32)
    source = ""
    for i in range(16):
        w, x, y, z = (4 + (i + j) % 4 for j in range(4))
        source += f"ldr q16, [x1, #{16 * i}]\nadd v17.4s, v16.4s, v{w}.4s\n"
        if i < 12:
            source += f"sha256su0 v{w}.4s, v{x}.4s\nsha256su1 v{w}.4s, v{y}.4s, v{z}.4s\n"
        source += "mov v18.16b, v0.16b\nsha256h q0, q1, v17.4s\nsha256h2 q1, q18, v17.4s\n"
    bare.fill(bare.data, struct.pack("<64I", *keys))
    message = {f"v{4 + i}": vector for i, vector in enumerate(word_vectors(padded(64)))}
    run(bare, source, x1=DATA, v0=lanes(*start[:4]), v1=lanes(*start[4:]), **message)
    end = split(bare["v0"]) + split(bare["v1"])
    digest = b"".join((a + b & M32).to_bytes(4, "big") for a, b in zip(start, end, strict=True))
    assert digest == hashlib.sha256(b"abc").digest()


def sha512(bare: BareArm64) -> None:
    start, keys = constants(80, 64)
    ab, cd, ef, gh, spare = 0, 1, 2, 3, 4
    source = ""
    for i in range(40):
        w = [8 + (i + j) % 8 for j in range(8)]
        source += (
            f"ldr q16, [x1, #{16 * i}]\nadd v16.2d, v16.2d, v{w[0]}.2d\next v16.16b, v16.16b, v16.16b, #8\n"
        )
        source += f"ext v17.16b, v{ef}.16b, v{gh}.16b, #8\next v18.16b, v{cd}.16b, v{ef}.16b, #8\n"
        source += f"add v{gh}.2d, v{gh}.2d, v16.2d\nsha512h q{gh}, q17, v18.2d\n"
        source += f"add v{spare}.2d, v{cd}.2d, v{gh}.2d\nsha512h2 q{gh}, q{cd}, v{ab}.2d\n"
        if i < 32:
            source += f"ext v19.16b, v{w[4]}.16b, v{w[5]}.16b, #8\nsha512su0 v{w[0]}.2d, v{w[1]}.2d\n"
            source += f"sha512su1 v{w[0]}.2d, v{w[7]}.2d, v19.2d\n"
        ab, cd, ef, gh, spare = gh, ab, spare, ef, cd
    bare.fill(bare.data, struct.pack("<80Q", *keys))
    numbers = struct.unpack(">16Q", padded(128))
    message = {f"v{8 + i}": lanes(*numbers[2 * i : 2 * i + 2], width=64) for i in range(8)}
    state = {f"v{i}": lanes(*start[2 * i : 2 * i + 2], width=64) for i in range(4)}
    run(bare, source, x1=DATA, **message, **state)
    end = [half for register in (ab, cd, ef, gh) for half in split(bare[f"v{register}"], 64)]
    digest = b"".join((a + b & M64).to_bytes(8, "big") for a, b in zip(start, end, strict=True))
    assert digest == hashlib.sha512(b"abc").digest()


def sha3(bare: BareArm64) -> None:
    a, b, c = (int.from_bytes(hashlib.md5(bytes([i])).digest(), "little") for i in range(3))
    source = "eor3 v3.16b, v0.16b, v1.16b, v2.16b\nbcax v4.16b, v0.16b, v1.16b, v2.16b\n"
    source += "rax1 v5.2d, v0.2d, v1.2d\nxar v6.2d, v0.2d, v1.2d, #7"
    run(bare, source, v0=a, v1=b, v2=c)
    assert (bare["v3"], bare["v4"]) == (a ^ b ^ c, a ^ b & ~c)
    assert bare["v5"] == a ^ lanes(*(rotate(x, 1, 64) for x in split(b, 64)), width=64)
    assert bare["v6"] == lanes(*(rotate(x, 57, 64) for x in split(a ^ b, 64)), width=64)


SM3_START = (
    *(0x7380_166F, 0x4914_B2B9, 0x1724_42D7, 0xDA8A_0600),
    *(0xA96F_30BC, 0x1631_38AA, 0xE38D_EE4D, 0xB0FB_0E4E),
)


def sm3(bare: BareArm64) -> None:
    """v0 holds D, C, B, A and v1 H, G, F, E, lane 0 first, as the instructions want them."""
    source = ""
    for i in range(16):
        kind = "a" if i < 4 else "b"
        w, x, y, z, new = (4 + (i + j) % 5 for j in range(5))
        source += f"eor v17.16b, v{w}.16b, v{x}.16b\n"
        for j in range(4):
            source += f"ldr q18, [x1, #{16 * (4 * i + j)}]\nsm3ss1 v19.4s, v0.4s, v18.4s, v1.4s\n"
            source += f"sm3tt1{kind} v0.4s, v19.4s, v17.s[{j}]\nsm3tt2{kind} v1.4s, v19.4s, v{w}.s[{j}]\n"
        source += f"ext v{new}.16b, v{x}.16b, v{y}.16b, #12\next v20.16b, v{w}.16b, v{x}.16b, #12\n"
        source += f"ext v21.16b, v{y}.16b, v{z}.16b, #8\nsm3partw1 v{new}.4s, v{w}.4s, v{z}.4s\n"
        source += f"sm3partw2 v{new}.4s, v21.4s, v20.4s\n"
    rounds = [rotate(0x79CC_4519 if j < 16 else 0x7A87_9D8A, j) for j in range(64)]
    bare.fill(bare.data, b"".join(struct.pack("<4I", 0, 0, 0, number) for number in rounds))
    message = {f"v{4 + i}": vector for i, vector in enumerate(word_vectors(padded(64)))}
    run(bare, source, x1=DATA, v0=lanes(*SM3_START[3::-1]), v1=lanes(*SM3_START[:3:-1]), **message)
    end = split(bare["v0"])[::-1] + split(bare["v1"])[::-1]
    digest = b"".join((a ^ b).to_bytes(4, "big") for a, b in zip(SM3_START, end, strict=True))
    assert digest.hex() == "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"


def sm4(bare: BareArm64) -> None:
    """The example of GB/T 32907, its key being its text."""
    text = struct.unpack(">4I", bytes.fromhex("0123456789abcdeffedcba9876543210"))
    system = (0xA3B1_BAC6, 0x56AA_3350, 0x677D_9197, 0xB270_22DC)
    fixed = [sum((4 * i + j) * 7 % 256 << 24 - 8 * j for j in range(4)) for i in range(32)]
    source = ""
    for i in range(8):
        source += f"ldr q2, [x1, #{16 * i}]\nsm4ekey v1.4s, v1.4s, v2.4s\nsm4e v0.4s, v1.4s\n"
    bare.fill(bare.data, struct.pack("<32I", *fixed))
    key = lanes(*(a ^ b for a, b in zip(text, system, strict=True)))
    run(bare, source, x1=DATA, v0=lanes(*text), v1=key)
    result = struct.pack(">4I", *split(bare["v0"])[::-1])
    assert result.hex() == "681edf34d206965e86b3e94f536e4246"


def crc32(bare: BareArm64) -> None:
    source = "crc32x w0, w1, x2\ncrc32b w0, w0, w3\ncrc32cx w4, w1, x2\ncrc32cb w4, w4, w3"
    run(bare, source, x1=M32, x2=int.from_bytes(b"12345678", "little"), x3=ord("9"))
    assert bare["x0"] ^ M32 == zlib.crc32(b"123456789")
    assert bare["x4"] ^ M32 == 0xE306_9283  # CRC-32C's check value


def atomics(bare: BareArm64) -> None:
    bare.words[bare.data >> 3] = 5
    source = "ldaddal x2, x3, [x1]\nldsetal x4, x5, [x1]\nswpal x6, x7, [x1]\n"
    source += "casal x8, x9, [x1]\ncasal x10, x9, [x1]"
    run(bare, source, x1=DATA, x2=7, x4=0x10, x6=100, x8=100, x9=200, x10=1)
    assert [bare[f"x{i}"] for i in (3, 5, 7, 8, 10)] == [5, 12, 0x1C, 100, 200]
    assert bare.words[bare.data >> 3] == 200


def fphp(bare: BareArm64) -> None:
    run(bare, "fadd h0, h1, h2", v1=half(1.5), v2=half(2.25))
    assert bare["v0"] == half(3.75)


def asimdhp(bare: BareArm64) -> None:
    values = [0.5 * i for i in range(8)]
    run(bare, "fadd v0.8h, v1.8h, v2.8h", v1=half(*values), v2=half(*values))
    assert bare["v0"] == half(*(2 * value for value in values))


def asimdrdm(bare: BareArm64) -> None:
    run(bare, "sqrdmlah v0.4h, v1.4h, v2.4h", v0=0x7FFF_0100, v1=0x4000_4000, v2=0x4000_4001)
    assert bare["v0"] == 0x7FFF_2101  # 1/4 is added and rounded; what overflows saturates


def jscvt(bare: BareArm64) -> None:
    run(
        bare,
        "fjcvtzs w0, d1\nmrs x2, nzcv\nfjcvtzs w3, d4\nmrs x5, nzcv",
        v1=double(2.0**32 + 5.5),
        v4=double(-7.0),
    )
    assert (bare["x0"], bare["x2"], bare["x3"], bare["x5"]) == (5, 0, -7 & M32, 1 << 30)


def fcma(bare: BareArm64) -> None:
    """(1 + 2i)(3 + 4i) = -5 + 10i, in two steps."""
    source = "fcmla v0.4s, v1.4s, v2.4s, #0\nfcmla v0.4s, v1.4s, v2.4s, #0x5a"
    run(bare, source, v0=0, v1=single(1, 2, 0, 0), v2=single(3, 4, 0, 0))
    assert bare["v0"] == single(-5, 10, 0, 0)


def lrcpc(bare: BareArm64) -> None:
    bare.words[bare.data >> 3] = 0x77
    run(bare, "ldapr x0, [x1]", x1=DATA)
    assert bare["x0"] == 0x77


def ilrcpc(bare: BareArm64) -> None:
    bare.words[bare.data >> 3] = 0x77
    run(bare, "ldapur x0, [x1]\nstlur x1, [x2]", x1=DATA, x2=DATA + 8)
    assert (bare["x0"], bare.words[bare.data + 8 >> 3]) == (0x77, DATA)


def dcpop(bare: BareArm64) -> None:
    bare.words[bare.data >> 3] = 0x77
    run(bare, "dc cvap, x1", x1=DATA)
    assert bare.words[bare.data >> 3] == 0x77


def dcpodp(bare: BareArm64) -> None:
    bare.words[bare.data >> 3] = 0x77
    run(bare, "sys #3, c7, c13, #1, x1", x1=DATA)  # dc cvadp
    assert bare.words[bare.data >> 3] == 0x77


def asimddp(bare: BareArm64) -> None:
    a, b = lanes(*range(240, 256), width=8), lanes(*range(16), width=8)
    run(
        bare, "udot v0.4s, v1.16b, v2.16b\nsdot v3.4s, v1.16b, v2.16b", v0=lanes(1, 1, 1, 1), v1=a, v2=b, v3=0
    )
    groups = [range(4 * i, 4 * i + 4) for i in range(4)]
    assert split(bare["v0"]) == [1 + sum((240 + i) * i for i in group) for group in groups]
    assert split(bare["v3"]) == [sum((i - 16) * i for i in group) & M32 for group in groups]


def asimdfhm(bare: BareArm64) -> None:
    run(
        bare,
        "fmlal v0.4s, v1.4h, v2.4h",
        v0=single(1, 1, 1, 1),
        v1=half(1, 2, 3, 4),
        v2=half(0.5, 0.5, 2, 300),
    )
    assert bare["v0"] == single(1.5, 2, 7, 1201)


def flags(bare: BareArm64, before: int, source: str) -> int:
    bare["nzcv"] = before << 28
    run(bare, source + "\nmrs x9, nzcv")
    return bare["x9"] >> 28


def flagm(bare: BareArm64) -> None:
    assert flags(bare, 0b0010, "cfinv") == 0b0000
    assert flags(bare, 0b0000, "cfinv") == 0b0010
    bare["x0"], bare["x1"] = 0b1010 << 4, 0x80
    assert flags(bare, 0b0101, "rmif x0, #4, #0xf") == 0b1010
    assert flags(bare, 0b0010, "setf8 w1") == 0b1011


def flagm2(bare: BareArm64) -> None:
    """Between Arm's flags of a floating-point comparison and another one's (Arm ARM C6.2, AXFLAG, XAFLAG)."""
    assert [flags(bare, before, "axflag") for before in (0b1000, 0b0110, 0b0010, 0b0011)] == [
        0,
        0b0110,
        0b0010,
        0b0100,
    ]
    assert [flags(bare, before, "xaflag") for before in (0b0000, 0b0110, 0b0010, 0b0100)] == [
        0b1000,
        0b0110,
        0b0010,
        0b0011,
    ]


def sb(bare: BareArm64) -> None:
    run(bare, "sb\nmov x0, #1", x0=0)
    assert bare["x0"] == 1


def frint(bare: BareArm64) -> None:
    run(bare, "frint32z d0, d1\nfrint32z d2, d3\nfrint64x d4, d3", v1=double(-2.75), v3=double(2.0**40 + 0.5))
    assert (bare["v0"], bare["v2"], bare["v4"]) == (double(-2.0), double(-(2.0**31)), double(2.0**40))


def rng(bare: BareArm64) -> None:
    run(bare, "mrs x0, s3_3_c2_c4_0", x0=0)
    assert bare["x0"] == 0x1234


PROOFS: dict[str, Callable[[BareArm64], None]] = {
    proof.__name__.upper(): proof
    for proof in (
        *(fp, asimd, aes, pmull, sha1, sha2, crc32, atomics, fphp, asimdhp, asimdrdm, jscvt, fcma, lrcpc),
        *(dcpop, sha3, sm3, sm4, asimddp, sha512, asimdfhm, ilrcpc, flagm, sb, dcpodp, flagm2, frint, rng),
    )
}


def test_every_announced_capability_has_its_proof_here() -> None:
    assert list(PROOFS) == [capability.name for capability in id_registers.CAPABILITIES]


@pytest.mark.parametrize("name", PROOFS)
def test_an_announced_capability_gives_the_right_answer(bare: BareArm64, name: str) -> None:
    PROOFS[name](bare)


@pytest.mark.parametrize(
    "source",
    [
        "rdvl x0, #1",  # SVE
        "mrs x0, s3_3_c4_c2_5",  # DIT
        "mrs x0, s3_3_c4_c2_6",  # SSBS
        ".long 0x9adf1000",  # irg x0, x0: MTE
        ".long 0x6e42fc20",  # bfdot v0.4s, v1.8h, v2.8h: BF16
        ".long 0x4e82a420",  # smmla v0.4s, v1.16b, v2.16b: I8MM
        ".long 0xd5031000",  # wfet x0: WFXT
        ".long 0xdac02000",  # abs x0, x0: CSSC
    ],
)
def test_what_is_not_announced_and_not_there_is_undefined(bare: BareArm64, source: str) -> None:
    bare.fill(bare.code, words(source))
    bare.go()
    assert [trap.kind for trap, _pc in bare.traps] == [TrapKind.ILLEGAL]


@pytest.mark.parametrize(
    "source",
    [
        "hint #25\nhint #29",  # paciasp, autiasp
        ".long 0xdac10020",  # pacia x0, x1
        ".long 0xdac143e0",  # xpaci x0
        "hint #34",  # bti c
    ],
)
def test_pointer_authentication_without_keys_changes_nothing(bare: BareArm64, source: str) -> None:
    """The engine takes all of them for no-ops; without the extension only the hints are defined."""
    run(bare, source, x0=0x40_0000, x1=3, x30=0x40_0000)
    assert (bare["x0"], bare["x30"]) == (0x40_0000, 0x40_0000)


def test_the_engines_own_registers_announce_all_that_we_announce(bare: BareArm64) -> None:
    own = {capability.register for capability in id_registers.CAPABILITIES}
    words_of = {register: int(bare.cpu._uc.cpr_read(*register)) for register in own}
    for capability in id_registers.CAPABILITIES:
        field = words_of[capability.register] >> capability.low & 15
        assert field >= capability.value, capability.name


class TestIdRegisters:
    """What Linux answers to an EL0 `mrs` (Documentation/arch/arm64/cpu-feature-registers.rst)."""

    def read(self, bare: BareArm64, register: regs.Encoding, target: int = 0) -> int | None:
        op0, op1, crn, crm, op2 = register
        word = 0xD500_0000 | 1 << 21 | op0 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5 | target
        before = len(bare.traps)
        bare[f"x{target}"] = 0x55
        bare.fill(bare.code, word.to_bytes(4, "little") + words("svc #0"))
        bare.cpu.flush_code()
        bare.go()
        return None if len(bare.traps) > before else bare[f"x{target}"]

    def test_the_whole_space_is_answered_as_the_table_says(self, bare: BareArm64) -> None:
        for crm in range(8):
            for op2 in range(8):
                register = regs.Encoding(3, 0, 0, crm, op2)
                assert self.read(bare, register) == id_registers.user_value(register), register
        for trap, _pc in bare.traps:
            assert (trap.kind, trap.error >> 26) == (TrapKind.ILLEGAL, 0)

    @pytest.mark.parametrize("target", [0, 17, 30])
    def test_into_every_register(self, bare: BareArm64, target: int) -> None:
        assert self.read(bare, id_registers.MIDR_EL1, target) == id_registers.user_value(
            id_registers.MIDR_EL1
        )

    def test_into_none(self, bare: BareArm64) -> None:
        before = bare.cpu.registers()
        bare.run("mrs xzr, midr_el1\nsvc #0")
        assert bare.cpu.registers() == {**before, "pc": bare.cpu.pc}
        assert bare.calls

    def test_the_part_is_the_engines(self, bare: BareArm64) -> None:
        assert id_registers.user_value(id_registers.MIDR_EL1) == bare.cpu._uc.cpr_read(*id_registers.MIDR_EL1)

    def test_others_stay_undefined(self, bare: BareArm64) -> None:
        for register in (regs.SCTLR_EL1.encoding, regs.TTBR0_EL1, regs.Encoding(3, 1, 0, 0, 0)):
            assert self.read(bare, register) is None

    def test_from_an_execute_only_page_it_is_undefined(self, bare: BareArm64) -> None:
        """Linux reads the instruction as data of the user."""
        bare.words[bare.slot(CODE)] &= ~USER
        bare.cpu.flush_page(CODE)
        assert self.read(bare, id_registers.MIDR_EL1) is None
