from __future__ import annotations

import re
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from plait.compiler import targets
from plait.compiler.target import Chip, Target, load_target, target_names
from plait.compiler.target_file import target_to_toml, write_target
from plait.errors import TargetError

README = Path(targets.__path__[0]) / "README.md"
LLAMA_2_7B_BYTES = 13.48e9
SN40L = ("sn40l", "sn40l-8", "sn40l-16")
SN50 = ("sn50-8", "sn50-16", "sn50-64", "sn50-128", "sn50-256")


def test_these_targets_come_with_plait() -> None:
    here = ("a100-8", "cpu", "cpu-tiered", "gpu", "h100-8", "plasticine", "sn10-8")
    assert target_names() == tuple(sorted((*here, *SN40L, *SN50)))


@pytest.mark.parametrize("name", target_names())
def test_targets_that_come_with_plait_load_and_say_where_their_numbers_are_from(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.source
    assert target.tiers["hbm"].capacity_bytes > 0
    assert set(target.tiers) == ({"hbm"} if target.kind == "unified" else {"hbm", "ddr"})


@pytest.mark.parametrize("name", target_names())
def test_a_target_is_the_same_after_it_was_written(name: str, tmp_path: Path) -> None:
    target = load_target(name)
    write_target(target, tmp_path / "mine.toml")
    assert load_target(tmp_path / "mine.toml") == target
    assert load_target(str(tmp_path / "mine.toml")) == target


@pytest.mark.parametrize("name", target_names())
def test_rates_are_of_a_machine_that_can_be(name: str) -> None:
    target = load_target(name)
    shares = [target.compute.efficiency, *(tier.efficiency for tier in target.tiers.values())]
    assert all(0 < share <= 1 for share in shares)
    assert all(0 < tier.usable_bytes <= tier.capacity_bytes for tier in target.tiers.values())
    assert all(rate > 0 for rate in target.compute.flops_per_s.values())
    if target.power is not None:
        assert 0 < target.power.idle_watts < target.power.peak_watts
    if "ddr->hbm" in target.links:
        assert target.link("ddr", "hbm").bandwidth_bytes_per_s <= target.tiers["ddr"].bandwidth_bytes_per_s


def test_only_dataflow_targets_have_a_chip() -> None:
    without = {name for name in target_names() if load_target(name).chip is None}
    assert without == {"cpu", "cpu-tiered", "gpu", "h100-8", "a100-8"}


def chip(name: str) -> Chip:
    found = load_target(name).chip
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("names", "num_units", "sram_mib"),
    [(SN40L, 1040, 520), (SN50, 864, 432), (("sn10-8",), 640, 320), (("plasticine",), 64, 16)],
    ids=["SN40L", "SN50", "SN10", "Plasticine"],
)
def test_chips_have_the_published_units_and_memory(names: tuple[str, ...], num_units: int, sram_mib: int) -> None:
    for name in names:
        assert (chip(name).num_pcus, chip(name).num_pmus) == (num_units, num_units)
        assert chip(name).sram_bytes == sram_mib << 20


@pytest.mark.parametrize(
    ("name", "dtype", "teraflops", "hbm_gb_per_s"),
    [
        ("sn40l-8", "bf16", 638, 1800),
        ("sn50-16", "bf16", 1600, 1840),
        ("sn50-16", "fp8", 3200, 1840),
        ("plasticine", "f32", 12.3, 51.2),
        ("h100-8", "bf16", 989, 3350),
        ("h100-8", "fp8", 1979, 3350),
        ("a100-8", "bf16", 312, 2039),
    ],
)
def test_rates_are_the_published_ones(name: str, dtype: str, teraflops: float, hbm_gb_per_s: float) -> None:
    target = load_target(name)
    assert target.compute.flops_per_s[dtype] == pytest.approx(teraflops * 1e12)
    assert target.tiers["hbm"].bandwidth_bytes_per_s == pytest.approx(hbm_gb_per_s * 1e9)


