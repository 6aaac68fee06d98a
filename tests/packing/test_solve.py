from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packing_problems import cut_rectangle, least_height

from plait.compiler.memory.packing import Buffer, read_buffers, solve_packing
from plait.compiler.memory.packing.canonical import EXHAUSTED, FOUND, search
from plait.compiler.memory.packing.instance import make_instance
from plait.compiler.memory.packing.portfolio import make_buffers
from plait.compiler.memory.packing.state import make_state
from plait.compiler.verify.packing import verify_load, verify_packing
from plait.errors import ConfigurationError

INSTANCES = Path(__file__).parents[3] / "shared" / "data" / "minimalloc"
CAPACITY = 1_048_576

# Live at most 4 bytes at once, and yet a packing needs 5: found by trying problems at random.
TIGHT = [
    Buffer(str(number), *span)
    for number, span in enumerate(
        [(6, 8, 2), (7, 8, 2), (0, 4, 2), (0, 3, 2), (4, 5, 1), (4, 7, 1), (3, 7, 1), (3, 6, 1), (5, 6, 1)]
    )
]


@st.composite
def problems(draw: st.DrawFn, max_alignment: int = 1) -> list[Buffer]:
    """A few buffers of few times and sizes, which touch each other in many ways."""
    num_times = draw(st.integers(2, 7))
    sizes = st.integers(1, draw(st.integers(1, 5)))
    buffers: list[Buffer] = []
    for number in range(draw(st.integers(1, 8))):
        lower = draw(st.integers(0, num_times - 1))
        upper = draw(st.integers(lower + 1, num_times))
        buffers.append(Buffer(str(number), lower, upper, draw(sizes), draw(st.integers(1, max_alignment))))
    return buffers


@st.composite
def crowded(draw: st.DrawFn) -> list[Buffer]:
    """A few buffers that leave little room below the load, so that now and then there is no packing of its height."""
    load, loads, buffers = draw(st.integers(3, 7)), [0] * 8, list[Buffer]()
    spans = st.tuples(st.integers(0, 7), st.integers(1, 4), st.integers(1, 4))
    for lower, width, size in draw(st.lists(spans, min_size=20, max_size=30)):
        upper = min(lower + width, 8)
        if len(buffers) < 9 and max(loads[lower:upper]) + size <= load:
            loads[lower:upper] = [each + size for each in loads[lower:upper]]
            buffers.append(Buffer(str(len(buffers)), lower, upper, size))
    return buffers


def load_of(buffers: list[Buffer]) -> int:
    return max(sum(b.size for b in buffers if b.lower <= time < b.upper) for time in range(8))


@settings(max_examples=300, deadline=None)
@given(problems())
def test_the_least_height_is_found_and_proven(buffers: list[Buffer]) -> None:
    answer, least = solve_packing(buffers, time_limit_seconds=20), least_height(buffers)
    assert (answer.status, answer.height, answer.lower_bound, answer.gap) == ("optimal", least, least, 0)
    verify_packing(buffers, answer.offsets, least)


@settings(max_examples=300, deadline=None)
@given(problems(max_alignment=4), st.integers(-2, 1))
def test_a_capacity_is_met_or_proven_too_small(buffers: list[Buffer], spare: int) -> None:
    least = least_height(buffers)
    capacity = max(least + spare, 0)
    answer = solve_packing(buffers, capacity, 20)
    if spare >= 0:
        assert answer.status in ("optimal", "feasible")
        assert answer.height is not None
        verify_packing(buffers, answer.offsets, answer.height, capacity)
        return
    assert (answer.status, answer.height, dict(answer.offsets)) == ("infeasible", None, {})
    assert answer.binding is not None
    assert capacity < answer.lower_bound <= least
    assert answer.binding.demand_bytes == answer.lower_bound
    assert answer.binding.reason == ("load" if capacity < load_of(buffers) else "search")
    verify_load(buffers, answer.binding.moment, load_of(buffers))


