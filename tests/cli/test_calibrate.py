from __future__ import annotations

from pathlib import Path

import pytest

from plait.compiler import calibrate as calibration
from plait.compiler.calibrate import CalibrationSizes
from plait.compiler.target import load_target


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    small = CalibrationSizes(8, 64, 1 << 16, 1 << 12, 2, 1)
    monkeypatch.setattr(calibration, "CalibrationSizes", lambda: small)


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
