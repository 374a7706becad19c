"""A machine's parameters: each default is allowed, each bad value is refused by name, later sources win."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_emu.config import ClockCosts, Config
from aether_emu.errors import ConfigError
from aether_emu.rules import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("64K", 65536),
        ("512M", 512 << 20),
        ("512m", 512 << 20),
        ("1G", 1 << 30),
        ("2T", 2 << 40),
        ("2 GiB", 2 << 30),
        ("3MB", 3 << 20),
        ("7B", 7),
        (" 8K ", 8192),
        ("0x10000", 65536),
        (12345, 12345),
    ],
)
def test_a_size_is_read(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "M", "1.5G", "-1", "+1", "1 000", "1X", "1KM", "0xG", "½M", "٣", "9" * 5000, True, None, 1.0]
)
def test_what_is_no_size_is_refused(text: Any) -> None:
    with pytest.raises(ConfigError, match=r"ram=.* is not allowed: a number of bytes") as caught:
        parse_size(text, "ram")
    assert (caught.value.name, caught.value.value) == ("ram", text)


@given(st.integers(0, 2**50))
def test_a_size_is_read_as_it_is_written(size: int) -> None:
    assert parse_size(format_size(size)) == size


def test_the_defaults_are_the_documented_ones() -> None:
    config = Config.load()
    assert config == Config()
    assert (config.ram, config.page_size, config.user_base) == (512 << 20, 4096, 0x10000)
    assert (config.max_mmap_areas, config.stack_limit, config.memory_limit) == (65_530, 8 << 20, None)
    assert (config.seed, config.aslr, config.fault_around, config.aperture) == (0, True, 16, 1 << 30)
    assert (config.uid, config.gid, config.hostname, config.open_files) == (1000, 1000, "aether", 1024)
    assert config.clock == ClockCosts()


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "machine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_replaces_defaults_and_options_replace_the_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        ram = "1G"
        seed = 7
        user_base = 0x20000
        aslr = false
        memory_limit = "64M"

        [clock]
        block = 5
        fault_copy = 1
        """,
    )
    config = Config.load(path, {"seed": 9, "kernel_base": "0xffff900000000000", "clock": {"block": 6}})
    assert (config.ram, config.seed, config.user_base, config.aslr) == (1 << 30, 9, 0x20000, False)
    assert (config.memory_limit, config.kernel_base) == (64 << 20, 0xFFFF_9000_0000_0000)
    assert config.clock == ClockCosts(block=6, fault_copy=1)
    assert config.hostname == "aether"


def test_an_option_that_was_not_given_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "seed = 7\n[clock]\nblock = 5")
    assert Config.load(path, {"seed": None, "ram": None, "clock": {"block": None}}) == Config.load(path)
    assert Config.load(path, {"clock": None}).clock.block == 5


