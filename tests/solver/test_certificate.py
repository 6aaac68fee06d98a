"""The checker of bounds and assignments: it finds fault where there is some, and any dual values give a bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sharding_problems import SEEDS, document_of, optimum, random_problem

from plait.compiler.partition.solver import solve
from plait.compiler.verify.sharding import bound_from_duals, evaluate
from plait.errors import VerificationError

DOCUMENT = {
    "nodes": {"intervals": [[0, 4], [2, 6]], "costs": [[3, 1], [5, 10**18]], "usages": [[1, 4], [2, 2]]},
    "edges": {"nodes": [[0, 1], [1, 0], [0, 0]], "costs": [[0, 0, 7, 0], [1, 2, 3, 4], [10, 99, 99, 20]]},
    "usage_limit": 5,
}


def test_costs_and_usages_are_added_up() -> None:
    found = evaluate(DOCUMENT, [0, 0])
    assert found.cost == 3 + 5 + 0 + 1 + 10
    assert found.usage == {0: 1, 2: 3, 4: 2, 6: 0}
    assert (found.peak, found.is_allowed) == (3, True)


@pytest.mark.parametrize(
    ("assignment", "cost"), [([1, 0], 1 + 5 + 7 + 2 + 20), ([0, 1], float("inf"))], ids=["memory", "forbidden"]
)
def test_what_is_not_allowed_is_said(assignment: list[int], cost: float) -> None:
    found = evaluate(DOCUMENT, assignment)
    assert (found.cost, found.is_allowed) == (cost, False)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [([0], "1 strategies are given for 2 nodes"), ([0, 2], "node 1 has 2 strategies"), ([-1, 0], "node 0 has 2")],
    ids=["length", "beyond", "negative"],
)
def test_what_is_no_assignment_is_refused(assignment: list[int], message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        evaluate(DOCUMENT, assignment)


@given(SEEDS, st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_any_dual_values_give_a_bound(seed: int, noise: int) -> None:
    problem = random_problem(seed)
    document, random = document_of(problem), np.random.default_rng(noise)
    best = optimum(problem, document)
    messages = [
        [edge.source, edge.target, random.normal(size=edge.costs.shape[0]), random.normal(size=edge.costs.shape[1])]
        for edge in {frozenset((edge.source, edge.target)): edge for edge in problem.edges}.values()
        if edge.source != edge.target
    ]
    prices = {} if problem.usage_limit is None else {str(time): random.random() for time in range(8)}
    assert bound_from_duals(document, {"prices": prices, "steps": [], "messages": messages}) <= best * (1 + 1e-9) + 1e-9


@given(SEEDS, st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_a_falsified_certificate_is_refused_or_still_a_bound(seed: int, noise: int) -> None:
    problem = random_problem(seed)
    certificate, document = solve(problem, time_limit_seconds=10).certificate, document_of(problem)
    if certificate is None:
        return
    data, random = certificate.to_json(), np.random.default_rng(noise)
    steps = [list(step) for step in data["steps"]]  # type: ignore[attr-defined]
    for step in steps:
        step[1:] = [int(random.integers(0, 4)) if random.random() < 0.2 else part for part in step[1:]]
    try:
        bound = bound_from_duals(document, data | {"steps": [step for step in steps if random.random() < 0.9]})
    except VerificationError:
        return
    assert bound <= optimum(problem, document) * (1 + 1e-9) + 1e-9


FALSE = {
    "a negative price": ({"prices": {"0": -1.0}, "steps": [], "messages": []}, "negative price"),
    "an unknown step": ({"prices": {}, "steps": [["guess", 1]], "messages": []}, "a step 'guess'"),
    "a fold of nothing": ({"prices": {}, "steps": [["fold", 0, 1]], "messages": []}, "which does not decide it"),
    "a wrong message": ({"prices": {}, "steps": [], "messages": [[0, 1, [1], [1]]]}, "does not fit the edge"),
    "no such edge": ({"prices": {}, "steps": [["split", 1, 5]], "messages": []}, "which there is not"),
}


@pytest.mark.parametrize(("certificate", "message"), FALSE.values(), ids=FALSE.keys())
def test_a_certificate_of_something_else_is_refused(certificate: dict[str, object], message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        bound_from_duals(DOCUMENT, certificate)
