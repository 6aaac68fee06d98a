import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.compiler.mesh import Mesh
from plait.compiler.partition.merge import Run
from plait.compiler.partition.search import partition
from plait.compiler.partition.stages import balanced_cuts, cut_points, handed_over, handed_over_bytes
from plait.compiler.target import load_target
from plait.compiler.trace import trace

UNITS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 3)), min_size=1, max_size=7)


def brute_force(seconds, held, handover, num_stages, budget):
    best = None
    for inner in itertools.combinations(range(1, len(seconds)), num_stages - 1):
        cuts = (0, *inner, len(seconds))
        stages = list(itertools.pairwise(cuts))
        if any(sum(held[a:b]) > budget for a, b in stages):
            continue
        slowest = max(sum(seconds[a:b]) + handover[a] for a, b in stages)
        best = slowest if best is None else min(best, slowest)
    return best


@settings(max_examples=300, deadline=None)
@given(UNITS, st.integers(1, 5), st.integers(0, 80))
def test_the_slowest_stage_is_as_fast_as_any_cut_makes_it(units, num_stages, budget):
    seconds, held, handover = (list(part) for part in zip(*units, strict=True))
    handover[0] = 0
    cuts = balanced_cuts(seconds, held, num_stages, budget_bytes=budget, handover_seconds=handover)
    expected = brute_force(seconds, held, handover, num_stages, budget)
    if cuts is None:
        assert expected is None
        return
    stages = list(itertools.pairwise(cuts))
    assert (cuts[0], cuts[-1], len(stages)) == (0, len(units), num_stages)
    assert all(sum(held[a:b]) <= budget for a, b in stages)
    assert max(sum(seconds[a:b]) + handover[a] for a, b in stages) == pytest.approx(expected)


def test_a_graph_is_cut_between_repetitions_and_at_the_ends_of_runs():
    assert cut_points([Run(begin=2, period=4, repetitions=3)], 20) == (0, 2, 6, 10, 14, 20)


def test_a_run_is_found_wherever_it_begins():
    from plait.compiler.partition.merge import find_runs

    keys = np.array([9, 8, *[1, 2, 3, 4, 5] * 4, 7, *[1, 1, 2, 6] * 2])
    assert find_runs(keys) == (Run(2, 5, 4), Run(23, 4, 2))


def test_what_crosses_a_cut_is_what_is_made_before_it_and_read_behind_it():
    def function(x):
        a = jnp.sin(x)
        b = jnp.cos(a)[:4]
        return b + a[:4] * 2

    graph = trace(function, jax.ShapeDtypeStruct((8, 4), jnp.float32), name="function")
    plan = partition(graph, load_target("cpu"), dtype="float32", mesh=Mesh(("x",), (2,)))
    cuts = range(len(graph.graph.operations) + 1)
    sizes = [sum(handed_over(graph.graph, plan.sharding, cut).values()) for cut in cuts]
    assert handed_over_bytes(graph.graph, plan.sharding, cuts) == sizes
    assert max(sizes) > 0
    assert sizes[0] == sizes[-1] == 0


def test_devices_without_a_limit_are_planned_for_too():
    function = trace(jnp.sin, jax.ShapeDtypeStruct((64,), jnp.float32), name="sin")
    plan = partition(function, load_target("cpu"), dtype="float32", num_devices=32)
    assert plan.status == "optimal"