REFUSED: list[tuple[str, Any]] = [
    ("cpus", 0),
    ("cpus", 65),
    ("cpus", "two"),
    ("shootdown", "later"),
    ("shootdown", 1),
    ("shootdown_delay", -1),
    ("shootdown_pages", 0),
    ("lazy_tlb", 1),
    ("tlb_fault", "all"),
    ("tlb_fault", "reuse"),
    ("tlb_fault_one_in", 0),
    ("slab_debug", "X"),
    ("slab_debug", "FF"),
    ("slab_debug", "F,"),
    ("slab_debug", ""),
    ("slab_merge", 1),
    ("slab_fault", "leak"),
    ("slab_fault_one_in", 0),
    ("locks", "many"),
    ("pcids", -1),
    ("pcids", 4096),
    ("pcids", "six"),
    ("asid_bits", 12),
    ("asid_bits", 0),
    ("thp", "sometimes"),
    ("thp", True),
    ("shmem_thp", "madvise"),
    ("mthp", "8K"),
    ("mthp", "64K,"),
    ("mthp", "48K"),
    ("mthp", "2M"),
    ("hugepages", "2M"),
    ("hugepages", "2M=many"),
    ("thp_defrag", "defer"),
    ("framebuffer", "640"),
    ("framebuffer", "0x480"),
    ("framebuffer", "4000x4000"),
    ("framebuffer", 640),
    ("devices", "timer,"),
    ("devices", "timer,timer"),
    ("devices", "disk"),
    ("write_combining", 65),
    ("khugepaged_sleep", -1),
    ("khugepaged_pages", 0),
    ("khugepaged_none", 8192),
    ("khugepaged_shared", -1),
    ("ksm", 1),
    ("ksm_sleep", 0),
    ("ksm_pages", 0),
    ("ksm_zero_pages", "yes"),
    ("kpti", 1),
    ("kpti", "yes"),
    ("ram", 2**20),
    ("ram", 2**41),
    ("ram", (2 << 20) + 1),
    ("ram", 0),
    ("ram", -(2**21)),
    ("ram", "lots"),
    ("ram", 2.0**29),
    ("ram", True),
    ("swap", -4096),
    ("swap", 4097),
    ("swap", 2**45),
    ("swap_pool", -1),
    ("swap_pool", 2**41),
    ("swap_file", 1),
    ("swap_file", ""),
    ("swap_file", "a\0b"),
    ("swap_readahead", 0),
    ("swap_readahead", 3),
    ("swap_readahead", 128),
    ("page_cache", "inside"),
    ("swappiness", -1),
    ("swappiness", 201),
    ("reclaim", "lru"),
    ("kswapd", 2),
    ("min_free", -1),
    ("watermark_scale", 0),
    ("watermark_scale", 3001),
    ("host_step", -1),
    ("aperture", 3 << 20),
    ("aperture", 0),
    ("page_size", 8192),
    ("page_size", 32768),
    ("virtual_bits", 36),
    ("page_size", "4X"),
    ("kernel_base", 0),
    ("kernel_base", 0xFFFF_8000_0000_0001),
    ("kernel_base", 0xFFFF_FFFF_FFFF_F000),
    ("user_base", -4096),
    ("user_base", 0x1_0001),
    ("user_base", 1 << 47),
    ("max_mmap_areas", 15),
    ("max_mmap_areas", 2**31),
    ("max_mmap_areas", "65530"),
    ("stack_limit", 4096),
    ("stack_limit", (129 << 10) + 1),
    ("memory_limit", 4096),
    ("open_files", 7),
    ("fault_around", 0),
    ("fault_around", 3),
    ("fault_around", 1024),
    ("real_time", 1),
    ("aslr", 1),
    ("aslr", "yes"),
    ("aslr_once", 1),
    ("tlbsan", 1),
    ("seed", -1),
    ("seed", 2**64),
    ("uid", -1),
    ("gid", 2**32 - 1),
    ("hostname", ""),
    ("hostname", "-x"),
    ("hostname", "a" * 65),
    ("hostname", "höhe"),
    ("hostname", "a\n"),
    ("hostname", 5),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_a_bad_value_is_refused_with_its_name_and_what_is_allowed(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load(overrides={name: value})
    assert caught.value.name == name
    assert caught.value.value == value or parse_size(str(caught.value.value)) == value
    assert "\n" not in str(caught.value)
    if not isinstance(value, str):
        with pytest.raises(ConfigError):
            Config(**{name: value})
    if name != "page_size":
        allowed = next(row.allowed for row in Config.describe() if row.name == name)
        assert caught.value.allowed.startswith((allowed, "a number of bytes"))


def test_each_parameter_has_a_refused_value_above() -> None:
    assert {name for name, _ in REFUSED} == {f.name for f in dataclasses.fields(Config)} - {"clock"}


@pytest.mark.parametrize("cost", [f.name for f in dataclasses.fields(ClockCosts)])
@pytest.mark.parametrize("value", [-1, 1.5, "1", 10**12 + 1, True])
def test_a_bad_cost_is_refused(cost: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"clock\.{cost}="):
        Config.load(overrides={"clock": {cost: value}})


def test_an_executed_block_takes_time() -> None:
    with pytest.raises(ConfigError, match="from 1 to"):
        ClockCosts(block=0)


def test_an_unknown_name_is_refused_and_the_known_ones_told(tmp_path: Path) -> None:
    for toml, name in (("rum = 1", "rum"), ("[clock]\nblok = 1", "clock.blok"), ("[cpu]\nn = 1", "cpu")):
        words = r"machine.toml:\d: .* is no parameter: (did you mean|known are) .*(ram|cpus|block)"
        with pytest.raises(ConfigError, match=words) as caught:
            Config.load(write(tmp_path, toml))
        assert caught.value.name == name


def test_the_clock_is_a_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a table of costs"):
        Config.load(write(tmp_path, "clock = 5"))
    with pytest.raises(ConfigError, match="a table of costs"):
        Config(clock=5)  # type: ignore[arg-type]  # what a caller without a type checker may do


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    undecodable = tmp_path / "latin1.toml"
    undecodable.write_bytes(b'hostname = "h\xf6he"')
    for path, why in (
        (tmp_path / "none.toml", "cannot be read: No such file"),
        (tmp_path, "cannot be read: Is a directory"),
        (write(tmp_path, "ram = "), "not TOML: Invalid value"),
        (undecodable, "not TOML: .*utf-8"),
    ):
        with pytest.raises(ConfigError, match=why) as caught:
            Config.load(path)
        assert caught.value.value == str(path)
        assert "\n" not in str(caught.value)


def test_a_config_cannot_be_changed_but_replaced_and_is_validated_again() -> None:
    config: Any = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.ram = 1
    assert dataclasses.replace(config, ram=4 << 20).ram == 4 << 20
    with pytest.raises(ConfigError):
        dataclasses.replace(config, ram=1)


def test_equal_configs_are_interchangeable() -> None:
    config = Config.load(overrides={"ram": "64M", "clock": {"block": 4}})
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(Config.load(overrides={"ram": 64 << 20, "clock": {"block": 4}})) == hash(config)


def test_every_parameter_describes_itself() -> None:
    rows = Config.describe()
    names = [f.name for f in dataclasses.fields(Config) if f.name != "clock"]
    names += [f"clock.{f.name}" for f in dataclasses.fields(ClockCosts)]
    assert [row.name for row in rows] == names
    assert all(row.default and row.allowed and row.meaning for row in rows)
    ram = rows[0]
    assert (ram.default, ram.allowed) == ("512M", "a multiple of the page size from 2M to 512G")
