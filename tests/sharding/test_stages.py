import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.compiler.partition.merge import Run
from plait.compiler.partition.stages import balanced_cuts, cut_points

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
