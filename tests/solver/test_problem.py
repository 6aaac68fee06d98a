"""The contest's files: what is written is read again, and what is malformed is refused in one line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from sharding_problems import SEEDS, document_of, random_problem

from plait.compiler.partition.problem import Edge, Problem, read_problem, write_problem
from plait.errors import ConfigurationError

Change: TypeAlias = Callable[[dict[str, dict]], object]


@given(SEEDS)
@settings(max_examples=50, deadline=None)
def test_a_written_problem_is_read_as_it_was(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    problem = random_problem(seed)
    for name in ("problem.json", "problem.json.gz"):
        path = tmp_path_factory.mktemp("problem") / name
        write_problem(problem, path)
        assert document_of(read_problem(path)) == document_of(problem)


def test_names_are_kept_and_other_readers_can_ignore_them(tmp_path: Path) -> None:
    strategies = (("whole", "split"), ("whole",))
    problem = Problem(
        [np.zeros(2), np.zeros(1)], [np.zeros(2), np.zeros(1)], [(0, 1)] * 2, [], 5, ("a", "b"), strategies
    )
    write_problem(problem, tmp_path / "named.json")
    assert read_problem(tmp_path / "named.json").names == ("a", "b")
    assert read_problem(tmp_path / "named.json").strategy_names == strategies
    assert set(json.loads((tmp_path / "named.json").read_text())["problem"]["nodes"]) == {
        "intervals",
        "costs",
        "usages",
    }


def good() -> dict[str, dict]:
    return {
        "nodes": {"intervals": [[0, 2], [1, 3]], "costs": [[1, 2], [3]], "usages": [[1, 1], [2]]},
        "edges": {"nodes": [[0, 1]], "costs": [[4, 5]]},
        "usage_limit": 9,  # pyright: ignore[reportReturnType]
    }


def put(*keys: str | int, value: object) -> Change:
    def change(document: dict[str, dict]) -> None:
        inner: object = document
        for key in keys[:-1]:
            inner = inner[key]  # type: ignore[index]
        inner[keys[-1]] = value  # type: ignore[index]

    return change


MALFORMED = {
    "no nodes": (lambda document: document.pop("nodes"), "'nodes' is missing"),
    "no limit": (lambda document: document.pop("usage_limit"), "'usage_limit' is missing"),
    "nodes are a list": (put("nodes", value=[]), "'nodes' is \\[\\], not an object"),
    "a cost too few": (
        put("nodes", "usages", 0, value=[1]),
        "node 0 has costs of shape \\[2\\] and usages of shape \\[1\\]",
    ),
    "a node too few": (
        put("nodes", "costs", value=[[1, 2]]),
        "edge 0 joins nodes \\[0, 1\\]; nodes are numbered 0 to 0",
    ),
    "an interval too few": (put("nodes", "intervals", value=[[0, 2]]), "2 costs, 2 usages and 1 intervals"),
    "no strategies": (put("nodes", "costs", 1, value=[]), "edge 0 has 2 costs; its nodes' strategies make 0"),
    "a text for a cost": (
        put("nodes", "costs", 0, value=["1", "2"]),
        "the costs of node 0 is .*, not a list of numbers",
    ),
    "a truth for a cost": (
        put("nodes", "costs", 0, value=[True, False]),
        "the costs of node 0 .* not a list of numbers",
    ),
    "nested costs": (put("nodes", "costs", 0, value=[[1], [2]]), "the costs of node 0 is .*, not a list of numbers"),
    "ragged costs": (put("nodes", "costs", 0, value=[[1], 2]), "the costs of node 0 is .*, not a list of numbers"),
    "no number": (put("nodes", "costs", 0, 0, value=float("nan")), "node 0 has a cost that is no number"),
    "a negative infinity": (put("edges", "costs", 0, 0, value=-float("inf")), "edge 0 has a cost that is no number"),
    "a negative usage": (put("nodes", "usages", 1, value=[-1]), "node 1 has a usage that is not a number of 0 or more"),
    "an interval backwards": (put("nodes", "intervals", 0, value=[2, 0]), "node 0 lives from 2 to 0"),
    "an interval of one": (
        put("nodes", "intervals", 0, value=[2]),
        "the interval of node 0 is \\[2\\], not two integers",
    ),
    "a huge time": (put("nodes", "intervals", 0, value=[0, 10**30]), "the interval of node 0 .* integers of 64 bits"),
    "a negative node": (put("edges", "nodes", 0, value=[-1, 1]), "edge 0 joins nodes \\[-1, 1\\]; .* 0 to 1"),
    "a node beyond": (put("edges", "nodes", 0, value=[0, 2]), "edge 0 joins nodes \\[0, 2\\]; .* 0 to 1"),
    "half a node": (put("edges", "nodes", 0, value=[0.5, 1]), "the nodes of edge 0 is \\[0.5, 1\\], not two integers"),
    "an edge's cost too few": (put("edges", "costs", 0, value=[4]), "edge 0 has 1 costs; its nodes' strategies make 2"),
    "an edge too few": (put("edges", "costs", value=[]), "'edges' has 1 nodes and 0 costs"),
    "a text for a limit": (put("usage_limit", value="9"), "the usage limit is '9', not a number or null"),
}


@pytest.mark.parametrize(("change", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_problem_is_refused(tmp_path: Path, change: Change, message: str) -> None:
    document = good()
    change(document)
    (tmp_path / "bad.json").write_text(json.dumps(document))
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_problem(tmp_path / "bad.json")
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


FILES = {
    "nothing": (b"", "is not JSON"),
    "no JSON": (b"nodes:", "is not JSON"),
    "no text": (b"\xff\xfe\x00\xd8", "is not JSON"),
    "another thing": (b"[1, 2]", "the file is \\[1, 2\\], not an object"),
    "nested too deep": (b"[" * 200_000, "is nested too deep"),
    "a cut archive": (gzip.compress(json.dumps(good()).encode())[:-20], "the compressed file is damaged"),
    "a spoilt archive": (b"\x1f\x8b" + b"\x00" * 40, "cannot read"),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES.keys())
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match=message):
        read_problem(tmp_path / "bad.json")


def test_a_limit_of_null_is_none(tmp_path: Path) -> None:
    (tmp_path / "free.json").write_text(json.dumps(good() | {"usage_limit": None}))
    assert read_problem(tmp_path / "free.json").usage_limit is None


@pytest.mark.parametrize(
    ("edge", "message"),
    [(Edge(0, 3, np.zeros((1, 1))), "edge 0 joins nodes"), (Edge(0, 0, np.zeros((2, 1))), "edge 0 has costs")],
    ids=["node", "shape"],
)
def test_a_problem_that_contradicts_itself_is_refused(edge: Edge, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Problem([np.zeros(1)], [np.zeros(1)], [(0, 1)], [edge], None)
