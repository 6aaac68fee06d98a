from __future__ import annotations

import math
from dataclasses import replace

import pytest

from plait.compiler.calibrate import NUM_MEASUREMENTS, CalibrationSizes, calibrate
from plait.compiler.partition.network import collective_seconds
from plait.compiler.target import Compute, Power, Tier, load_target, target_names
from plait.compiler.target_sources import source_of, target_numbers, unused_sources
from plait.errors import TargetError

QUICK = CalibrationSizes(
    product_rows=16, product_size=128, read_bytes=1 << 20, tensor_bytes=1 << 16, num_tensors=3, num_runs=2
)


@pytest.mark.parametrize("name", [name for name in target_names() if name.startswith("cpu")])
def test_rates_are_measured_and_the_rest_is_kept(name: str) -> None:
    base = load_target(name)
    measured = calibrate(base, sizes=QUICK)
    assert (measured.name, measured.kind, measured.num_devices) == (f"{name}-calibrated", base.kind, base.num_devices)
    assert "measured by `plait calibrate`" in measured.source
    assert {tier: (it.capacity_bytes, it.memory_kind) for tier, it in measured.tiers.items()} == {
        tier: (it.capacity_bytes, it.memory_kind) for tier, it in base.tiers.items()
    }
    assert {name: link.pace for name, link in measured.links.items()} == {
        name: link.pace for name, link in base.links.items()
    }
    rates = [
        *measured.compute.flops_per_s.values(),
        *(tier.bandwidth_bytes_per_s for tier in measured.tiers.values()),
        *(link.bandwidth_bytes_per_s for link in measured.links.values()),
    ]
    assert all(math.isfinite(rate) and 1e3 < rate < 1e16 for rate in rates)
    assert 0 < measured.compute.launch_seconds < 0.1
    assert set(measured.compute.flops_per_s) == set(base.compute.flops_per_s)
    assert all(0 < link.latency_seconds < 0.1 for link in measured.links.values())


@pytest.mark.parametrize("name", [name for name in target_names() if name.startswith("cpu")])
def test_sources_say_what_was_measured_and_what_was_not(name: str) -> None:
    base = load_target(name)
    measured = calibrate(calibrate(base, sizes=QUICK), sizes=QUICK)  # from a calibrated one it is the same
    for number in target_numbers(measured):
        key = number.key
        is_measured = key.startswith(("compute.flops_per_s.", "links.")) or key.endswith("efficiency")
        is_measured = is_measured or (key.startswith("tiers.") and key.endswith("_bytes_per_s"))
        if is_measured or key == "compute.launch_seconds":
            assert number.source.startswith("measured"), key
        else:
            assert number.source == source_of(base, key)
    assert unused_sources(measured) == ()


def test_what_is_measured_has_no_efficiency_and_the_rest_stays() -> None:
    base = load_target("cpu")
    compute = replace(
        base.compute, software_launch_seconds=1.0, sequence_seconds=2.0, append_seconds=3.0, efficiency=0.5
    )
    tiers = {"hbm": replace(base.tiers["hbm"], efficiency=0.5, reserved_bytes=7)}
    measured = calibrate(replace(base, compute=compute, tiers=tiers, power=Power(1.0, 2.0)), sizes=QUICK)
    assert (measured.compute.software_launch_seconds, measured.compute.sequence_seconds) == (1.0, 2.0)
    assert measured.compute.append_seconds == 3.0
    assert (measured.compute.efficiency, measured.tiers["hbm"].efficiency) == (1.0, 1.0)
    assert measured.tiers["hbm"].reserved_bytes == 7
    assert measured.power == Power(1.0, 2.0)


def test_of_a_target_without_sources_what_is_kept_has_the_source_of_its_file() -> None:
    base = replace(load_target("cpu"), sources={}, source="a guess")
    measured = calibrate(base, sizes=QUICK)
    assert source_of(measured, "tiers.hbm.capacity_bytes") == "a guess"
    assert source_of(measured, "network.overlap") == "a guess"


@pytest.mark.parametrize("pace", [True, False], ids=["paced", "unpaced"])
def test_pace_can_be_chosen(pace: bool) -> None:
    measured = calibrate(load_target("cpu"), pace=pace, sizes=QUICK)
    assert {link.pace for link in measured.links.values()} == {pace}


def test_progress_counts_every_measurement() -> None:
    heard: list[int] = []
    calibrate(load_target("cpu"), sizes=QUICK, progress=heard.append)
    assert heard == list(range(NUM_MEASUREMENTS + 1))


def test_a_machine_that_is_not_this_one_is_refused() -> None:
    rack = replace(load_target("cpu"), tiers={"hbm": Tier(1, 1.0, "tpu_hbm")})
    with pytest.raises(TargetError, match="its hbm is memory kind 'tpu_hbm', this machine has device"):
        calibrate(rack, sizes=QUICK)


def test_a_dtype_that_cannot_be_measured_is_refused() -> None:
    target = replace(load_target("cpu"), compute=Compute({"f32": 1.0, "fp8": 2.0}))
    with pytest.raises(TargetError, match="has a rate for 'fp8'; products of f32 and bf16 can be measured"):
        calibrate(target, sizes=QUICK)


def test_collectives_between_virtual_devices_are_measured() -> None:
    base = load_target("cpu")
    measured = calibrate(base, num_devices=4, sizes=QUICK)
    assert measured.num_devices == 4
    assert set(measured.network.collectives) == {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "permute"}
    for kind, rate in measured.network.collectives.items():
        assert 1e4 < rate.bandwidth_bytes_per_s < 1e13
        assert 0 < rate.latency_seconds < 1
        key = f"network.collectives.{kind}.bandwidth_bytes_per_s"
        assert source_of(measured, key).startswith("measured")
    seconds = [collective_seconds("all_reduce", size, 4, measured.network) for size in (1 << 10, 1 << 24)]
    assert seconds[0] < seconds[1]


def test_one_device_has_no_network() -> None:
    with pytest.raises(TargetError, match="1 devices have nothing between them"):
        calibrate(load_target("cpu"), num_devices=1, sizes=QUICK)
