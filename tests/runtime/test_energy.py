from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from plait.compiler.configuration import Configuration
from plait.compiler.target import Power, Target, load_target
from plait.runtime.energy import energy_meter
from plait.runtime.events import Embed, EmbedEntry


def step(**tokens: int) -> Embed:
    """A step of requests r1, r2, ... with so many tokens each."""
    entries = tuple(EmbedEntry(int(name[1:]), 0, (7,) * count) for name, count in tokens.items())
    return Embed(1, "m", Configuration("embed", batch=4, new_tokens=16, context=16), entries)


def machine(power: Power | None) -> Target:
    return dataclasses.replace(load_target("cpu"), power=power)


def package(directory: Path, name: str, microjoules: int, limit: int = 10_000_000) -> Path:
    (directory / name).mkdir()
    (directory / name / "max_energy_range_uj").write_text(f"{limit}\n")
    (directory / name / "energy_uj").write_text(f"{microjoules}\n")
    return directory / name / "energy_uj"


def test_modelled_energy_is_peak_power_times_seconds_shared_by_tokens(tmp_path: Path) -> None:
    meter = energy_meter(machine(Power(idle_watts=1.0, peak_watts=10.0)), 2, powercap=tmp_path)
    assert meter is not None
    assert meter.source == "modelled"
    meter.begin()
    assert meter.end(step(r1=6, r2=2), seconds=0.5) == {1: 7.5, 2: 2.5}


def test_nothing_is_made_up_where_nothing_is_known(tmp_path: Path) -> None:
    assert energy_meter(machine(None), 1, powercap=tmp_path) is None
    assert energy_meter(machine(None), 1, powercap=tmp_path / "missing") is None


def test_measured_energy_is_that_of_all_packages_and_their_parts_do_not_count(tmp_path: Path) -> None:
    one, two = (package(tmp_path, f"intel-rapl:{number}", 5_000_000) for number in range(2))
    part = package(tmp_path, "intel-rapl:0:0", 0)
    meter = energy_meter(machine(Power(1.0, 10.0)), 1, powercap=tmp_path)
    assert meter is not None
    assert meter.source == "measured"
    meter.begin()
    for path, microjoules in ((one, 8_000_000), (two, 6_000_000), (part, 9_000_000)):
        path.write_text(str(microjoules))
    assert meter.end(step(r1=3, r2=1), seconds=9.0) == pytest.approx({1: 3.0, 2: 1.0})


def test_a_counter_that_starts_over_goes_on(tmp_path: Path) -> None:
    counter = package(tmp_path, "intel-rapl:0", 9_500_000, limit=9_999_999)
    meter = energy_meter(machine(None), 1, powercap=tmp_path)
    assert meter is not None
    meter.begin()
    counter.write_text("500000")
    assert meter.end(step(r1=1), seconds=1.0) == pytest.approx({1: 1.0})


def test_counters_that_cannot_be_read_are_not_used(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", 0).write_text("nothing")
    assert energy_meter(machine(None), 1, powercap=tmp_path) is None
