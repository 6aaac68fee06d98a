from __future__ import annotations

import json
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"

# `b` begins when `a` has ended, `c` is live with both.
BUFFERS = "id,lower,upper,size\na,0,2,6\nb,2,4,6\nc,1,3,4\n"


@pytest.fixture
def buffers(tmp_path: Path) -> Path:
    path = tmp_path / "buffers.csv"
    path.write_text(BUFFERS)
    return path


@pytest.mark.parametrize("arguments", [[], ["packing"]], ids=["solve", "packing"])
def test_help_is_the_golden_text(plait, arguments: list[str], monkeypatch, request) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    outcome = plait("solve", *arguments, "--help")
    golden = GOLDEN / f"help_{'_'.join(['solve', *arguments])}.txt"
    if request.config.getoption("--update-golden"):
        golden.write_text(outcome.out)
    assert (outcome.code, outcome.out) == (0, golden.read_text())


def test_the_answer_is_checked_and_printed_as_json(plait, buffers: Path) -> None:
    data = plait("solve", "packing", buffers, "--capacity", "10", "--json").data
    assert (data["status"], data["height"], data["lower_bound"], data["gap"]) == ("optimal", 10, 10, 0)
    assert (data["verified"], data["infeasible"]) == (True, None)
    assert data["offsets"]["a"] == data["offsets"]["b"] != data["offsets"]["c"]


def test_without_a_capacity_the_height_is_the_least(plait, buffers: Path) -> None:
    text = plait("solve", "packing", buffers).out
    assert "status       optimal" in text
    assert "height       10" in text
    assert "verified     yes" in text


def test_a_capacity_above_the_bound_is_feasible(plait, buffers: Path) -> None:
    buffers.write_text("lower,upper,size,alignment\n0,2,6,1\n0,2,4,8\n0,2,1,1\n")
    data = plait("solve", "packing", buffers, "--capacity", "13", "--json").data
    assert data["status"] == "feasible"
    assert 11 == data["lower_bound"] < data["height"] <= 13


def test_too_small_a_capacity_says_when_and_who_is_live(plait, buffers: Path) -> None:
    result = plait("solve", "packing", buffers, "--capacity", "9", "--json")
    assert result.code == 1
    data = json.loads(result.out)
    assert (data["status"], data["height"], data["offsets"], data["verified"]) == ("infeasible", None, {}, True)
    why = data["infeasible"]
    assert (why["reason"], why["time"], why["demand"], why["limit"], why["shortfall"]) == ("load", 1, 10, 9, 1)
    assert why["live"] == [{"id": "a", "size": 6}, {"id": "c", "size": 4}]
    assert "at time 1, 2 buffers of 10 bytes are live, 9 are allowed (short 1)" in result.err
    assert "raise the capacity to 10 bytes or end c before time 1" in result.err


def test_bad_input_is_one_line(plait, tmp_path: Path) -> None:
    assert "cannot read" in plait("solve", "packing", tmp_path / "none.csv").complaint()
    bad = tmp_path / "bad.csv"
    bad.write_text("id,start,end,size\n")
    assert "the columns are lower, upper and size" in plait("solve", "packing", bad).complaint()
    assert "--capacity" in plait("solve", "packing", bad, "--capacity", "-1").complaint()
