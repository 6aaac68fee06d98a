from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from plait.errors import ConfigurationError
from plait.runtime.bench.client import Reply
from plait.runtime.bench.measures import Bound, Percentiles, parse_bound, usual_mean, wilson_interval


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300))
def test_percentiles_are_those_of_numpy(values: list[float]) -> None:
    found = Percentiles.of(values)
    assert found is not None
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    expected = np.percentile(values, [50, 90, 95, 99])
    assert [found.p50, found.p90, found.p95, found.p99] == pytest.approx(expected, abs=1e-9)


def test_the_usual_mean_is_without_outliers() -> None:
    assert usual_mean([1.0, 2.0, 3.0, 100.0]) == pytest.approx(2.0)  # the median is 2.5
    assert usual_mean([1.0, 1.0, 2.0]) == pytest.approx(4 / 3)
    assert usual_mean([5.0]) == 5.0


def test_nothing_has_no_percentiles() -> None:
    assert Percentiles.of([]) is None


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (1, 3), (7, 20), (95, 100), (10, 10), (4999, 5000)])
def test_the_interval_is_wilsons(hits: int, trials: int) -> None:
    expected = binomtest(hits, trials).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("hits", "trials"), [(1, 3), (7, 20), (95, 100)])
def test_the_interval_solves_its_equation(hits: int, trials: int) -> None:
    z = 1.959963984540054
    for bound in wilson_interval(hits, trials):
        # (share - bound)^2 = z^2 bound (1 - bound) / n, which is how Wilson's interval is defined.
        assert (hits / trials - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / trials, rel=1e-9)


def test_nothing_tried_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_tpot_is_by_its_definition() -> None:
    assert Reply(1.5, ttft_seconds=0.5, output_tokens=11).tpot_seconds == pytest.approx(0.1)
    assert Reply(1.5, ttft_seconds=0.5, output_tokens=1).tpot_seconds is None
    assert Reply(1.5, "timeout").tpot_seconds is None


@pytest.mark.parametrize(
    ("bound", "holds"),
    [("ttft=0.5", True), ("ttft=0.49", False), ("tpot=0.11", True), ("tpot=0.09", False), ("e2e=1.4", False)],
)
def test_a_bound_holds_or_not(bound: str, holds: bool) -> None:
    reply = Reply(1.5, ttft_seconds=0.5, output_tokens=11)
    assert parse_bound(bound).holds(reply) is holds


def test_a_failure_keeps_no_bound_and_one_token_any_tpot() -> None:
    assert not Bound("ttft", math.inf).holds(Reply(0.1, "timeout"))
    assert Bound("tpot", 1e-9).holds(Reply(0.1, ttft_seconds=0.1, output_tokens=1))


@pytest.mark.parametrize("text", ["", "ttft", "ttft=", "ttft=0", "ttft=-1", "ttft=nan", "ttft=inf", "itl=1", "=1"])
def test_what_is_no_bound_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="write one of ttft, tpot, e2e"):
        parse_bound(text)
