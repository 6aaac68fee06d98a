"""The solver against trying everything, on problems at random, by each of its ways."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from sharding_problems import SEEDS, document_of, optimum, random_problem

from plait.compiler.partition.problem import Edge, Problem, read_problem
from plait.compiler.partition.solver import driver, solve
from plait.compiler.verify.sharding import bound_from_duals, evaluate

INSTANCES = Path(__file__).parents[3] / "shared" / "data" / "iopddl"


def check_against_everything(problem: Problem) -> None:
    document = document_of(problem)
    best, solution = optimum(problem, document), solve(problem, time_limit_seconds=20)
    if best == np.inf:
        assert solution.status == "infeasible"
        assert solution.infeasible is not None
        assert "\n" not in solution.infeasible.text
        return
    assert solution.status == "optimal"
    assert solution.cost == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert solution.gap == 0
    assert evaluate(document, solution.assignment).is_allowed
    assert solution.certificate is not None
    bound = bound_from_duals(document, solution.certificate.to_json())
    assert bound <= best * (1 + 1e-9) + 1e-12
    assert bound >= solution.certificate.bound - 1e-9 * max(abs(best), 1e-6)


@given(SEEDS)
@settings(max_examples=300, deadline=None)
def test_finds_the_optimum(seed: int) -> None:
    check_against_everything(random_problem(seed))


@given(SEEDS)
@settings(max_examples=100, deadline=None)
def test_finds_the_optimum_by_programs_alone(seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_may_ignore_memory", lambda problem: False)
        patch.setattr("plait.compiler.partition.solver.presolve._MAX_ELIMINATED", 0)
        patch.setattr("plait.compiler.partition.solver.presolve._MAX_COMPARED", 0)
        check_against_everything(random_problem(seed, most_nodes=7))


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_ascent_and_search_find_allowed_assignments_and_true_bounds(seed: int) -> None:
    problem = random_problem(seed)
    document = document_of(problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_may_ignore_memory", lambda problem: False)
        patch.setattr(driver, "_MAX_PROGRAM", 0)
        patch.setattr("plait.compiler.partition.solver.presolve._MAX_ELIMINATED", 0)
        patch.setattr("plait.compiler.partition.solver.presolve._MAX_COMPARED", 0)
        solution = solve(problem, time_limit_seconds=0.5)
    best = optimum(problem, document)
    assert solution.lower_bound <= best * (1 + 1e-9)
    if solution.assignment:
        assert evaluate(document, solution.assignment).is_allowed
        assert solution.cost >= best * (1 - 1e-9)
    if solution.certificate is not None:
        assert bound_from_duals(document, solution.certificate.to_json()) <= best * (1 + 1e-9) + 1e-12


def chain(num_nodes: int, num_strategies: int, seed: int, limit: float | None) -> Problem:
    random = np.random.default_rng(seed)
    shape = (num_strategies, num_strategies)
    pairs = [(node, max(0, node - step)) for node in range(1, num_nodes) for step in (1, 3)]
    return Problem(
        costs=[random.random(num_strategies) * 1e-3 for _ in range(num_nodes)],
        usages=[random.integers(1, 100, num_strategies).astype(float) for _ in range(num_nodes)],
        intervals=[(node, node + 4) for node in range(num_nodes)],
        edges=[Edge(source, target, random.random(shape) * 1e-3) for source, target in pairs],
        usage_limit=limit,
    )


@pytest.mark.parametrize("limit", [None, 400.0, 150.0], ids=["none", "loose", "binding"])
def test_costs_in_seconds_and_their_multiples_give_one_assignment(limit: float | None) -> None:
    problem = chain(20, 6, 0, limit)
    larger = Problem(
        [costs * 1e12 for costs in problem.costs],
        problem.usages,
        problem.intervals,
        [Edge(edge.source, edge.target, edge.costs * 1e12) for edge in problem.edges],
        limit,
    )
    first, second = solve(problem, time_limit_seconds=20), solve(larger, time_limit_seconds=20)
    assert first.status == second.status == "optimal"
    assert first.assignment == second.assignment
    assert evaluate(document_of(problem), first.assignment).is_allowed


def test_a_problem_without_nodes_costs_nothing() -> None:
    solution = solve(Problem([], [], [], [], 10), time_limit_seconds=1)
    assert (solution.status, solution.cost, solution.lower_bound, solution.assignment) == ("optimal", 0, 0, ())


def test_tells_when_where_and_by_how_much_memory_is_short() -> None:
    problem = Problem(
        costs=[np.zeros(2), np.zeros(1), np.zeros(1)],
        usages=[np.array([70.0, 60.0]), np.array([50.0]), np.array([500.0])],
        intervals=[(0, 5), (3, 8), (9, 9)],
        edges=[],
        usage_limit=100,
        names=("weights", "state", "nothing"),
    )
    solution = solve(problem, time_limit_seconds=5)
    assert solution.status == "infeasible"
    why = solution.infeasible
    assert why is not None
    assert (why.reason, why.time, why.demand, why.limit, why.shortfall) == ("memory", 3, 110, 100, 10)
    assert why.largest == ((0, 60.0), (1, 50.0))
    assert "node 0 (weights) 60" in why.text


def test_names_the_nodes_that_forbid_each_other() -> None:
    forbidden = np.full((2, 2), np.inf)
    problem = Problem([np.zeros(2)] * 3, [np.zeros(2)] * 3, [(0, 1)] * 3, [Edge(1, 2, forbidden)], None)
    why = solve(problem, time_limit_seconds=5).infeasible
    assert why is not None
    assert why.reason == "conflict"
    assert set(why.nodes) == {1, 2}


@pytest.mark.parametrize("seconds", [0.3, 1.0], ids=["0.3 s", "1 s"])
def test_keeps_the_time_limit_and_still_answers(seconds: float) -> None:
    problem = chain(120, 25, 1, 120.0)
    begin = time.monotonic()
    solution = solve(problem, time_limit_seconds=seconds)
    assert time.monotonic() - begin < seconds + 2.5
    assert solution.status in ("optimal", "feasible", "unknown")
    assert solution.lower_bound <= solution.cost


@pytest.mark.skipif(not INSTANCES.is_dir(), reason="the contest's instances are not here")
@pytest.mark.parametrize(
    ("name", "cost"), [("example.json", 445), ("B.json.gz", 532_843), ("G.json.gz", 217_039)], ids=["example", "B", "G"]
)
def test_proves_the_optimum_of_the_contests_small_instances(name: str, cost: int) -> None:
    solution = solve(read_problem(INSTANCES / name), time_limit_seconds=60)
    assert (solution.status, solution.cost, solution.lower_bound) == ("optimal", cost, cost)
