"""Routes: a request for any of several models goes where it waits the least, and brings no second model for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_models import answer_of, decoder, encoder, generate, load, run
from virtual_machine import verify

from plait.compiler.bundle.manifest import Route, TierBudget
from plait.runtime.events import Request, Routed, RouteWork, Transfer

ROUTES = {"small": Route(("a", "b"))}
BOTH, ONE = 10**6, 1100


def play(models, arrivals, *, hbm=BOTH, routes=None, **options):
    chosen = routes or ROUTES
    records = run(models, arrivals, hbm=hbm, routes=chosen, **options)
    verify(records, models, TierBudget(hbm, BOTH), answer_of, {name: route.models for name, route in chosen.items()})
    return records


def chosen(records) -> list[str]:
    return [record.item.model for record in records if isinstance(record.item, Routed)]


def test_the_hot_one_answers():
    assert chosen(play([decoder("a"), decoder("b", pin="hbm")], [(1.0, generate(1, "small"))])) == ["b"]


def test_of_two_that_are_not_hot_the_one_that_comes_sooner():
    models = [decoder("a", weights_bytes=1000), decoder("b", weights_bytes=400)]
    assert chosen(play(models, [(1.0, generate(1, "small"))])) == ["b"]


def test_of_equals_the_first_in_the_route():
    assert chosen(play([decoder("b"), decoder("a")], [(1.0, generate(1, "small"))])) == ["a"]


def test_of_two_hot_ones_the_one_with_fewer_requests():
    models = [decoder("a", pin="hbm"), decoder("b", pin="hbm")]
    assert chosen(play(models, [(1.0, generate(number, "small")) for number in range(1, 5)])) == ["a", "b", "a", "b"]


def test_requests_behind_each_other_bring_one_model():
    records = play([decoder("a"), decoder("b")], [(1.0 + i / 100, generate(i, "small")) for i in range(1, 6)], hbm=ONE)
    assert set(chosen(records)) == {"a"}
    assert sum(isinstance(r.item, Transfer) and r.item.destination == "hbm" for r in records) == 1


def test_a_model_that_is_on_its_way_is_no_second_switch():
    models = [decoder("a"), decoder("b")]
    assert chosen(play(models, [(1.0, load(1, "b")), (1.05, generate(2, "small"))])) == ["b"]


def test_a_name_or_an_alias_leads_to_its_model():
    aliased = replace(decoder("a"), aliases=("assistant",))
    records = play([aliased, decoder("b")], [(1.0, generate(1, "assistant")), (1.0, generate(2, "a"))])
    assert chosen(records) == ["a"]  # a model's own name needs no answer


@pytest.mark.parametrize(("name", "model"), [("small", "b"), ("a", "a")], ids=["route", "model"])
def test_who_only_asks_is_told(name: str, model: str):
    records = play([decoder("a"), decoder("b", pin="hbm"), encoder("e")], [(1.0, Request(1, name, RouteWork()))])
    assert chosen(records) == [model]
    assert records[-1].item == Routed(1, model)
