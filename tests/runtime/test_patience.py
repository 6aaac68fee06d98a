"""Patience: later requests go before a switch for a while, and everybody's turn comes all the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import answer_of, decoder, embed, encoder, generate, never_ends, run
from virtual_machine import verify

from plait.compiler.bundle.manifest import ModelEntry, TierBudget
from plait.errors import ConfigurationError
from plait.runtime.events import Prefill, Reply, Request, Transfer
from plait.runtime.simulator import Record

A, B = decoder("a"), decoder("b")  # a step takes 0.01 s, a switch 0.101
ONE = 1100  # bytes of hbm for one of them
ANSWER = 0.13  # seconds of an answer of 12 tokens at most, alone


def play(models: list[ModelEntry], arrivals: list[tuple[float, Request]], **options) -> list[Record]:
    records = run(models, arrivals, hbm=ONE, draw_token=never_ends, **options)
    verify(records, models, TierBudget(ONE, 10**6), partial(answer_of, draw_token=never_ends))
    return list(records)


def switches(records: Sequence[Record]) -> list[tuple[float, str]]:
    """When which model was sent to hbm."""
    moved = ((r.at_seconds, r.item) for r in records if isinstance(r.item, Transfer))
    return [(at, transfer.model) for at, transfer in moved if transfer.destination == "hbm"]


def begun_at(records: Sequence[Record], request_id: int) -> float:
    steps = ((r.at_seconds, r.item) for r in records if isinstance(r.item, Prefill))
    return next(at for at, step in steps if any(entry.request_id == request_id for entry in step.entries))


def first_token_at(records: Sequence[Record], request_id: int) -> float:
    replies = ((r.at_seconds, r.item) for r in records if isinstance(r.item, Reply))
    return next(at for at, reply in replies if reply.request_id == request_id and reply.tokens)


def stream(model: str, begin: float, end: float, every: float, first_id: int) -> list[tuple[float, Request]]:
    count = round((end - begin) / every)
    return [(begin + i * every, generate(first_id + i, model, max_tokens=12, client=model)) for i in range(count)]


BUSY = stream("a", 1.0, 4.0, 0.05, 100)  # keeps a busy all the time
FOR_B = (1.2, generate(1, "b", max_tokens=4))


def test_without_patience_only_older_requests_go_first():
    records = play([A, B], [*BUSY, FOR_B])
    assert switches(records)[1][1] == "b"
    assert switches(records)[1][0] < 1.2 + 2 * ANSWER


@pytest.mark.parametrize("patience", [0.5, 1.0, 1.5])
def test_later_requests_go_first_until_patience_ends(patience: float):
    records = play([A, B], [*BUSY, FOR_B], patience_seconds=patience)
    at, model = switches(records)[1]
    assert model == "b"
    assert 1.2 + patience <= at < 1.2 + patience + 2 * ANSWER
    assert any(1.2 < begun_at(records, r.id) < at for came, r in BUSY if came > 1.2)


def test_a_model_that_nobody_asks_for_leaves_at_once():
    records = play([A, B], [(1.0, generate(100, "a")), (1.5, generate(1, "b"))], patience_seconds=10.0)
    assert switches(records)[1] == (1.5, "b")


@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
def test_patience_for_ever_is_refused(seconds: float):
    with pytest.raises(ConfigurationError, match="cannot have a patience of"):
        run([A], [], patience_seconds=seconds)


def test_what_is_left_of_a_model_that_waits_too_is_in_nobodys_way():
    left, small = decoder("a", weights_bytes=1000, num_segments=10), decoder("b", weights_bytes=300)
    arrivals = [(1.0, generate(1, "a")), (2.0, generate(2, "b")), (3.0, generate(3, "b", max_tokens=12))]
    arrivals += [(3.01, generate(4, "c")), (3.02, generate(5, "a"))]
    records = play([left, small, decoder("c")], arrivals, patience_seconds=10.0)
    assert [model for _, model in switches(records)] == ["a", "b", "c", "a"]


def test_patience_is_for_those_of_the_same_class():
    later = [(at, replace(request, priority=1)) for at, request in BUSY if at > 1.2]
    records = play([A, B], [*[pair for pair in BUSY if pair[0] <= 1.2], *later, FOR_B], patience_seconds=10.0)
    assert switches(records)[1][0] < 1.2 + 2 * ANSWER
    assert begun_at(records, 1) < min(begun_at(records, request.id) for _, request in later)


@pytest.mark.parametrize("deadline", [0.6, 1.0, 2.0])
def test_a_deadline_ends_patience_in_time_for_what_is_under_way(deadline: float):
    request = replace(FOR_B[1], deadline_seconds=deadline)
    records = play([A, B], [*BUSY, (1.2, request)], patience_seconds=30.0)
    first = first_token_at(records, 1)
    assert 1.2 + deadline - 2 * ANSWER < first <= 1.2 + deadline
    assert switches(play([A, B], [*BUSY, FOR_B], patience_seconds=30.0))[1][0] > 4.0  # without one


def test_a_deadline_counts_behind_requests_that_have_none():
    behind = replace(generate(2, "b", max_tokens=4), deadline_seconds=0.8)
    records = play([A, B], [*BUSY, FOR_B, (1.3, behind)], patience_seconds=30.0)
    assert 2.1 - 2 * ANSWER < first_token_at(records, 2) <= 2.1
    assert first_token_at(records, 1) < first_token_at(records, 2)


def test_a_deadline_counts_for_an_encoder_too():
    request = replace(embed(1, lengths=(3, 3)), deadline_seconds=0.8)
    records = play([A, encoder(weights_bytes=1000)], [*BUSY, (1.2, request)], patience_seconds=30.0)
    done = next(r.at_seconds for r in records if isinstance(r.item, Reply) and r.item.request_id == 1)
    assert 1.6 < done <= 2.0


def test_a_deadline_that_cannot_be_kept_is_as_good_as_no_patience():
    late = replace(FOR_B[1], deadline_seconds=0.01)
    one, other = (play([A, B], [*BUSY, (1.2, late)], patience_seconds=patience) for patience in (0.0, 30.0))
    assert switches(one) == switches(other)


def test_more_patience_costs_fewer_switches_and_less_time():
    asked = [(1.0 + i * 0.02, generate(i, "ab"[i % 2], max_tokens=12, client=f"{i % 3}")) for i in range(200)]
    records = [play([A, B], asked, patience_seconds=seconds) for seconds in (0.0, 0.5, 2.0)]
    counts, ends = [len(switches(each)) for each in records], [each[-1].at_seconds for each in records]
    assert counts[0] > 2 * counts[1] > 3 * counts[2]
    assert ends[0] > ends[1] > ends[2]


def test_each_of_many_models_has_a_turn_as_long_as_it_is_asked_for():
    names = "abcd"
    asked = [(1.0 + i * 0.01, generate(i, names[i % 4], max_tokens=12, client=f"{i % 3}")) for i in range(400)]
    records = play([decoder(name) for name in names], asked, patience_seconds=0.5)
    turns = [at for at, _ in switches(records)]
    assert all(later - at >= 0.5 for at, later in pairwise(turns[:8]))
    assert {model for _, model in switches(records)[:4]} == set(names)


@settings(max_examples=40, deadline=None)
@given(
    patience=st.sampled_from([0.05, 0.3, 1.0]),
    per_second=st.integers(30, 120),
    num_models=st.integers(2, 4),
    asked_at=st.integers(0, 500),
    deadline=st.sampled_from([None, 0.01, 0.5]),
)
def test_nobody_starves(patience: float, per_second: int, num_models: int, asked_at: int, deadline: float | None):
    """Others are asked for without end, faster than they answer; one request for another model has its turn."""
    names = "abcd"[:num_models]
    asked = [generate(i, names[i % num_models], max_tokens=12, client=f"{i % 5}") for i in range(3 * per_second)]
    flood = [(1.0 + i / per_second, request) for i, request in enumerate(asked)]
    at = 1.2 + asked_at / 1000
    request = replace(generate(9999, "z", max_tokens=4), deadline_seconds=deadline)
    records = play([decoder(name) for name in (*names, "z")], [*flood, (at, request)], patience_seconds=patience)
    older = [other.model for came, other in flood if came <= at]
    num_turns = 2 + sum(-(-older.count(name) // 4) for name in names)  # a model answers four at least in its turn
    assert begun_at(records, 9999) - at <= num_turns * (patience + 0.101 + 2 * ANSWER)
