"""Who is hot, against all ways to choose."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.compiler.rack.residency import Candidate, choose_hot


def candidate(
    name: str, copies: int, rate: float, weights: Sequence[int], *, pin=None, window: int = 0, seconds: float = 0.0
) -> Candidate:
    return Candidate(
        models=(name,),
        windows=(window,),
        copies=(),
        num_copies=copies,
        requests_per_s=rate,
        switch_seconds=seconds or max(weights) / 1e3,
        pin=pin,
        weights_bytes=np.array(weights, np.int64),
    )


def fits(candidates: Sequence[Candidate], hot: Sequence[int], room: Sequence[int]) -> bool:
    """Whether hot copies and a slot for the largest warm one fit each device: the definition."""
    for device, limit in enumerate(room):
        held = sum(count * int(each.weights_bytes[device]) for each, count in zip(candidates, hot, strict=True))
        slot = max(
            (
                int(each.weights_bytes[device])
                for each, count in zip(candidates, hot, strict=True)
                if count < each.num_copies
            ),
            default=0,
        )
        if held + slot > limit:
            return False
    return True


def least_cost(candidates: Sequence[Candidate], room: Sequence[int]) -> float | None:
    ranges = [range(each.bounds[0], each.bounds[1] + 1) for each in candidates]
    costs = [
        sum((each.num_copies - count) * each.value for each, count in zip(candidates, hot, strict=True))
        for hot in itertools.product(*ranges)
        if fits(candidates, hot, room)
    ]
    return min(costs, default=None)


@st.composite
def knapsacks(draw: st.DrawFn) -> tuple[list[Candidate], list[int]]:
    num_devices = draw(st.integers(1, 3))
    sizes = st.lists(st.integers(0, 50), min_size=num_devices, max_size=num_devices).filter(any)
    candidates = [
        candidate(
            f"m{i}",
            draw(st.integers(1, 4)),
            draw(st.integers(0, 20)) / 4,
            draw(sizes),
            pin=draw(st.sampled_from([None, None, None, "hbm", "ddr"])),
        )
        for i in range(draw(st.integers(1, 4)))
    ]
    return candidates, draw(st.lists(st.integers(0, 250), min_size=num_devices, max_size=num_devices))


@settings(max_examples=150)
@given(knapsacks())
def test_the_cost_is_the_least_of_all_ways_to_choose(knapsack: tuple[list[Candidate], list[int]]) -> None:
    candidates, room = knapsack
    found = choose_hot(candidates, np.array(room, np.int64))
    least = least_cost(candidates, room)
    if least is None or found.status == "infeasible":
        assert least is None
        assert found.status == "infeasible"
        return
    hot = [group.num_hot for group in found.groups]
    assert fits(candidates, hot, room)
    assert found.status == "optimal"
    assert found.cost == pytest.approx(least, abs=1e-9)
    assert found.lower_bound <= found.cost
    assert found.gap == pytest.approx(0, abs=1e-6)


def test_the_busiest_model_is_hot_where_one_fits() -> None:
    both = [candidate("rare", 1, 1.0, [60]), candidate("busy", 1, 5.0, [60])]
    found = choose_hot(both, np.array([120]))  # two, of which one is the slot's
    assert [group.num_hot for group in found.groups] == [1, 1]  # both: no slot is needed
    found = choose_hot([*both, candidate("third", 1, 2.0, [60])], np.array([120]))
    assert [group.num_hot for group in found.groups] == [0, 1, 0]


def test_copies_are_counted_not_listed() -> None:
    few, many = (choose_hot([candidate("e", copies, 1.0, [17])], np.array([1000])) for copies in (60, 1_000_000))
    assert few.num_variables == many.num_variables == 3
    assert few.groups[0].num_hot == many.groups[0].num_hot == 57  # and a slot


def test_copies_that_nobody_asks_for_fill_what_is_left() -> None:
    found = choose_hot([candidate("idle", 5, 0.0, [10]), candidate("busy", 1, 1.0, [10])], np.array([40]))
    assert [group.num_hot for group in found.groups] == [2, 1]


def test_pins_are_kept_and_what_breaks_the_room_is_infeasible() -> None:
    pinned = [candidate("router", 1, 0.0, [30], pin="hbm"), candidate("cold", 1, 9.0, [30], pin="ddr")]
    found = choose_hot(pinned, np.array([100]))
    assert [group.num_hot for group in found.groups] == [1, 0]
    assert choose_hot(pinned, np.array([59])).status == "infeasible"


def test_devices_are_looked_at_one_by_one() -> None:
    apart = [candidate("left", 2, 1.0, [50, 0]), candidate("right", 2, 1.0, [0, 50])]
    found = choose_hot(apart, np.array([100, 60]))
    assert [group.num_hot for group in found.groups] == [2, 0]
