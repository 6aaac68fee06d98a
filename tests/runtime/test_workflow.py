from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from plait.runtime.workflow import Forecast, LookAhead


def next_of(look_ahead: LookAhead, now: float) -> str | None:
    """The model foretold for the next turn."""
    return next((forecast.model for forecast in look_ahead.forecasts(now) if forecast.steps == 1), None)


def score(look_ahead: LookAhead, stream: Sequence[str], *, client: str = "") -> tuple[int, int, int]:
    """Turns of a stream that were foretold, foretold wrongly, and not foretold, after the first request."""
    right = wrong = silent = 0
    said: str | None = None
    for place, model in enumerate(stream):
        if place and model != stream[place - 1]:
            right, wrong, silent = right + (said == model), wrong + (said not in (None, model)), silent + (said is None)
        look_ahead.observe(client, model, float(place))
        said = next_of(look_ahead, float(place))
    return right, wrong, silent


@pytest.mark.parametrize(
    "workflow",
    [["a", "b"], ["a", "b", "c"], ["a", "b", "a", "c"], ["a", "b", "a", "b", "c"], ["a", "a", "b", "c", "c"]],
    ids="".join,
)
def test_a_declared_cycle_is_foretold_from_the_first_request_on(workflow: list[str]):
    right, wrong, silent = score(LookAhead([workflow]), workflow * 30)
    assert right > 30
    assert (wrong, silent) == (0, 0)


def test_a_declared_cycle_is_found_again_after_it_was_entered_in_the_middle_or_left():
    look_ahead = LookAhead([["a", "b", "c", "d"]])
    for now, (model, following) in enumerate([("c", "d"), ("d", "a"), ("x", None), ("b", "c"), ("a", "b")]):
        look_ahead.observe("", model, now)
        assert next_of(look_ahead, now) == following


def test_all_turns_of_a_declared_cycle_are_told_with_their_distance():
    look_ahead = LookAhead([["a", "b", "c", "d"]])
    look_ahead.observe("", "b", 5.0)
    assert [(f.model, f.steps) for f in look_ahead.forecasts(5.0)] == [("c", 1), ("d", 2), ("a", 3), ("b", 4)]


@pytest.mark.parametrize("cycle", ["ab", "abc", "abac", "abcde"])
def test_a_cycle_is_learned_in_a_few_turns_and_then_foretold_without_a_mistake(cycle: str):
    right, wrong, silent = score(LookAhead(), cycle * 20)
    assert wrong <= 1
    assert silent <= 4 * len(cycle)
    assert right >= 19 * len(cycle) - 1 - silent - wrong


def test_a_loop_that_comes_by_some_models_several_times_is_learned_as_a_whole():
    stream = [step for turn in range(60) for step in ("embed", "sparse", f"chat-{turn % 4}", f"guard-{turn % 4}")]
    look_ahead = LookAhead()
    assert score(look_ahead, stream[:160])[1] <= 1
    # After an embedding four chat models are as likely, but not after the guard of one of them before it.
    assert score(look_ahead, stream[160:]) == (79, 0, 0)
    assert [(f.model, f.steps) for f in look_ahead.forecasts(79.0)][:3] == [("embed", 1), ("sparse", 2), ("chat-0", 3)]


def test_a_cycle_with_noise_is_foretold_most_of_the_time():
    random_ = random.Random(1)
    stream = [random_.choice("abcdef") if random_.random() < 0.1 else "abcdef"[place % 6] for place in range(2000)]
    right, wrong, silent = score(LookAhead(), stream)
    assert right >= 0.75 * (right + wrong + silent)
    assert wrong <= 0.15 * (right + wrong + silent)


@pytest.mark.parametrize("num_models", [5, 12, 40])
@pytest.mark.parametrize("exponent", [0.0, 0.7])
def test_noise_is_met_with_silence(num_models: int, exponent: float):
    weights = [1 / (1 + index) ** exponent for index in range(num_models)]
    stream = [f"m{index}" for index in random.Random(2).choices(range(num_models), weights, k=3000)]
    right, wrong, silent = score(LookAhead(), stream)
    assert silent >= 0.97 * (right + wrong + silent)


def test_clients_are_told_apart():
    look_ahead = LookAhead()
    for now in range(40):
        look_ahead.observe("left", "ab"[now % 2], now)
        look_ahead.observe("right", "cde"[now % 3], now)
    assert {(f.model, f.steps) for f in look_ahead.forecasts(40.0)} >= {("a", 1), ("d", 1)}


