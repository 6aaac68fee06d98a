"""What the scheduler does with a draft: when it proposes, what it costs whom, and that it is never waited for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import answer_of, decoder, draw_alike, generate, never_ends, run, with_verify
from virtual_machine import verify

from plait.compiler.bundle.manifest import ModelEntry, SpeculativePair, TierBudget
from plait.runtime.events import Checked, Decode, Evict, Prefill, Reply, Transfer, Verify
from plait.runtime.simulator import Record

TARGET, DRAFT = decoder("target", num_blocks=32), decoder("drafts", num_blocks=32, step_seconds=1e-4)  # say the same
DISSENTER = decoder("other", num_blocks=32, step_seconds=2e-3)  # of another length of name: never agrees
PLENTY = 10**6
ROOM_FOR_TWO = 2 * (1000 + 32 * 4) + 10
PAIR = (SpeculativePair("drafts", "target", 3),)


def arrivals_at(*seconds: float):
    """Requests that come one after the other; the first ones bring the models."""
    return [(at, generate(number, "target", max_tokens=13)) for number, at in enumerate(seconds, 1)]


def played(models: list[ModelEntry], pairs=PAIR, arrivals=(), *, draw_token=never_ends, hbm=PLENTY, **options):
    """Simulates a trace with pairs and has it verified."""
    models = with_verify(models, pairs)
    records = run(models, list(arrivals), speculative=pairs, draw_token=draw_token, hbm=hbm, **options)
    drafts = {pair.target: pair.draft for pair in pairs}
    verify(records, models, TierBudget(hbm, 10**6), partial(answer_of, draw_token=draw_token), {}, drafts)
    return records


def of_kind(records: tuple[Record, ...], kind: type) -> list:
    return [record.item for record in records if isinstance(record.item, kind)]


def end_of(records: tuple[Record, ...], request_id: int) -> Reply:
    return next(r for r in of_kind(records, Reply) if r.request_id == request_id and r.finish_reason)


def test_a_draft_that_agrees_saves_most_steps():
    records = played([TARGET, DRAFT], arrivals=arrivals_at(1.0, 3.0))
    # The first token comes of the prompt, the second before the draft has computed the prompt, the rest 4 at a time.
    assert [step.draft.num_tokens for step in of_kind(records, Verify)] == [(3,), (3,), (2,)]
    timing = end_of(records, 2).timing
    assert timing is not None
    assert (timing.proposed_tokens, timing.accepted_tokens) == (8, 8)
    (chunk,) = [step for step in of_kind(records, Prefill) if step.model == "drafts"]
    assert [len(entry.tokens) for entry in chunk.entries] == [4]


def test_a_draft_that_never_agrees_is_given_up_and_tried_again():
    pairs = (SpeculativePair("other", "target", 3),)
    arrivals = [(1.0 + index / 10, generate(index, "target", max_tokens=12)) for index in range(40)]
    records = played([TARGET, DISSENTER], pairs, arrivals, draw_token=never_ends)
    steps = [isinstance(r.item, Verify) for r in records if isinstance(r.item, Verify | Decode)]
    first, rest = steps[:60], steps[60:]
    assert 3 <= sum(first) <= 20
    assert 0 < sum(rest) < len(rest) / 4  # trials
    assert all(end_of(records, index).timing.accepted_tokens == 0 for index in range(40))  # type: ignore[union-attr]


@pytest.mark.parametrize("asked_at", [0.997, 0.998, 0.999])
def test_a_draft_whose_pool_others_have_computes_no_more_than_it_has_blocks_for(asked_at: float):
    target, draft = decoder("target", batch=1), decoder("drafts", num_blocks=4, batch=1, step_seconds=1e-3)
    hot = [(0.5, generate(1, "drafts", prompt=1, max_tokens=1)), (0.5, generate(2, "target", prompt=1, max_tokens=1))]
    of_draft = asked_at, generate(3, "drafts", prompt=1, max_tokens=8)  # takes 3 of 4 blocks
    arrivals = [*hot, of_draft, (1.0, generate(4, "target", prompt=3, max_tokens=10))]
    records = played([target, draft], (SpeculativePair("drafts", "target", 1),), arrivals)  # verified: fails else
    assert len(of_kind(records, Verify)) > 0


def test_a_draft_that_was_found_damaged_proposes_nothing():
    damaged = [(4.0, Checked("drafts", "says other things than when it was bundled"))]
    records = played([TARGET, DRAFT], arrivals=arrivals_at(1.0, 3.0, 5.0), events=damaged)
    verified_at = [record.at_seconds for record in records if isinstance(record.item, Verify)]
    assert verified_at
    assert max(verified_at) < 4.0
    assert end_of(records, 3).finish_reason == "length"


def test_a_draft_that_takes_as_long_as_its_target_is_not_asked():
    slow = replace(DRAFT, programs=TARGET.programs)
    records = played([TARGET, slow], arrivals=[(1.0, generate(1, "target", max_tokens=13))])
    assert not of_kind(records, Verify)
    assert not [step for step in of_kind(records, Prefill) if step.model == "drafts"]


def test_the_draft_follows_its_target_and_nobody_waits_for_it():
    arrivals = [(1.0, generate(1, "target", max_tokens=13, prompt=(1, 2))), (5.0, generate(2, "target", max_tokens=13))]
    records = played([TARGET, DRAFT], arrivals=arrivals)
    moves = [(t.model, t.destination) for t in of_kind(records, Transfer) if t.destination == "hbm"]
    assert moves == [("target", "hbm"), ("drafts", "hbm")]
    first = next(r.at_seconds for r in records if isinstance(r.item, Prefill))
    moved = {(r.item.model, r.item.destination): r.at_seconds for r in records if isinstance(r.item, Transfer)}
    assert first <= moved["drafts", "hbm"]
    assert end_of(records, 2).timing.accepted_tokens > 0  # type: ignore[union-attr]


def test_a_draft_takes_no_room_from_what_is_asked_for():
    other = decoder("others", num_blocks=32)
    arrivals = [(1.0, generate(1, "others", max_tokens=12)), (1.0, generate(2, "target", max_tokens=12))]
    records = played([TARGET, DRAFT, other], arrivals=arrivals, hbm=ROOM_FOR_TWO)
    assert end_of(records, 1)
    moves = [t.model for t in of_kind(records, Transfer) if t.destination == "hbm"]
    assert moves.index("target") < 2
    evicted = [evict.model for evict in of_kind(records, Evict) if evict.tier == "hbm"]
    assert "target" not in evicted


def test_a_draft_leaves_for_a_request_while_its_target_goes_on():
    other = decoder("others", num_blocks=32)
    arrivals = [(1.0, generate(1, "target", max_tokens=12)), (1.35, generate(2, "others", max_tokens=3))]
    slow_target = replace(TARGET, programs=tuple(replace(p, step_seconds=0.1) for p in TARGET.programs))
    records = played([slow_target, DRAFT, other], arrivals=arrivals, hbm=ROOM_FOR_TWO)
    evicted = [evict.model for evict in of_kind(records, Evict) if evict.tier == "hbm"]
    assert evicted[0] == "drafts"
    answered = [r.item.request_id for r in records if isinstance(r.item, Reply) and r.item.finish_reason]
    assert sorted(answered) == [1, 2]


def test_the_drafts_own_requests_take_its_blocks_back():
    small = decoder("drafts", num_blocks=4, step_seconds=1e-4)
    arrivals = [
        (1.0, generate(1, "drafts", max_tokens=1)),
        (1.5, generate(2, "target", max_tokens=12)),
        (1.58, generate(3, "drafts", prompt=12, max_tokens=4)),
    ]
    records = played([TARGET, small], arrivals=arrivals)
    assert of_kind(records, Verify)
    assert end_of(records, 3)
    assert not [r for r in of_kind(records, Reply) if r.failure]


@pytest.mark.parametrize("kind", [Verify, Prefill], ids=["verify", "chunk"])
def test_a_failed_draft_is_not_asked_again(kind: type):
    def is_broken(work) -> bool:
        return isinstance(work, kind) and (isinstance(work, Verify) or work.model == "drafts")

    records = played([TARGET, DRAFT], arrivals=arrivals_at(1.0, 2.0, 3.0), is_broken=is_broken)
    failed = {r.request_id for r in of_kind(records, Reply) if r.failure}
    assert failed == ({2} if kind is Verify else set())
    assert end_of(records, 3).timing.proposed_tokens == 0  # type: ignore[union-attr]
    assert len(of_kind(records, Verify)) == (1 if kind is Verify else 0)


@st.composite
def traces(draw: st.DrawFn) -> Callable[[], tuple[Record, ...]]:
    """Few models of which some draft for others, with little room and many requests at once."""
    blocks = draw(st.sampled_from([4, 6, 12]))
    names = ["a", "bb", "ccc"]
    models = [
        decoder(name, num_blocks=blocks, batch=draw(st.integers(1, 3)), step_seconds=seconds)
        for name, seconds in zip(names, draw(st.permutations([0.01, 0.01, 1e-4])), strict=True)
    ]
    fast = min(models, key=lambda model: model.programs[0].step_seconds).name
    targets = draw(st.lists(st.sampled_from([name for name in names if name != fast]), min_size=1, unique=True))
    pairs = tuple(SpeculativePair(fast, target, draw(st.integers(1, 4))) for target in targets)
    arrivals = [
        (
            draw(st.integers(0, 60)) / 100,
            generate(
                number,
                draw(st.sampled_from([*targets, *names])),
                prompt=(1,) * draw(st.integers(1, 9)) if draw(st.booleans()) else draw(st.integers(1, 9)),
                max_tokens=draw(st.integers(1, 7)),
                seed=draw(st.integers(0, 3)),
            ),
        )
        for number in range(draw(st.integers(1, 16)))
    ]
    cancels = [(at + 0.05, request.id) for at, request in arrivals if not draw(st.integers(0, 5))]
    hbm = draw(st.sampled_from([1, 2, 3])) * (1000 + 4 * blocks) + 10
    broken = frozenset(draw(st.lists(st.integers(1, 80), max_size=draw(st.sampled_from([0, 0, 3])))))
    return partial(
        played,
        models,
        pairs,
        arrivals,
        draw_token=draw_alike,
        hbm=hbm,
        cancels=cancels,
        kv_bytes_per_s=draw(st.sampled_from([None, 1e6])),
        is_broken=lambda work: getattr(work, "step_id", None) in broken,
    )


@settings(max_examples=80, deadline=None)
@given(traces())
def test_every_rule_is_kept_with_drafts(play: Callable[[], tuple[Record, ...]]):
    assert play()  # verified: fails else