@settings(max_examples=500, deadline=None)
@given(st.one_of(crowded(), problems(max_alignment=3)), st.integers(-3, 0), st.booleans(), st.integers(0, 2**32 - 1))
def test_the_search_agrees_with_trying_all_orders(
    buffers: list[Buffer], spare: int, is_urgent: bool, seed: int
) -> None:
    least = least_height(buffers)
    instance = make_instance(buffers)
    ceiling = (least + spare) // instance.unit
    state = make_state(len(buffers), len(instance.times))
    key = np.random.default_rng(seed).standard_normal(len(buffers))
    stop = np.zeros(1, np.int64)
    outcome = search(make_buffers(instance), state, ceiling, key, is_urgent, 0.1 * (seed % 2), 2**40, stop)
    assert outcome == (EXHAUSTED if spare < 0 else FOUND)
    if outcome == FOUND:
        offsets = {buffer.id: int(offset) * instance.unit for buffer, offset in zip(buffers, state.offset, strict=True)}
        verify_packing(buffers, offsets, max(offsets[buffer.id] + buffer.size for buffer in buffers), least)


@pytest.mark.parametrize("seed", range(6))
def test_a_rectangle_cut_at_random_is_put_together_again(seed: int) -> None:
    buffers = cut_rectangle(seed, 60, 40, 64)
    answer = solve_packing(buffers, 64, 30)
    assert (answer.status, answer.height) == ("optimal", 64)
    verify_packing(buffers, answer.offsets, 64, 64)


@pytest.mark.skipif(not INSTANCES.is_dir(), reason="the benchmark's instances are not here")
@pytest.mark.parametrize("name", ["C", "G", "K"])
def test_instances_of_the_benchmark_are_packed(name: str) -> None:
    buffers = read_buffers(INSTANCES / f"{name}.{CAPACITY}.csv")
    answer = solve_packing(buffers, CAPACITY, 60)
    assert answer.height is not None
    verify_packing(buffers, answer.offsets, answer.height, CAPACITY)


@pytest.mark.skipif(not INSTANCES.is_dir(), reason="the benchmark's instances are not here")
def test_less_than_the_live_load_is_refused_at_once() -> None:
    buffers = read_buffers(INSTANCES / f"A.{CAPACITY}.csv")
    answer = solve_packing(buffers, CAPACITY - 1, 60)
    assert answer.status == "infeasible"
    assert answer.seconds < 1
    assert answer.binding is not None
    assert (answer.binding.reason, answer.binding.shortfall_bytes) == ("load", 1)
    verify_load(buffers, answer.binding.moment, answer.lower_bound)
    assert sum(size for _, size in answer.binding.live) == CAPACITY


def test_what_fits_the_load_and_yet_does_not_fit_is_proven_by_search() -> None:
    least = least_height(TIGHT)
    assert least == load_of(TIGHT) + 1
    answer = solve_packing(TIGHT, least - 1)
    assert answer.status == "infeasible"
    assert answer.binding is not None
    assert answer.binding.reason == "search"
    assert f"no packing is lower than {least} bytes, all were tried" in answer.binding.text
    assert solve_packing(TIGHT).status == "optimal"


def test_many_buffers_are_answered_in_time() -> None:
    buffers = cut_rectangle(1, 2_000, 1_000, 1_000)
    many = [
        Buffer(f"{copy}.{one.id}", one.lower + copy * 900, one.upper + copy * 900, one.size)
        for copy in range(50)
        for one in buffers
    ]
    start = time.monotonic()
    answer = solve_packing(many, time_limit_seconds=5)
    assert time.monotonic() - start < 40  # compiling included
    assert answer.height is not None
    verify_packing(many, answer.offsets, answer.height)


@pytest.mark.parametrize("capacity", [None, 0, 7])
def test_nothing_needs_nothing(capacity: int | None) -> None:
    assert solve_packing([], capacity).height == 0
    assert solve_packing([Buffer("a", 0, 1, 0)], capacity).offsets == {"a": 0}


def test_the_time_limit_is_kept() -> None:
    buffers = cut_rectangle(3, 400, 300, 1_024)
    solve_packing(buffers[:50], time_limit_seconds=1)  # compiles
    answer = solve_packing(buffers, time_limit_seconds=2)
    assert answer.seconds < 4
    assert answer.status in ("optimal", "feasible")


def test_a_negative_capacity_and_equal_ids_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="the capacity is -1"):
        solve_packing([], -1)
    with pytest.raises(ConfigurationError, match="two buffers 'a'; ids are distinct"):
        solve_packing([Buffer("a", 0, 1, 1), Buffer("a", 1, 2, 1)])
