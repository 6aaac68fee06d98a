from __future__ import annotations

import json

import pytest

from plait.runtime.bench.client import Reply
from plait.runtime.bench.load import Outcome, Run
from plait.runtime.bench.measures import Bound
from plait.runtime.bench.summary import summarize

FAST = Reply(1.0, None, 0.1, (0.1, 0.2), 10, 7)  # TPOT 0.1
SLOW = Reply(2.0, None, 0.6, (0.7,), 3, 7, "chunks")  # TPOT 0.7
GONE = Reply(0.01, "cannot connect")
BOUNDS = (Bound("ttft", 0.5), Bound("tpot", 0.8))


def run(*replies: Reply, models: str = "a") -> Run:
    outcomes = [
        Outcome(models[index % len(models)], float(index), 0.001 * index, reply) for index, reply in enumerate(replies)
    ]
    return Run(tuple(outcomes), 2)


def test_figures_are_by_their_definitions() -> None:
    found = summarize(run(FAST, SLOW, GONE, FAST, GONE))
    assert (found.num_requests, found.num_answered, found.num_interrupted) == (5, 3, 2)
    assert found.failures == {"cannot connect": 2}
    assert found.seconds == 4.01  # the last that ended was sent after 4 s
    assert found.requests_per_s == pytest.approx(3 / 4.01)
    assert found.output_tokens_per_s == pytest.approx(23 / 4.01)
    assert (found.input_tokens, found.output_tokens, found.counted_by) == (21, 23, ("usage", "chunks"))
    assert found.latest_seconds == 0.004
    means = {name: values.mean for name, values in found.latencies.items() if values}
    assert means == pytest.approx({"ttft": 0.8 / 3, "tpot": 0.9 / 3, "itl": 1.3 / 5, "e2e": 4 / 3})


def test_service_levels_count_requests_inside_all_bounds_and_failures_as_outside() -> None:
    found = summarize(run(FAST, SLOW, GONE, FAST), BOUNDS).attainment
    assert found is not None
    assert found.num_kept_of_each == (2, 3)
    assert (found.num_kept, found.share) == (2, 0.5)
    assert found.goodput == pytest.approx(2 / 4.0)
    low, high = found.goodput_interval
    assert low < found.goodput < high
    assert found.interval == pytest.approx((low, high))  # one request a second


def test_several_models_have_figures_each() -> None:
    found = summarize(run(FAST, SLOW, FAST, GONE, models="ab"), BOUNDS)
    assert {name: each.num_answered for name, each in found.by_model.items()} == {"a": 2, "b": 1}
    assert [row[0] for row in found.tables()[1].rows] == ["a", "b"]
    assert summarize(run(FAST)).by_model == {}


def test_it_is_json_and_text_whatever_happened() -> None:
    for made in (run(FAST, SLOW, GONE, models="ab"), run(GONE), Run((), 3)):
        for bounds in ((), BOUNDS):
            found = summarize(made, bounds)
            data = json.loads(json.dumps(found.to_json(), allow_nan=False))
            assert data["requests"] == len(made.outcomes)
            assert (data["slo"] is None) == (not bounds)
            assert all(table.as_text() for table in found.tables())
            assert dict(found.facts())["requests"].startswith(f"{len(made.outcomes)}: ")  # type: ignore[union-attr]


def test_the_text_says_the_figures() -> None:
    facts = dict(summarize(run(FAST, SLOW, GONE, FAST), BOUNDS).facts())
    assert facts["requests"] == "4: 3 answered, 1 failed, 2 interrupted"
    assert facts["SLO attainment"] == "50.0% (95 %: 15.0% - 85.0%)"
    assert facts["goodput"] == "0.5 requests/s (95 %: 0.15 - 0.85)"
    assert facts["ttft <= 500 ms"] == "2 of 4"
