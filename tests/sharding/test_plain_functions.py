"""Plain JAX functions, sharded, against themselves: as planned, and divided at random."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from plain_functions import FUNCTIONS, TARGET

import plait
from plait.compiler.mesh import Mesh
from plait.compiler.partition.formulate import formulate
from plait.compiler.partition.problem import INFINITE_COST, Edge
from plait.compiler.partition.skeleton import skeleton
from plait.compiler.partition.solver import solve
from plait.compiler.trace import trace
from plait.compiler.verify.inputs import random_inputs
from plait.compiler.verify.partition import verify_sharding

SETUPS = (((2,), False), ((2, 2), True))  # mesh, whether in double precision


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_planned_function_computes_and_sends_what_its_plan_says(name):
    mesh, is_double = SETUPS[list(FUNCTIONS).index(name) % 2]
    with jax.enable_x64(is_double):
        function, arguments = FUNCTIONS[name]()
        plan = plait.partition(function, *arguments, mesh=mesh, target=TARGET, time_limit_seconds=5)
        seen = plan.verify()
    assert seen.predicted == seen.compiled
    assert seen.difference <= (1e-9 if is_double else 1e-5)
    assert plan.lower_bound <= plan.cost


RANDOM = [
    *((name, 0) for name in ("layer", "lookups", "updates", "orders", "shapes", "convolution by groups", "randomness")),
    *(("masked product", seed) for seed in range(4)),
]


@pytest.mark.parametrize(("name", "seed"), RANDOM, ids=[f"{name}-{seed}" for name, seed in RANDOM])
def test_whatever_is_divided_the_results_stay(name, seed):
    mesh = Mesh(("x", "y"), (2, 2))
    with jax.enable_x64(True):
        function, arguments = FUNCTIONS[name]()
        traced = trace(function, *arguments)
        sharding = random_sharding(traced, mesh, seed)
        seen = verify_sharding(traced, sharding, random_inputs(traced.graph, seed=seed), TARGET.network)
    assert seen.difference <= 1e-9
    assert seen.num_collectives > 0


def random_sharding(traced, mesh, seed):
    """Returns a sharding that costs nothing but luck: the strategies' costs are drawn."""
    formulation = formulate(skeleton(traced), mesh, TARGET, "float64")
    rng, problem = np.random.default_rng(seed), formulation.problem
    costs = [np.where(own >= INFINITE_COST, own, rng.random(own.size)) for own in problem.costs]
    edges = [
        Edge(edge.source, edge.target, np.where(edge.costs >= INFINITE_COST, edge.costs, 0.0)) for edge in problem.edges
    ]
    drawn = solve(replace(problem, costs=costs, edges=edges), time_limit_seconds=2)
    return formulation.sharding(drawn.assignment)
