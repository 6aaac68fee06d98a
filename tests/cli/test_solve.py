from __future__ import annotations

import json
from pathlib import Path

import pytest

from plait.compiler.verify.sharding import bound_from_duals, evaluate

# Node 1 would rather use strategy 1, which does not fit beside node 0's cheaper one.
PROBLEM = {
    "nodes": {"intervals": [[0, 4], [2, 6]], "costs": [[1, 9], [5, 2]], "usages": [[3, 1], [2, 4]]},
    "edges": {"nodes": [[0, 1]], "costs": [[0, 0, 1, 0]]},
    "usage_limit": 5,
}


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    path = tmp_path / "problem.json"
    path.write_text(json.dumps({"problem": PROBLEM}))
    return path


def test_the_answer_is_checked_and_printed_as_json(plait, problem: Path) -> None:
    data = plait("solve", "sharding", problem, "--json", "--time-limit", "20").data
    assert (data["status"], data["cost"], data["lower_bound"], data["gap"]) == ("optimal", 6, 6, 0)
    assert (data["assignment"], data["verified"], data["infeasible"]) == ([0, 0], True, None)
    assert evaluate(PROBLEM, data["assignment"]).cost == 6
    assert 0 <= data["seconds"] < 20


def test_the_answer_is_printed_for_people(plait, problem: Path) -> None:
    text = plait("solve", "sharding", problem).out
    assert "status            optimal" in text
    assert "cost              6" in text
    assert "verified          yes" in text


def test_the_certificate_proves_the_bound(plait, problem: Path, tmp_path: Path) -> None:
    path = tmp_path / "dual.json"
    data = plait("solve", "sharding", problem, "--json", "--certificate", path).data
    certificate = json.loads(path.read_text())
    assert certificate["bound"] == pytest.approx(data["certified_bound"])
    assert data["certified_bound"] - 1e-9 <= bound_from_duals(PROBLEM, certificate) <= 6


def test_an_infeasible_problem_says_when_and_how_much_is_short(plait, problem: Path) -> None:
    problem.write_text(json.dumps(PROBLEM | {"usage_limit": 2}))
    result = plait("solve", "sharding", problem, "--json")
    assert result.code == 1
    why = json.loads(result.out)["infeasible"]
    assert (why["reason"], why["time"], why["demand"], why["limit"], why["shortfall"]) == ("memory", 2, 3, 2, 1)
    assert why["largest"] == [{"node": 1, "usage": 2}, {"node": 0, "usage": 1}]
    assert "at time 2 at least 3 is used, 2 allowed (short 1)" in result.err


def test_a_file_that_is_not_there_is_one_line(plait, tmp_path: Path) -> None:
    assert "cannot read" in plait("solve", "sharding", tmp_path / "none.json").complaint()


def test_a_malformed_file_is_one_line(plait, problem: Path) -> None:
    problem.write_text(json.dumps(PROBLEM | {"usage_limit": "much"}))
    assert "the usage limit is 'much', not a number or null" in plait("solve", "sharding", problem).complaint()


def test_a_certificate_that_cannot_be_written_is_one_line(plait, problem: Path, tmp_path: Path) -> None:
    path = tmp_path / "none" / "dual.json"
    assert "cannot write" in plait("solve", "sharding", problem, "--certificate", path).complaint()
