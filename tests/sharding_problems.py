"""Small sharding problems at random, and their optimum by trying everything."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
from hypothesis import strategies as st

from plait.compiler.partition.problem import Edge, Problem
from plait.compiler.verify.sharding import evaluate

SEEDS = st.integers(0, 2**32 - 1)


def random_problem(seed: int, *, most_nodes: int = 6, most_strategies: int = 4) -> Problem:
    """Returns a problem with parallel edges, edges of a node with itself, forbidden entries, tight and loose limits."""
    random = np.random.default_rng(seed)
    counts = random.integers(1, most_strategies + 1, random.integers(1, most_nodes + 1)).tolist()
    is_integral, share = random.random() < 0.5, random.choice([0.0, 0.1, 0.3])

    def costs(*shape: int) -> np.ndarray:
        values = random.integers(0, 20, shape).astype(float) if is_integral else random.random(shape) * 1e-4
        values[random.random(shape) < share] = random.choice([np.inf, 1e18])
        return values

    ends = random.integers(0, len(counts), (random.integers(0, 2 * len(counts) + 1), 2)).tolist()
    spans = np.sort(random.integers(0, 8, (len(counts), 2)), axis=1).tolist()
    return Problem(
        costs=[costs(count) for count in counts],
        usages=[random.integers(0, 10, count).astype(float) for count in counts],
        intervals=[(begin, end) for begin, end in spans],
        edges=[Edge(source, target, costs(counts[source], counts[target])) for source, target in ends],
        usage_limit=None if random.random() < 0.2 else float(random.integers(0, 8 * len(counts))),
    )


def document_of(problem: Problem) -> dict[str, object]:
    """Returns a problem as the contest's JSON, made without the code that writes files."""

    def numbers(values: np.ndarray) -> list[float]:
        return [int(value) if value == int(value) else value for value in np.minimum(values, 1e18).ravel().tolist()]

    return {
        "nodes": {
            "intervals": [list(interval) for interval in problem.intervals],
            "costs": [numbers(costs) for costs in problem.costs],
            "usages": [numbers(usages) for usages in problem.usages],
        },
        "edges": {
            "nodes": [[edge.source, edge.target] for edge in problem.edges],
            "costs": [numbers(edge.costs) for edge in problem.edges],
        },
        "usage_limit": problem.usage_limit,
    }


def optimum(problem: Problem, document: Mapping) -> float:
    """Returns the least cost of all allowed assignments; infinite if there is none."""
    choices = itertools.product(*(range(costs.size) for costs in problem.costs))
    found = (evaluate(document, choice) for choice in choices)
    return min((each.cost for each in found if each.is_allowed), default=float("inf"))
