from __future__ import annotations

from dataclasses import asdict

import pytest

from plait.compiler.target import load_target, target_names
from plait.compiler.target_sources import target_numbers


def test_all_targets_are_listed(plait) -> None:
    assert [target["name"] for target in plait("targets", "--json").data] == list(target_names())
    assert all(f"\n{name} " in plait("targets").out for name in target_names())


@pytest.mark.parametrize("name", target_names())
def test_a_target_is_shown_as_a_file_that_can_be_loaded(plait, tmp_path, name: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(plait("targets", name).out)
    assert load_target(file) == load_target(name)
    assert plait("targets", file, "--json").data == asdict(load_target(name))


def test_an_unknown_target_is_one_line(plait) -> None:
    assert "unknown target 'tpu'; known: a100-8, cpu, cpu-tiered" in plait("targets", "tpu").complaint()


def test_a_malformed_target_is_one_line(plait, tmp_path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("name = ")
    assert "is not TOML" in plait("targets", file).complaint()


def test_show_has_every_number_with_its_source(plait) -> None:
    outcome = plait("targets", "show", "sn40l-16")
    lines = {line.split()[0]: line.rstrip() for line in outcome.out.splitlines()}
    assert lines["compute.flops_per_s.bf16"].endswith(
        "638 TFLOP/s  arXiv 2405.07518; Hot Chips 2024: 638 BF16 TFLOPS a socket"
    )
    assert "512.0 KiB  arXiv" in lines["chip.pmu_bytes"]
    assert "1.8 TB/s  " in lines["tiers.hbm.bandwidth_bytes_per_s"]
    assert "1.6 GHz  assumed: " in lines["chip.clock_hz"]
    assert "900 W  assumed: " in lines["power.peak_watts"]
    assert outcome.out.splitlines()[-1].endswith(" assumed")
    assert (outcome.code, outcome.err) == (0, "")


@pytest.mark.parametrize("name", target_names())
def test_show_as_json_is_the_numbers_of_the_target(plait, name: str) -> None:
    data = plait("targets", "show", name, "--json").data
    numbers = target_numbers(load_target(name))
    assert [(each["key"], each["value"], each["source"], each["assumed"]) for each in data["numbers"]] == [
        (number.key, number.value, number.source, number.is_assumed) for number in numbers
    ]
    assert data["name"] == name


def test_a_file_of_ones_own_is_shown_and_a_source_of_no_number_is_said(plait, tmp_path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(plait("targets", "cpu").out + '"tiers.hmb" = "measured"\n')
    outcome = plait("targets", "show", file)
    assert outcome.code == 0
    assert outcome.err == "plait: target 'cpu': sources has 'tiers.hmb', which is the source of no number\n"


def test_the_schema_is_json(plait) -> None:
    data = plait("targets", "schema").data
    assert data["title"] == "Target"
    assert set(data["$defs"]) >= {"Chip", "Compute", "Link", "Network", "Power", "Tier"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["show"], "plait targets show needs a name, or the path of a TOML file"),
        (["show", "tpu"], "unknown target 'tpu'"),
        (["cpu", "gpu"], "plait targets takes one name, and got 'cpu' and 'gpu'"),
        (["schema", "cpu"], "plait targets takes one name, and got 'schema' and 'cpu'"),
    ],
    ids=["no name", "unknown", "two", "schema of one"],
)
def test_wrong_words_are_one_line(plait, words: list[str], says: str) -> None:
    assert says in plait("targets", *words).complaint()
