from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from plait import load
from plait.compiler import calibrate as calibration
from plait.compiler.calibrate import CalibrationSizes
from plait.compiler.target import ProgramSeconds, load_target
from plait.compiler.target_sources import source_of
from plait.runtime.bench import programs as programs_measure
from plait.runtime.bench import serving as serving_measure


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    small = CalibrationSizes(8, 64, 1 << 16, 1 << 12, 2, 1)
    monkeypatch.setattr(calibration, "CalibrationSizes", lambda: small)
    for name, value in (("_AT_ONCE", (1, 3)), ("_NUM_RUNS", 1), ("_MOST_TOKENS", 12), ("_NUM_ROUNDS", 2)):
        monkeypatch.setattr(serving_measure, name, value)
    monkeypatch.setattr(programs_measure, "_ENOUGH_SECONDS", 0.05)


def test_what_is_printed_and_what_is_written_can_be_loaded(plait, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    outcome = plait("calibrate", "-o", file)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"written to  {file}" in outcome.out
    assert load_target(file).name == "cpu-tiered-calibrated"
    file.write_text(plait("calibrate", "--target", file, "--no-pace").out)
    again = load_target(file)
    assert again.name == "cpu-tiered-calibrated"
    assert not any(link.pace for link in again.links.values())


def test_json_is_the_target(plait) -> None:
    data = plait("calibrate", "--target", "cpu", "--json").data
    assert data["name"] == "cpu-calibrated"
    assert set(data["links"]) == {"disk->hbm"}


def test_a_file_that_cannot_be_written_is_one_line(plait, tmp_path: Path) -> None:
    assert "cannot write target file" in plait("calibrate", "-o", tmp_path / "no" / "mine.toml").complaint()


def test_an_unknown_target_is_one_line(plait) -> None:
    assert "unknown target 'tpu'" in plait("calibrate", "--target", "tpu").complaint()


def test_a_bundle_s_programs_and_its_serving_are_in_the_target(
    plait, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = itertools.count(1)
    drawn = serving_measure.random_prompt

    def fifth_is_short(*words) -> str:  # as many words of the others as it says that there is room for do not fit
        return "a " * 8 if next(numbers) == 5 else drawn(*words)

    monkeypatch.setattr(serving_measure, "random_prompt", fifth_is_short)
    file = tmp_path / "mine.toml"
    outcome = plait("calibrate", "--bundle", tiny_bundle, "-o", file)
    assert (outcome.code, outcome.err) == (0, "")
    target = load_target(file)
    serving = target.serving
    assert serving is not None
    assert serving.request_seconds > 0
    assert serving.pool_bytes_per_s is not None
    assert min(serving.save_seconds, serving.load_seconds) > 0
    assert serving.evict_seconds > 0
    assert serving.reading_seconds > 0
    programs = {
        f"{entry.name}/{p.configuration.id}" for entry in load(tiny_bundle).manifest.models for p in entry.programs
    }
    assert set(serving.programs) == programs
    assert all(found.seconds + found.context_seconds > 0 for found in serving.programs.values())
    first, second = (
        {p.configuration.id: serving.programs[f"{entry.name}/{p.configuration.id}"] for p in entry.programs}
        for entry in load(tiny_bundle).manifest.models[:2]
    )
    assert first == second, "models of the same programs"
    assert "bundle 'tiny', run and served" in source_of(target, "serving.step_seconds")
    options = ("--rate", 5, "--limit", 5, "--input-tokens", 8, "--output-tokens", 4, "--json")
    data = plait("simulate", "trace", tiny_bundle, "--target", file, *options).data
    assert (data["answered"], data["costs"]) == (5, "steps as calibrated")
    assert data["ttft_seconds"]["p50"] >= serving.request_seconds


def test_what_a_prompt_takes_more_after_a_rest_is_kept_apart() -> None:
    prompts = serving_measure._Prompts(rested=[(0.5, 3.0), (0.5, 9.0), (0.25, 2.75)], at_once=[(0.5, 2.0)])
    alone = ProgramSeconds(0.5, context_seconds=1.0)
    assert serving_measure._as_served(alone, prompts, 0.5) == ProgramSeconds(1.0, 1.0, 1.0)
    faster = serving_measure._Prompts(rested=[(0.5, 1.5)], at_once=[(0.5, 2.0)])
    assert serving_measure._as_served(alone, faster, 0.5) == ProgramSeconds(1.0, 1.0, 0.0)


def test_a_bundle_that_generates_nothing_is_one_line(plait, bundle_file: Path) -> None:
    assert plait("bundle", bundle_file).code == 0
    made = bundle_file.parent / "small.plait"
    assert "no model of this bundle generates text" in plait("calibrate", "--bundle", made).complaint()
    assert "is not a plait bundle" in plait("calibrate", "--bundle", bundle_file.parent).complaint()