@pytest.mark.parametrize(
    ("name", "num_bytes", "milliseconds"),
    [("sn40l-8", 13.48e9, 13.5), ("sn40l-16", 16.06e9, 10.0)],
    ids=["Llama 2 7B on a node", "Llama 3.1 8B on a rack"],
)
def test_switches_take_the_published_time(name: str, num_bytes: float, milliseconds: float) -> None:
    assert 1e3 * switch_seconds(load_target(name), num_bytes) == pytest.approx(milliseconds, rel=0.01)


@pytest.mark.parametrize(("name", "ratio"), [("a100-8", 31), ("h100-8", 15)])
def test_switches_of_a_dgx_take_the_published_multiple(name: str, ratio: float) -> None:
    node = switch_seconds(load_target("sn40l-8"), LLAMA_2_7B_BYTES)
    assert switch_seconds(load_target(name), LLAMA_2_7B_BYTES) / node == pytest.approx(ratio, rel=0.05)


def switch_seconds(target: Target, num_bytes: float) -> float:
    return num_bytes / target.num_devices / target.link("ddr", "hbm").bandwidth_bytes_per_s


def test_a_node_holds_the_published_number_of_experts_and_19_dgx_nodes_as_many() -> None:
    node = load_target("sn40l-8")
    assert 8 * node.tiers["ddr"].usable_bytes // LLAMA_2_7B_BYTES == 856  # 850 and a router among them
    assert 8 * node.tiers["ddr"].capacity_bytes // LLAMA_2_7B_BYTES == 978
    for name in ("h100-8", "a100-8"):
        experts_of_a_node = 8 * load_target(name).tiers["hbm"].usable_bytes // LLAMA_2_7B_BYTES
        assert -(-850 // experts_of_a_node) == 19


@pytest.mark.parametrize(
    ("name", "load", "kilowatts"),
    [
        ("sn40l-16", 0.5, 10.0),
        ("sn50-16", 1.0, 34.0),
        ("sn50-16", 1 / 3, 17.5),
        ("h100-8", 1.0, 10.2),
        ("a100-8", 1.0, 6.5),
    ],
)
def test_machines_draw_the_published_power(name: str, load: float, kilowatts: float) -> None:
    target = load_target(name)
    assert target.power is not None
    watts = target.power.idle_watts + load * (target.power.peak_watts - target.power.idle_watts)
    assert watts * target.num_devices == pytest.approx(1e3 * kilowatts, rel=0.02)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name = ", "is not TOML"),
        (b"\xff\xfe", "not UTF-8"),
        (b"name = 'x'", "description: Missing|Missing|missing|required"),
        (b"surprise = 1", "Unexpected|unexpected|missing|required|Missing"),
    ],
    ids=["syntax", "encoding", "incomplete", "unknown field"],
)
def test_a_malformed_target_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(TargetError, match=message):
        load_target(path)


def test_a_source_whose_key_lacks_its_quotes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(target_to_toml(replace(load_target("cpu"), sources={})) + '\n[sources.tiers]\nhbm = "measured"\n')
    with pytest.raises(TargetError, match=r"sources\.tiers: Input should be a valid string"):
        load_target(path)


def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    known = (
        "a100-8, cpu, cpu-tiered, gpu, h100-8, plasticine, sn10-8, sn40l, sn40l-16, sn40l-8, "
        "sn50-128, sn50-16, sn50-256, sn50-64, sn50-8"
    )
    with pytest.raises(TargetError, match=f"^unknown target 'tpu'; known: {known}, or the path of a TOML file$"):
        load_target("tpu")


def test_a_missing_link_is_named() -> None:
    with pytest.raises(TargetError, match="'cpu' has no link ddr->hbm"):
        load_target("cpu").link("ddr", "hbm")


def test_the_target_of_the_readme_can_be_loaded(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    (tmp_path / "mine.toml").write_text(blocks[0])
    assert asdict(load_target(tmp_path / "mine.toml"))["sources"] == tomllib.loads(blocks[0])["sources"]
