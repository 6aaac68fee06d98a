"""What DESIGN promises of the scheduler, one sentence at a time; each record is verified as a whole, too."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tiny_models import answer_of, decoder, embed, encoder, generate, never_ends, run
from virtual_machine import verify

from plait.compiler.bundle.manifest import ModelEntry, TierBudget
from plait.errors import DoesNotFitError
from plait.runtime.events import (
    Cancel,
    Decode,
    Embed,
    Evict,
    Prefill,
    Reply,
    Request,
    SequenceEntry,
    Step,
    StepDone,
    Transfer,
    TransferCancelled,
    TransferDone,
    TransferFailed,
)
from plait.runtime.scheduler import Scheduler
from plait.runtime.simulator import Record

A = decoder("a", weights_bytes=1000)  # 64 bytes of KV and 10 of workspace
B = decoder("b", weights_bytes=1000)
ONE = 1100  # bytes of hbm in which one of them fits
TWO = 2200
KV_BLOCKS = 4  # of a pool that holds one longest sequence


def played(models: list[ModelEntry], arrivals: list[tuple[float, Request]], *, hbm: int, **options) -> list[Record]:
    """A verified record of a trace."""
    records = run(models, arrivals, hbm=hbm, **options)
    draw_token = options.get("draw_token")
    answer = answer_of if draw_token is None else lambda request: answer_of(request, draw_token)
    verify(records, models, TierBudget(hbm, options.get("ddr", 10**6)), answer)
    return list(records)


def moves(records: Sequence[Record]) -> list[str]:
    """What leaves and enters hbm, in order."""
    evicted = {r: f"-{r.item.model}" for r in records if isinstance(r.item, Evict) and r.item.tier == "hbm"}
    moved = {r: f"+{r.item.model}" for r in records if isinstance(r.item, Transfer) and r.item.destination == "hbm"}
    return [(evicted | moved)[r] for r in records if r in evicted or r in moved]


def ends(records: Sequence[Record]) -> dict[int, Reply]:
    """The last reply to each request, in order."""
    replies = [r.item for r in records if isinstance(r.item, Reply)]
    return {reply.request_id: reply for reply in replies if reply.finish_reason or reply.failure}


def answers(records: Sequence[Record]) -> dict[int, tuple[int, ...]]:
    """All tokens that each request was sent."""
    streamed: dict[int, tuple[int, ...]] = {}
    for record in records:
        if isinstance(record.item, Reply):
            streamed[record.item.request_id] = streamed.get(record.item.request_id, ()) + record.item.tokens
    return streamed


def begun(records: Sequence[Record]) -> list[int]:
    """The requests in the order of their first steps."""
    steps = [r.item for r in records if isinstance(r.item, Prefill | Decode | Embed)]
    return list(dict.fromkeys(entry.request_id for step in steps for entry in step.entries))


def end_of(records: Sequence[Record], request_id: int) -> float:
    return next(r.at_seconds for r in records if isinstance(r.item, Reply) and _ends(r.item, request_id))


def _ends(reply: Reply, request_id: int) -> bool:
    return reply.request_id == request_id and reply.finish_reason is not None


def entries(records: Sequence[Record], request_id: int) -> list[SequenceEntry]:
    steps = [r.item for r in records if isinstance(r.item, Prefill | Decode)]
    return [entry for step in steps for entry in step.entries if entry.request_id == request_id]


# Switching


def test_a_busy_model_is_never_evicted():
    arrivals = [(1.0, generate(1, "a", max_tokens=10)), (1.02, generate(2, "b"))]
    records = played([A, B], arrivals, hbm=ONE, draw_token=never_ends)
    evicted_at = next(r.at_seconds for r in records if isinstance(r.item, Evict))
    assert evicted_at >= end_of(records, 1)
    assert moves(records) == ["+a", "-a", "+b"]


def test_an_idle_model_gives_way_at_once():
    records = played([A, B], [(1.0, generate(1, "a")), (3.0, generate(2, "b"))], hbm=ONE)
    assert next(r.at_seconds for r in records if isinstance(r.item, Evict)) == 3.0


def test_many_requests_for_one_missing_model_cost_one_eviction_and_one_transfer():
    arrivals = [(1.0, generate(0, "a"))] + [(2.0 + i / 100, generate(1 + i, "b")) for i in range(12)]
    records = played([A, B], arrivals, hbm=ONE)
    assert moves(records) == ["+a", "-a", "+b"]


def test_a_client_that_leaves_while_queued_evicts_nothing():
    arrivals = [(1.0, generate(1, "a", max_tokens=10)), (1.02, generate(2, "b"))]
    records = played([A, B], arrivals, hbm=ONE, cancels=[(1.05, 2)], draw_token=never_ends)
    assert moves(records) == ["+a"]
    assert list(ends(records)) == [1]


def test_a_barrier_ends_with_the_request_that_asked_for_it():
    arrivals = [(1.0, generate(1, "a", max_tokens=12)), (1.12, generate(2, "b")), (1.13, generate(3, "a"))]
    records = played([A, B], arrivals, hbm=ONE, cancels=[(1.15, 2)], draw_token=never_ends)
    assert begun(records) == [1, 3]
    assert entries(records, 3)
    assert end_of(records, 3) < end_of(records, 1)


@pytest.mark.parametrize("tiered", [True, False], ids=["tiered", "unified"])
def test_a_request_is_held_during_a_switch(tiered: bool):
    records = played([A, B], [(1.0, generate(1, "a")), (1.001, generate(2, "b"))], hbm=ONE, tiered=tiered)
    assert {reply.failure for reply in ends(records).values()} == {None}
    assert sorted(ends(records)) == [1, 2]


def test_the_wait_for_a_switch_is_told():
    records = played([A], [(1.0, generate(1, "a"))], hbm=ONE)
    timing = ends(records)[1].timing
    assert timing is not None
    assert (timing.arrived_at, timing.started_at) == (1.0, pytest.approx(1.101))
    assert timing.switch_seconds == pytest.approx(0.001 + 1000 / 10_000)


def test_requests_younger_than_a_held_one_do_not_keep_its_model_out():
    """Two busy models in hbm, requests for both without end, and one for a third: steps in turn must not defer it."""
    stream = [(1.0 + i / 50, generate(i, "ab"[i % 2], max_tokens=12)) for i in range(200)]
    records = played(
        [A, B, decoder("c")], [*stream, (1.5, generate(900, "c"))], hbm=TWO, draw_token=never_ends, decode_steps=1
    )
    younger = [r.id for at, r in stream if at > 1.5]
    assert end_of(records, 900) < 3.0
    assert end_of(records, 900) < min(end_of(records, request_id) for request_id in younger[-100:])


def test_models_that_take_turns_in_hbm_all_end():
    models = [decoder(name) for name in "abcd"]
    arrivals = [(1.0 + i / 1000, generate(i, "abcd"[i % 4])) for i in range(40)]
    records = played(models, arrivals, hbm=ONE)
    assert len(ends(records)) == 40


def test_hot_models_take_turns():
    arrivals = [(1.0, generate(1, "a")), (1.0, generate(2, "b"))]
    later = [(2.0, generate(3, "a", max_tokens=6)), (2.0, generate(4, "b", max_tokens=6))]
    records = played([A, B], [*arrivals, *later], hbm=TWO, draw_token=never_ends)
    models = [r.item.model for r in records if isinstance(r.item, Prefill | Decode) and r.at_seconds >= 2.0]
    assert models == ["a", "b"] * (len(models) // 2)


def test_steps_go_on_during_a_transfer():
    arrivals = [(1.0, generate(1, "a", max_tokens=12)), (1.15, generate(2, "b"))]
    records = played([A, B], arrivals, hbm=TWO, draw_token=never_ends)
    kinds = [type(r.item) for r in records if r.at_seconds >= 1.15]
    during = kinds[kinds.index(Transfer) : kinds.index(TransferDone)]
    assert during.count(Decode) >= 3


def transfers(records: Sequence[Record]) -> list[tuple[float, str, str]]:
    """When transfers begin, of which model, and how they end."""
    ends_ = [r.item for r in records if isinstance(r.item, TransferDone | TransferCancelled | TransferFailed)]
    how = {end.transfer_id: type(end).__name__.removeprefix("Transfer") for end in ends_}
    begun_ = [(r.at_seconds, r.item) for r in records if isinstance(r.item, Transfer)]
    return [(round(at, 3), transfer.model, how[transfer.transfer_id]) for at, transfer in begun_]


def test_a_transfer_for_nobody_ends_after_its_chunk_when_somebody_waits():
    """At the start a is brought to ddr, then b, each in 0.101 seconds and five chunks; a is asked for meanwhile."""
    records = played([A, B], [(0.15, generate(1, "a"))], hbm=ONE)
    assert transfers(records)[:3] == [(0.0, "a", "Done"), (0.101, "b", "Cancelled"), (0.162, "a", "Done")]
    assert transfers(records)[3][1:] == ("b", "Done")
    assert begun(records) == [1]


def test_the_last_chunk_of_a_transfer_is_let_arrive():
    records = played([A, B], [(0.185, generate(1, "a"))], hbm=ONE)
    assert transfers(records)[:3] == [(0.0, "a", "Done"), (0.101, "b", "Done"), (0.202, "a", "Done")]


def test_a_transfer_that_somebody_waits_for_goes_on():
    arrivals = [(1.0, generate(1, "a")), (1.01, generate(2, "b", priority=-1))]
    records = played([A, B], arrivals, hbm=ONE)
    assert "Cancelled" not in {end for *_, end in transfers(records)}


def test_a_transfer_whose_client_has_left_is_finished_unless_somebody_waits_for_another():
    arrivals = [(1.0, generate(1, "a"))]
    alone = played([A, B], arrivals, hbm=ONE, cancels=[(1.01, 1)])
    assert transfers(alone)[2:] == [(1.0, "a", "Done")]
    beside = played([A, B], [*arrivals, (1.02, generate(2, "b"))], hbm=ONE, cancels=[(1.01, 1)])
    assert transfers(beside)[2:] == [(1.0, "a", "Cancelled"), (1.021, "b", "Done")]


def test_a_transfer_is_not_ended_for_a_request_that_has_to_wait_anyway():
    """b is fetched ahead while a is busy; c needs the room of both."""
    large = decoder("c", weights_bytes=1900)
    arrivals = [(2.0, generate(1, "a", max_tokens=13)), (2.11, generate(2, "c", client="x"))]
    records = played([A, B, large], arrivals, hbm=TWO, workflows=(("a", "b"),), draw_token=never_ends)
    assert transfers(records)[4] == (2.101, "b", "Done")
    assert transfers(records)[5][1:] == ("c", "Done")


def test_a_model_that_makes_room_keeps_what_fits_and_brings_only_the_rest_back():
    large = decoder("a", weights_bytes=1000, num_segments=10)
    small = decoder("b", weights_bytes=300)
    arrivals = [(1.0, generate(1, "a")), (2.0, generate(2, "b")), (3.0, generate(3, "a"))]
    records = played([large, small], arrivals, hbm=ONE)
    moved = [r.item for r in records if isinstance(r.item, Transfer) and r.item.destination == "hbm"]
    assert [(transfer.model, transfer.num_bytes) for transfer in moved] == [("a", 1000), ("b", 300), ("a", 300)]
    assert [r.item.num_kept for r in records if isinstance(r.item, Evict)] == [7, 0]
    wait = [ends(records)[number].timing.switch_seconds for number in (1, 3)]  # type: ignore[union-attr]
    assert wait == [pytest.approx(0.101), pytest.approx(0.031)]


# Order


def test_order_is_first_come_first_served_within_a_class():
    single = decoder("a", batch=1)
    arrivals = [(1.0 + i / 1000, generate(i, "a")) for i in range(6)]
    assert begun(played([single], arrivals, hbm=ONE)) == [0, 1, 2, 3, 4, 5]


def test_a_lower_class_number_goes_first():
    single = decoder("a", batch=1)
    arrivals = [(1.0 + i / 1000, generate(i, "a", priority=(2, 1, 0)[i % 3])) for i in range(6)]
    assert begun(played([single], arrivals, hbm=ONE)) == [2, 5, 1, 4, 0, 3]


def test_a_lower_class_number_goes_first_among_embeddings():
    arrivals = [(1.0, embed(1, lengths=(10,) * 5, priority=1)), (1.08, embed(2, lengths=(10,), priority=0))]
    records = played([encoder()], arrivals, hbm=ONE)
    assert end_of(records, 2) < end_of(records, 1)


def test_the_model_of_the_oldest_held_request_comes_first():
    names = ["c", "b", "d"]
    arrivals = [(1.0, generate(0, "a", max_tokens=8))]
    arrivals += [(1.001 + i / 1000, generate(1 + i, name)) for i, name in enumerate(names)]
    records = played([decoder(name) for name in "abcd"], arrivals, hbm=ONE)
    assert [move for move in moves(records) if move[0] == "+"] == ["+a", "+c", "+b", "+d"]


# Tiers and pins


def test_models_are_brought_closer_before_the_first_request():
    scheduler = Scheduler([A, B], TierBudget(ONE, 10**6), tiered=True)
    assert scheduler.start(0.0) == [Transfer(1, "a", "disk", "ddr", 1000)]
    assert not scheduler.is_settled
    assert scheduler.handle(TransferDone(1), 1.0) == [Transfer(2, "b", "disk", "ddr", 1000)]
    assert scheduler.handle(TransferDone(2), 2.0) == []
    assert scheduler.is_settled
    assert scheduler.is_idle


def test_pinned_models_are_made_hot_first_and_stay():
    pinned = encoder("pinned", weights_bytes=100, pin="hbm")
    arrivals = [(2.0 + i, generate(i, "ab"[i % 2])) for i in range(6)] + [(9.0, embed(9, "pinned"))]
    records = played([A, B, pinned], arrivals, hbm=1200)
    assert moves(records)[0] == "+pinned"
    assert "-pinned" not in moves(records)
    assert begun(records)[-1] == 9


def test_pinned_models_pass_one_by_one_through_a_ddr_that_holds_one():
    pinned = [encoder(name, weights_bytes=400, pin="hbm") for name in ("p", "q", "r")]
    records = played(pinned, [(1.0, embed(1, "r"))], hbm=1210, ddr=400)
    assert moves(records) == ["+p", "+q", "+r"]


def test_a_model_pinned_to_ddr_is_never_dropped_from_it():
    pinned = decoder("pinned", pin="ddr")
    arrivals = [(1.0 + i, generate(i, ("a", "b", "pinned")[i % 3])) for i in range(9)]
    records = played([A, B, pinned], arrivals, hbm=ONE, ddr=2000)
    assert next(r.item for r in records if isinstance(r.item, Transfer)).model == "pinned"


def test_a_pinned_model_that_failed_to_arrive_comes_when_asked_for_and_within_the_budget():
    pinned = encoder("pinned", weights_bytes=1000, pin="hbm")
    other = decoder("other", weights_bytes=900)
    third = decoder("third", weights_bytes=900)
    arrivals = [
        (1.0, generate(1, "other")),
        (1.5, generate(2, "third", max_tokens=12)),
        (1.7, embed(3, "pinned")),
        (5.0, generate(4, "other")),
    ]
    first = iter([True])
    records = played(
        [other, third, pinned],
        arrivals,
        hbm=2000,
        ddr=1900,
        is_broken=lambda work: isinstance(work, Transfer) and work.model == "pinned" and next(first, False),
        draw_token=never_ends,
    )
    assert all(reply.failure is None for reply in ends(records).values())
    assert "-pinned" not in moves(records)


def test_a_model_that_fits_no_budget_is_refused_with_what_would_help():
    with pytest.raises(
        DoesNotFitError, match=r"model 'a' needs .* of hbm, .*raise the hbm budget to 1074 bytes or lower"
    ):
        Scheduler([A], TierBudget(1073, 10**6), tiered=True)
    Scheduler([A], TierBudget(1074, 1000), tiered=True)


# Answers


@pytest.mark.parametrize("decode_steps", [1, 2, 3, 4])
@pytest.mark.parametrize("prompt", [1, 3, 4, 5, 8, 9, 12])
def test_answers_are_what_the_model_draws(prompt: int, decode_steps: int):
    requests = [generate(i, "a", prompt=prompt, max_tokens=16 - prompt, seed=i) for i in range(5)]
    records = played([A], [(1.0, request) for request in requests], hbm=ONE, decode_steps=decode_steps)
    assert answers(records) == {request.id: answer_of(request)[0] for request in requests}
    assert {i: reply.finish_reason for i, reply in ends(records).items()} == {r.id: answer_of(r)[1] for r in requests}


@pytest.mark.parametrize("decode_steps", [1, 4])
@pytest.mark.parametrize("max_tokens", [1, 2, 5])
def test_an_answer_has_no_more_than_max_tokens(max_tokens: int, decode_steps: int):
    request = generate(1, "a", max_tokens=max_tokens)
    records = played([A], [(1.0, request)], hbm=ONE, draw_token=never_ends, decode_steps=decode_steps)
    assert len(answers(records)[1]) == max_tokens
    assert ends(records)[1].finish_reason == "length"


@pytest.mark.parametrize("num_tokens", [0, 1, 3])
def test_the_end_of_text_ends_an_answer_and_is_no_token_of_it(num_tokens: int):
    def ends_after(model: str, prompt: tuple[int, ...], position: int, seed: int) -> int:
        return 0 if position == num_tokens else 1 + position

    records = played([A], [(1.0, generate(1, "a", max_tokens=9))], hbm=ONE, draw_token=ends_after, decode_steps=3)
    assert answers(records)[1] == tuple(range(1, num_tokens + 1))
    assert ends(records)[1].finish_reason == "stop"


def test_the_end_of_text_in_the_last_token_is_a_stop():
    def ends_last(model: str, prompt: tuple[int, ...], position: int, seed: int) -> int:
        return 0 if position == 3 else 1

    records = played([A], [(1.0, generate(1, "a", max_tokens=4))], hbm=ONE, draw_token=ends_last)
    assert (answers(records)[1], ends(records)[1].finish_reason) == ((1, 1, 1), "stop")


def test_a_long_prompt_takes_several_chunks_and_decoding_goes_on_between_them():
    arrivals = [(1.0, generate(1, "a", prompt=2, max_tokens=14)), (1.15, generate(2, "a", prompt=15, max_tokens=1))]
    records = played([A], arrivals, hbm=ONE, draw_token=never_ends)
    chunks = entries(records, 2)
    assert [(entry.start, len(entry.tokens)) for entry in chunks] == [(0, 8), (8, 7)]
    steps = [r.item for r in records if isinstance(r.item, Prefill | Decode)]
    where = [steps.index(step) for step in steps if step.entries[0] in chunks]
    assert isinstance(steps[where[0] + 1], Decode)


def test_a_preempted_sequence_gives_the_same_answer():
    small = decoder("a", num_blocks=KV_BLOCKS)
    requests = [generate(i, "a", prompt=3, max_tokens=13, seed=i) for i in range(3)]
    records = played([small], [(1.0, request) for request in requests], hbm=ONE, draw_token=never_ends)
    restarts = [sum(entry.start == 0 for entry in entries(records, request.id)) for request in requests]
    assert restarts[0] == 1
    assert max(restarts) > 1
    assert answers(records) == {request.id: answer_of(request, never_ends)[0] for request in requests}


def test_an_older_prompt_takes_all_blocks_of_those_that_decode():
    small = decoder("a", num_blocks=KV_BLOCKS)
    urgent = generate(2, "a", prompt=12, max_tokens=2, priority=0)
    arrivals = [(1.0, generate(1, "a", prompt=3, max_tokens=12, priority=1)), (1.112, urgent)]
    records = played([small], arrivals, hbm=ONE, draw_token=never_ends)
    assert end_of(records, 2) < end_of(records, 1)
    assert sum(entry.start == 0 for entry in entries(records, 1)) == 2


def test_sequences_of_one_model_are_decoded_together():
    requests = [generate(i, "a", max_tokens=8) for i in range(4)]
    records = played([A], [(1.0, request) for request in requests], hbm=ONE, draw_token=never_ends)
    assert max(len(r.item.entries) for r in records if isinstance(r.item, Decode)) == 4


# Embeddings


def test_a_list_longer_than_a_step_takes_several():
    records = played([encoder(batch=4)], [(1.0, embed(1, lengths=(3,) * 10))], hbm=ONE)
    steps = [r.item for r in records if isinstance(r.item, Embed)]
    assert [len(step.entries) for step in steps] == [4, 4, 2]
    assert list(ends(records)) == [1]


def test_lists_of_several_clients_share_a_step():
    records = played([encoder(batch=4)], [(1.0, embed(1)), (1.0, embed(2)), (1.0, embed(3))], hbm=ONE)
    steps = [r.item for r in records if isinstance(r.item, Embed)]
    assert [len(step.entries) for step in steps] == [3]


def test_a_long_sequence_gets_a_step_that_holds_it():
    records = played([encoder(batch=4)], [(1.0, embed(1, lengths=(3, 16, 3)))], hbm=ONE)
    steps = [r.item for r in records if isinstance(r.item, Embed)]
    assert [len(step.entries[0].tokens) for step in steps] == [3, 16, 3]
    assert steps[1].configuration.new_tokens == 16


# Clients that leave, and what fails


@pytest.mark.parametrize("at_seconds", [1.05, 1.105, 1.13], ids=["held", "in a prefill", "in a decode"])
def test_nothing_more_is_said_or_computed_for_a_client_that_left(at_seconds: float):
    arrivals = [(1.0, generate(1, "a", max_tokens=12)), (1.0, generate(2, "a", max_tokens=12))]
    records = played([A], arrivals, hbm=ONE, cancels=[(at_seconds, 1)], draw_token=never_ends)
    left = [r.item for r in records].index(Cancel(1))
    assert all(
        e.request_id == 2 for r in records[left:] if isinstance(r.item, Prefill | Decode) for e in r.item.entries
    )
    assert list(ends(records)) == [2]


def test_blocks_of_a_client_that_left_are_free_again():
    small = decoder("a", num_blocks=KV_BLOCKS)
    arrivals = [(1.0, generate(1, "a", prompt=13, max_tokens=3)), (1.001, generate(2, "a", prompt=13, max_tokens=3))]
    records = played([small], arrivals, hbm=ONE, cancels=[(1.105, 1)])
    assert list(ends(records)) == [2]


def test_a_request_that_waits_too_long_is_told_how_long():
    arrivals = [(1.0, generate(1, "a", max_tokens=12)), (1.001, generate(2, "b"))]
    records = played([A, B], arrivals, hbm=ONE, queue_timeout_seconds=0.15, draw_token=never_ends)
    assert ends(records)[2].failure == "timeout"
    assert ends(records)[2].message.startswith("the request waited 0.15 s for its first step")
    assert moves(records) == ["+a"]


def test_an_answer_that_has_begun_does_not_time_out():
    records = played(
        [A], [(1.0, generate(1, "a", max_tokens=12))], hbm=ONE, queue_timeout_seconds=0.12, draw_token=never_ends
    )
    assert ends(records)[1].finish_reason == "length"


def test_a_failed_step_fails_its_requests_and_no_others():
    arrivals = [(1.0, generate(1, "a")), (1.0, generate(2, "b")), (2.0, generate(3, "a"))]
    records = played([A, B], arrivals, hbm=TWO, is_broken=lambda work: isinstance(work, Prefill) and work.model == "a")
    assert {i: reply.failure for i, reply in ends(records).items()} == {1: "failed", 2: None, 3: "failed"}
    assert ends(records)[1].message.endswith("of a was made to fail")


def test_a_failed_transfer_fails_those_who_wait_for_it_and_is_tried_again_for_the_next():
    fails = iter([True])

    def is_broken(work: Step | Transfer) -> bool:
        return isinstance(work, Transfer) and work.destination == "hbm" and next(fails, False)

    arrivals = [(1.0, generate(1, "a")), (1.05, generate(2, "a")), (2.0, generate(3, "a"))]
    records = played([A], arrivals, hbm=ONE, is_broken=is_broken)
    assert {i: reply.failure for i, reply in ends(records).items()} == {1: "failed", 2: "failed", 3: None}


def test_a_step_that_is_not_under_way_cannot_end():
    scheduler = Scheduler([A], TierBudget(ONE, 10**6), tiered=True)
    with pytest.raises(AssertionError, match="step 7 ended and none was under way"):
        scheduler.handle(StepDone(7), 0.0)