def test_a_workflow_that_nobody_follows_falls_silent_and_is_heard_again_when_they_do():
    look_ahead = LookAhead([["a", "b"]])
    assert score(look_ahead, ["a", "x", "a", "y", "a", "z", "a", "w"] * 5)[1] <= 6
    assert score(look_ahead, ["a", "b"] * 40)[0] > 40


def test_two_workflows_that_begin_alike_are_told_apart_by_what_happens():
    look_ahead = LookAhead([["a", "b", "c"], ["a", "x", "y"]])
    look_ahead.observe("", "a", 0.0)
    assert next_of(look_ahead, 0.0) is None
    look_ahead.observe("", "x", 1.0)
    assert next_of(look_ahead, 1.0) == "y"


def test_the_time_of_a_turn_is_learned():
    look_ahead = LookAhead([["a", "b"]])
    for turn in range(10):
        look_ahead.observe("", "a", 10.0 * turn)
        look_ahead.observe("", "b", 10.0 * turn + 3)
    look_ahead.observe("", "a", 100.0)
    forecast = look_ahead.forecasts(100.0)[0]
    assert (forecast.model, forecast.steps) == ("b", 1)
    assert forecast.at_seconds == pytest.approx(103.0)


def test_nothing_is_foretold_of_a_client_that_should_have_been_back():
    look_ahead = LookAhead([["a", "b"]])
    look_ahead.observe("", "a", 0.0)
    assert look_ahead.forecasts(59.0) == [Forecast("b", 1.0, 1, 0.0, "a"), Forecast("a", 1.0, 2, 0.0, "a")]
    assert look_ahead.forecasts(61.0) == []
    look_ahead.observe("", "b", 70.0)  # it was only late
    assert look_ahead.forecasts(70.0)[0] == Forecast("a", 1.0, 1, 70.0, "b", stay_seconds=70.0)


def test_clients_that_never_come_back_are_an_observation():
    look_ahead = LookAhead([["a", "b"]])
    for number in range(10):
        look_ahead.observe(f"client {number}", "a", 1000.0 * number)
    assert look_ahead.forecasts(9000.0) == []


def test_clients_without_end_are_not_remembered_without_end():
    look_ahead = LookAhead([["a", "b"]])
    for number in range(1000):
        look_ahead.observe(f"client {number}", "a", 0.001 * number)
    assert len(look_ahead._unread) < 256
    look_ahead.forecasts(1.0)
    assert len(look_ahead._clients) == 64
    assert not look_ahead._unread


def test_requests_that_are_learned_from_later_teach_the_same():
    random_ = random.Random(2)
    asked, unasked = LookAhead(), LookAhead()
    for place in range(200):
        model = random_.choice("abc")
        asked.observe("", model, float(place))
        asked.forecasts(float(place))
        unasked.observe("", model, float(place))
    assert len(unasked.forecasts(200.0)) > 0
    assert unasked.forecasts(200.0) == asked.forecasts(200.0)


def test_repeated_requests_are_one_turn():
    look_ahead = LookAhead()
    assert score(look_ahead, ["a", "a", "a", "b", "c", "c"] * 10)[1] <= 1
    assert next_of(look_ahead, 60.0) == "a"


def test_without_requests_nothing_is_foretold():
    assert LookAhead([["a", "b"]]).forecasts(0.0) == []


@pytest.mark.parametrize("workflow", [[], ["a"], ["a", "a"]])
def test_a_workflow_of_one_model_foretells_nothing(workflow: list[str]):
    look_ahead = LookAhead([workflow])
    look_ahead.observe("", "a", 0.0)
    assert look_ahead.forecasts(0.0) == []


def test_how_often_a_model_is_asked_in_a_row_is_learned():
    look_ahead, forecast = LookAhead(), None
    for now, model in enumerate("aaabb" * 20 + "aaa"):
        look_ahead.observe("", model, now)
        forecast = next(iter(look_ahead.forecasts(now)), None)
    assert forecast is not None
    assert (forecast.model, forecast.after) == ("b", "a")
    assert forecast.leave_chance > 0.9
    look_ahead.observe("", "b", 103.0)
    assert look_ahead.forecasts(103.0)[0].leave_chance < 0.1
