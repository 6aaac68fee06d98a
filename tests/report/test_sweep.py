from __future__ import annotations

import json
from dataclasses import replace

import pytest
from page_checker import HOSTILE, checked

from plait.compiler.report.knobs import KNOBS, Trial, parse_vary, turned
from plait.compiler.report.sweep import Metric, Outcome, Point, Sweep, sweep
from plait.compiler.report.sweep_page import format_metric, scatter, sweep_page, sweep_table
from plait.compiler.target import load_target
from plait.errors import ConfigurationError

BASE = Trial(load_target("sn40l-8"), None, 1, 512)
RATES: tuple[Metric, Metric] = ("tokens_per_s_per_user", "tokens_per_s_per_socket")


def point(user: float, socket: float, joules: float | None = 1.0, **settings: str) -> Point:
    """A point with these metrics."""
    return Point(settings, Outcome(user, socket, user, joules, 1 / user, 1, 1, 1, "one device", "hbm"))


def swept(*points: Point, metrics: tuple[Metric, Metric] = RATES) -> Sweep:
    """A sweep of these points."""
    return Sweep("model", "decode", {"batch": ("1", "2")}, points, metrics)


@pytest.fixture(scope="module")
def made(config) -> Sweep:
    """A small model on one and on four sockets, at two batches and two bandwidths; one socket more than there are."""
    varied = {"sockets": ("1", "4", "16"), "batch": ("1", "8"), "hbm_bandwidth": ("1.8e12", "3.6e12")}
    return sweep(config, BASE, varied, name="smollm2-360m", dtype="bfloat16")


def test_every_combination_has_a_point(made) -> None:
    settings = [tuple(each.settings.values()) for each in made.points]
    assert len(settings) == len(set(settings)) == 12


def test_what_cannot_be_planned_says_why(made) -> None:
    short = [each for each in made.points if each.settings["sockets"] == "16"]
    assert {each.why for each in short} == {"sn40l-8 has 8 devices"}
    assert all(each.outcome is None for each in short)


def test_more_bandwidth_is_never_slower(made) -> None:
    found = {tuple(each.settings.values()): each.outcome for each in made.points}
    for (sockets, batch, bandwidth), outcome in found.items():
        if outcome is not None and bandwidth == "1.8e12":
            assert found[sockets, batch, "3.6e12"].step_seconds <= outcome.step_seconds


def test_metrics_are_of_the_same_step(made) -> None:
    for each in made.points:
        if each.outcome is not None:
            batch = int(each.settings["batch"])
            assert each.outcome.tokens_per_s == pytest.approx(batch / each.outcome.step_seconds)
            assert each.outcome.tokens_per_s_per_user == pytest.approx(1 / each.outcome.step_seconds)


def test_the_front_is_beaten_by_none() -> None:
    found = swept(point(1, 9), point(5, 5), point(4, 4), point(9, 1), point(5, 4), point(5, 5))
    assert found.front == (0, 1, 3, 5)


def test_less_is_better_of_some_metrics() -> None:
    metrics: tuple[Metric, Metric] = ("tokens_per_s", "joules_per_token")
    assert swept(point(1, 1, 2.0), point(1, 1, 1.0), point(2, 1, None), metrics=metrics).front == (1,)


def test_a_sweep_of_nothing_is_the_plan_itself(config) -> None:
    made = sweep(config, replace(BASE, num_devices=1), {}, name="m", dtype="bfloat16")
    assert made.front == (0,)
    assert "as it is" in sweep_page(made).decode()


def test_json_and_table_have_every_point(made) -> None:
    data = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert [each["is_on_front"] for each in data["points"]] == [i in made.front for i in range(12)]
    rows = sweep_table(made).rows
    assert [row[0] == "*" for row in rows] == [i in made.front for i in range(12)]
    assert rows[-1][-1] == "sn40l-8 has 8 devices"


def test_the_page_is_well_formed_and_asks_for_nothing(made) -> None:
    content = sweep_page(made)
    checker = checked(content)
    assert checker.wanted == []
    assert {"front", "points"} <= checker.ids
    assert content.count(b'class="dot') >= 8


def test_without_any_plan_there_is_no_picture() -> None:
    made = swept(Point({"batch": "1"}, None, "no room"))
    assert scatter(made) is None
    assert b"No combination has a plan" in sweep_page(made)


def test_hostile_settings_are_text() -> None:
    content = sweep_page(swept(point(1, 2, batch=HOSTILE), Point({"batch": HOSTILE}, None, HOSTILE)))
    assert HOSTILE.encode() not in content
    assert checked(content).scripts == 1


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["speed=1"], "'speed' cannot be varied; known: target, sockets, batch"),
        (["batch"], "'batch' has no values: write batch=VALUE,VALUE"),
        (["batch="], "has no values"),
        (["batch=1", "batch=2"], "batch is given twice"),
        (["devices=1", "sockets=2"], "sockets is given twice"),
    ],
    ids=["name", "no equals", "no values", "twice", "synonyms"],
)
def test_what_cannot_be_varied_is_refused(texts: list[str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says.replace("(", r"\(")):
        parse_vary(texts)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("batch", "0"),
        ("batch", "1.5"),
        ("batch", "many"),
        ("sockets", "-4"),
        ("hbm_bandwidth", "inf"),
        ("hbm_bandwidth", "nan"),
        ("hbm_efficiency", "1.5"),
        ("sram", "0"),
        ("hbm_capacity", "lots"),
        ("mode", "o2"),
        ("launches", "nobody"),
        ("weights", "gold"),
        ("mesh", "0x4"),
        ("target", "nowhere"),
        ("sequence", "1e400"),
    ],
)
def test_values_that_are_none_are_refused(name: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"--vary {name}="):
        turned(BASE, {name: text})


def test_knobs_of_chips_are_for_targets_that_have_one() -> None:
    for name in ("sram", "clock"):
        with pytest.raises(ConfigurationError, match="h100-8 has no chip with"):
            turned(replace(BASE, target=load_target("h100-8")), {name: "1e9"})


VALUES = {
    "target": "sn50-16",
    "weights": "fp8",
    "mesh": "2x4",
    "mode": "o0",
    "launches": "software",
    "sram": "100MiB",
    "hbm_capacity": "1GiB",
    "compute_efficiency": "0.5",
    "hbm_efficiency": "0.5",
}


@pytest.mark.parametrize("name", KNOBS)
def test_every_knob_changes_something(name: str) -> None:
    assert turned(BASE, {name: VALUES.get(name, "3")}) != BASE


def test_the_target_is_chosen_before_its_numbers_are() -> None:
    trial = turned(BASE, {"hbm_bandwidth": "1e12", "target": "sn50-16"})
    assert (trial.target.name, trial.target.tiers["hbm"].bandwidth_bytes_per_s) == ("sn50-16", 1e12)


@pytest.mark.parametrize(
    ("metric", "value", "says"),
    [("step_seconds", 0.0012, "1.2 ms"), ("device_bytes", 2048, "2.0 KiB"), ("tokens_per_s", 1234.4, "1,234")],
)
def test_metrics_have_their_units(metric: Metric, value: float, says: str) -> None:
    assert format_metric(metric, value) == says
    assert format_metric(metric, None) == ""


def test_too_many_combinations_are_refused_before_any_is_planned(config) -> None:
    many = {"batch": tuple(map(str, range(1, 40))), "sequence": tuple(map(str, range(1, 40)))}
    with pytest.raises(ConfigurationError, match="1521 combinations are more than 512"):
        sweep(config, BASE, many, name="m", dtype="bfloat16")
