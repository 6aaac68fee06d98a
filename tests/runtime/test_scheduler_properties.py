"""Whatever comes, the scheduler keeps every rule of `virtual_machine.py`, and every request ends."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from scenarios import Scenario, check, play, scenarios
from tiny_models import answer_of, decoder, generate, never_ends, run
from virtual_machine import verify

from plait.compiler.bundle.manifest import ModelEntry, TierBudget
from plait.runtime.events import (
    CancelTransfer,
    CopyBlocks,
    Decode,
    DropBlocks,
    Embed,
    Evict,
    LoadBlocks,
    Prefill,
    Reply,
    SaveBlocks,
    Transfer,
    Verify,
)
from plait.runtime.simulator import Record


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scenarios())
def test_every_rule_is_kept_and_every_request_ends(scenario: Scenario):
    records = play(scenario)
    steps = [record.item for record in records if isinstance(record.item, Prefill | Decode | Verify | Embed)]
    event("evicts from hbm" if any(isinstance(r.item, Evict) and r.item.tier == "hbm" for r in records) else "calm")
    event("recomputes" if _num_restarts(steps) else "computes once")
    event("keeps segments" if any(isinstance(r.item, Evict) and r.item.num_kept for r in records) else "keeps none")
    for kind in (CancelTransfer, CopyBlocks, Verify, SaveBlocks, LoadBlocks, DropBlocks):
        event(f"{kind.__name__}: {any(isinstance(record.item, kind) for record in records)}")
    check(scenario, records)


def _num_restarts(steps: list[Prefill | Decode | Verify | Embed]) -> int:
    starts = [e.request_id for step in steps if isinstance(step, Prefill) for e in step.entries if e.start == 0]
    return len(starts) - len(set(starts))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scenarios())
def test_equal_input_gives_an_equal_record(scenario: Scenario):
    assert play(scenario) == play(scenario)


FULL = 2148  # bytes of hbm in which a and b fit, with 64 bytes of KV each and a workspace of 10
OTHERS = st.lists(st.tuples(st.integers(0, 30), st.sampled_from("ab"), st.integers(1, 12)), max_size=12)


def to_hbm(records: Sequence[Record], model: str) -> list[Record]:
    return [r for r in records if isinstance(r.item, Transfer) and (r.item.model, r.item.destination) == (model, "hbm")]


def three(num_segments: int) -> list[ModelEntry]:
    return [decoder(name, weights_bytes=1000, num_segments=num_segments) for name in "abc"]


@settings(max_examples=60, deadline=None)
@given(
    others=OTHERS,
    misses=st.lists(st.integers(0, 100), min_size=1, max_size=6),
    num_segments=st.sampled_from([1, 5]),
)
def test_any_number_of_misses_costs_one_transfer(
    others: list[tuple[int, str, int]], misses: list[int], num_segments: int
) -> None:
    """Requests for c come while a and b are busy or c is on its way; whoever else is asked for came before them."""
    arrivals = [(1.0 + at / 1000, generate(i, model, max_tokens=n)) for i, (at, model, n) in enumerate(others)]
    arrivals += [(1.04 + at / 1000, generate(100 + i, "c")) for i, at in enumerate(misses)]
    records = run(three(num_segments), arrivals, hbm=FULL, draw_token=never_ends)
    (transfer,) = to_hbm(records, "c")
    leaving = [
        r.item
        for r in records
        if isinstance(r.item, Evict) and r.item.tier == "hbm" and r.at_seconds <= transfer.at_seconds
    ]
    assert len(leaving) <= 1


@settings(max_examples=60, deadline=None)
@given(
    others=OTHERS.filter(lambda others: {model for _, model, _ in others} == {"a", "b"}),
    num_gone=st.integers(1, 5),
    leaves=st.integers(1, 50),
)
def test_clients_that_leave_while_queued_evict_nothing(
    others: list[tuple[int, str, int]], num_gone: int, leaves: int
) -> None:
    """a and b are hot and answer for a while; those who ask for c meanwhile leave before that ends."""
    hot = [(1.0, generate(90, "a", max_tokens=1)), (1.0, generate(91, "b", max_tokens=1))]
    busy = [(2.0, generate(92, "a", max_tokens=13)), (2.0, generate(93, "b", max_tokens=13))]
    arrivals = [(2.0 + at / 1000, generate(i, model, max_tokens=n)) for i, (at, model, n) in enumerate(others)]
    gone = [(2.001 + i / 1000, generate(100 + i, "c")) for i in range(num_gone)]
    cancels = [(at + leaves / 1000, request.id) for at, request in gone]
    records = run(three(1), [*hot, *busy, *arrivals, *gone], hbm=FULL, cancels=cancels, draw_token=never_ends)
    verify(records, three(1), TierBudget(FULL, 10**6), lambda request: answer_of(request, never_ends))
    assert not [r for r in records if isinstance(r.item, Evict)]


@settings(max_examples=15, deadline=None)
@given(
    asked_at=st.integers(0, 300),
    max_tokens=st.integers(1, 12),
    decode_steps=st.integers(1, 4),
    per_second=st.integers(60, 120),
    num_segments=st.sampled_from([1, 5]),
)
def test_nobody_starves(asked_at: int, max_tokens: int, decode_steps: int, per_second: int, num_segments: int) -> None:
    """a and b fill hbm and are asked for faster than they answer; c, for which somebody asks once, has its turn."""
    asked = [generate(i, "ab"[i % 2], max_tokens=12, client=f"{i % 5}") for i in range(per_second)]
    stream = [(1.0 + i / per_second, request) for i, request in enumerate(asked)]
    request = generate(9999, "c", max_tokens=max_tokens)
    records = run(
        three(num_segments),
        [*stream, (1.2 + asked_at / 1000, request)],
        hbm=FULL,
        draw_token=never_ends,
        decode_steps=decode_steps,
    )
    ended = {r.item.request_id: r.at_seconds for r in records if isinstance(r.item, Reply) and r.item.finish_reason}
    older = max((ended[r.id] for at, r in stream if at <= 1.2 + asked_at / 1000), default=0.0)
    # After those that came before it: a transfer, and steps in turn with the model that stays.
    assert ended[9999] < older + 0.101 + 3 * 13 * 0.04
    assert max(ended.values()) > ended[9999] + 0.1
