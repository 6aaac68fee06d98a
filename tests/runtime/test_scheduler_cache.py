"""What the scheduler shares, waits for, saves and loads of the KV cache; each record is verified as a whole, too."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
from test_scheduler import ONE, TWO, A, B, answers, begun, end_of, ends, entries, moves, played
from tiny_models import BLOCK_TOKENS, answer_of, decoder, generate, never_ends

from plait.runtime.events import (
    Arrival,
    CopyBlocks,
    Decode,
    DropBlocks,
    Evict,
    LoadBlocks,
    Prefill,
    Request,
    SaveBlocks,
)
from plait.runtime.simulator import Record

FAST = 1e6  # bytes a second: a copy costs less than computing
CHUNKS_OF_FOUR = replace(A, programs=tuple(p for p in A.programs if p.configuration.new_tokens <= 4))
PROMPT = tuple(range(1, 11))  # two blocks and a half


def of_kind(records: Sequence[Record], *kinds: type) -> list:
    return [record.item for record in records if isinstance(record.item, kinds)]


def cached(records: Sequence[Record]) -> dict[int, int]:
    """Tokens of each request's prompt that were not computed."""
    return {i: reply.timing.cached_tokens for i, reply in ends(records).items() if reply.timing is not None}


# Prefixes


def test_a_prompt_that_begins_like_an_earlier_one_computes_the_rest():
    other = (*PROMPT[:8], 16, 16)
    arrivals = [(1.0, generate(1, "a", prompt=PROMPT)), (2.0, generate(2, "a", prompt=other))]
    records = played([A], arrivals, hbm=ONE)
    first = entries(records, 2)[0]
    assert (first.start, first.tokens) == (8, (16, 16))
    assert cached(records) == {1: 0, 2: 8}


def test_the_last_token_of_a_prompt_is_always_computed():
    arrivals = [(float(i), generate(i, "a", prompt=PROMPT[:8])) for i in (1, 2)]
    records = played([A], arrivals, hbm=ONE)
    assert cached(records) == {1: 0, 2: 4}


def test_the_next_turn_finds_the_answer_in_the_cache():
    first = generate(1, "a", prompt=PROMPT[:5], max_tokens=6)
    answer = answer_of(first, never_ends)[0]
    second = generate(2, "a", prompt=(*PROMPT[:5], *answer, 1))
    records = played([A], [(1.0, first), (2.0, second)], hbm=ONE, draw_token=never_ends)
    assert cached(records)[2] == 8  # of the 10 that were computed, whole blocks


def test_what_was_found_and_lost_before_the_first_step_was_not_cached():
    """An older answer takes the blocks that a prompt has found, before any step computes for it."""
    small = decoder("a", num_blocks=4)
    arrivals = [
        (1.0, generate(1, "a", prompt=(1,) * 8, max_tokens=1)),
        (1.2, generate(2, "a", prompt=tuple(range(2, 10)), max_tokens=8)),
        (1.205, generate(3, "a", prompt=(1,) * 6)),
    ]
    records = played([small], arrivals, hbm=ONE, draw_token=never_ends)
    assert cached(records) == {1: 0, 2: 0, 3: 0}


def test_salts_keep_tenants_apart():
    arrivals = [(float(i), generate(i, "a", prompt=PROMPT, salt=salt)) for i, salt in enumerate("xyx", 1)]
    assert cached(played([A], arrivals, hbm=ONE)) == {1: 0, 2: 0, 3: 8}


def test_what_was_used_last_is_kept_and_beginnings_longer_than_ends():
    small = decoder("a", num_blocks=5)
    prompts = [(1,) * 9, (2,) * 9, (1,) * 9]  # two full blocks each; the pool holds five
    records = played(
        [small], [(float(i), generate(i, "a", prompt=p, max_tokens=1)) for i, p in enumerate(prompts)], hbm=ONE
    )
    assert cached(records) == {0: 0, 1: 0, 2: 8}
    prompts = [(1,) * 9, (2,) * 13, (1,) * 9]  # the second needs four: one of the first's has to go
    records = played(
        [small], [(float(i), generate(i, "a", prompt=p, max_tokens=1)) for i, p in enumerate(prompts)], hbm=ONE
    )
    assert cached(records) == {0: 0, 1: 0, 2: 4}


def test_a_failed_step_costs_the_model_its_cache():
    steps = iter([False, False, True])
    arrivals = [(float(i), generate(i, "a", prompt=PROMPT, max_tokens=1)) for i in (1, 2, 3)]
    records = played([A], arrivals, hbm=ONE, is_broken=lambda work: isinstance(work, Prefill) and next(steps, False))
    assert {i: reply.failure for i, reply in ends(records).items()} == {1: None, 2: "failed", 3: None}
    assert cached(records) == {1: 0, 3: 0}


def test_an_evicted_model_comes_back_without_what_was_not_saved():
    arrivals = [(1.0, generate(1, "a", prompt=PROMPT)), (2.0, generate(2, "b")), (3.0, generate(3, "a", prompt=PROMPT))]
    assert cached(played([A, B], arrivals, hbm=ONE))[3] == 0


# Requests that come together


def test_choices_of_one_prompt_compute_it_once():
    arrivals = [(1.0, generate(i, "a", prompt=PROMPT, seed=i)) for i in (1, 2, 3)]
    records = played([A], arrivals, hbm=ONE, draw_token=never_ends)
    assert cached(records) == {1: 0, 2: 9, 3: 9}
    assert len(of_kind(records, CopyBlocks)) == 2  # of the block that is not full
    assert sum(len(step.entries) for step in of_kind(records, Prefill)) == 2  # both chunks of the first


def test_a_short_prompt_is_shared_too():
    arrivals = [(1.0, generate(i, "a", prompt=(5, 6, 7), seed=i)) for i in (1, 2)]
    assert cached(played([A], arrivals, hbm=ONE)) == {1: 0, 2: 2}


def test_others_pass_one_that_waits_for_its_beginning():
    prompts = [(1,) * 14, (*(1,) * 13, 2), (9, 9)]
    arrivals = [(1.0, generate(i, "a", prompt=prompt, max_tokens=2)) for i, prompt in enumerate(prompts, 1)]
    records = played([CHUNKS_OF_FOUR], arrivals, hbm=ONE, draw_token=never_ends)
    assert begun(records) == [1, 3, 2]
    assert cached(records) == {1: 0, 2: 13, 3: 0}


def test_one_that_waits_computes_when_the_other_leaves():
    arrivals = [(1.0, generate(i, "a", prompt=(1,) * 14, max_tokens=2)) for i in (1, 2)]
    records = played([A], arrivals, hbm=ONE, cancels=[(1.105, 1)])
    assert list(ends(records)) == [2]


def test_blocks_that_two_share_are_kept_when_one_leaves():
    arrivals = [(1.0, generate(i, "a", prompt=PROMPT, max_tokens=6)) for i in (1, 2)]
    records = played([A], arrivals, hbm=ONE, cancels=[(1.15, 1)], draw_token=never_ends)
    assert answers(records)[2] == answer_of(arrivals[1][1], never_ends)[0]


def test_a_prompt_takes_what_another_has_computed_since_it_was_admitted():
    answering = generate(1, "a", prompt=(1, 2), max_tokens=14)
    answer = answer_of(answering, never_ends)[0]
    follower = generate(2, "a", prompt=(1, 2, *answer[:12]), max_tokens=2)
    others = [(1.105, generate(3, "a", prompt=6, max_tokens=1)), (1.105, follower)]  # the older prompt goes first
    records = played([A], [(1.0, answering), *others], hbm=ONE, draw_token=never_ends, prefill_tokens=1)
    admitted = [record.at_seconds for record in records if isinstance(record.item, Arrival)][2]
    num_computed = max(e.start for r in records if r.at_seconds <= admitted for e in entries([r], 1))
    assert num_computed < 4  # less than a block of what it will take
    assert entries(records, 2)[0].start == cached(records)[2] == 8


# Chunks


@pytest.mark.parametrize("prefill_tokens", [1, 3, 4])
def test_a_chunk_keeps_its_budget_while_an_answer_is_generated(prefill_tokens: int):
    arrivals = [(1.0, generate(1, "a", prompt=2, max_tokens=14)), (1.15, generate(2, "a", prompt=14, max_tokens=1))]
    records = played([A], arrivals, hbm=ONE, draw_token=never_ends, prefill_tokens=prefill_tokens)
    steps = [record for record in records if isinstance(record.item, Prefill | Decode)]
    ended_at = end_of(records, 1)
    during = [r.item for r in steps if 1.15 <= r.at_seconds < ended_at]
    assert all(len(step.entries[0].tokens) <= prefill_tokens for step in during if isinstance(step, Prefill))
    kinds = [type(step) for step in during]
    assert (Prefill, Prefill) not in itertools.pairwise(kinds)


def test_short_prompts_and_a_long_one_take_turns():
    arrivals = [(1.0, generate(1, "a", prompt=15, max_tokens=1))]
    arrivals += [(1.105, generate(i, "a", prompt=2, max_tokens=1)) for i in (2, 3, 4, 5)]
    records = played([CHUNKS_OF_FOUR], arrivals, hbm=ONE, draw_token=never_ends)
    computed = [step.entries[0].request_id for step in of_kind(records, Prefill)]
    assert computed == [1, 2, 1, 3, 1, 1, 4, 5]  # the last chunk of the long one is a short one


def test_short_prompts_share_a_step_where_there_is_a_program():
    batching = decoder("a", prefill_batch=3)
    arrivals = [(1.0, generate(i, "a", prompt=3)) for i in (1, 2, 3, 4)]
    records = played([batching], arrivals, hbm=ONE, draw_token=never_ends)
    assert [len(step.entries) for step in of_kind(records, Prefill)] == [3, 1]


def test_short_prompts_follow_each_other_for_as_long_as_the_largest_chunk_takes():
    timed = [replace(p, step_seconds=0.02 if p.configuration.new_tokens == 8 else 0.01) for p in A.programs]
    several = replace(A, programs=tuple(timed))
    answering = (1.0, generate(1, "a", prompt=2, max_tokens=14))
    short = [(1.15, generate(i, "a", prompt=3, max_tokens=1)) for i in range(2, 9)]
    for others, runs in (short, [2, 2, 2, 1]), ([(1.15, generate(9, "a", prompt=8, max_tokens=1)), *short[:2]], [1, 2]):
        records = played([several], [answering, *others], hbm=ONE, draw_token=never_ends)
        steps = [r.item for r in records if isinstance(r.item, Prefill | Decode) and r.at_seconds >= 1.15]
        kinds = [(kind, len([*group])) for kind, group in itertools.groupby(map(type, steps))]
        assert [number for kind, number in kinds if kind is Prefill] == runs


# Clients


def test_a_client_with_many_requests_does_not_keep_another_waiting():
    single = decoder("a", batch=1)
    flood = [(1.0, generate(i, "a", client="flood", max_tokens=8)) for i in range(20)]
    records = played([single], [*flood, (1.2, generate(99, "a", client="other"))], hbm=ONE, draw_token=never_ends)
    assert begun(records).index(99) <= 2
    assert [i for i in begun(records) if i != 99] == list(range(20))


def test_clients_get_the_same_share_whatever_the_length_of_their_answers():
    single = decoder("a", batch=1)
    arrivals = [(1.0, generate(i, "a", client="long", max_tokens=12)) for i in range(8)]
    arrivals += [(1.0, generate(100 + i, "a", client="short", max_tokens=1)) for i in range(40)]
    order = begun(played([single], arrivals, hbm=ONE, draw_token=never_ends))
    during = order[: order.index(3)]
    # Three long ones had 15 tokens each, prompt and answer; short ones have 4.
    assert sum(i >= 100 for i in during) == pytest.approx(3 * 15 / 4, abs=2)


def test_clients_that_come_anew_pass_nobody_over_for_ever():
    single = decoder("a", batch=1)
    old = [(1.0, generate(i, "a", client="old", max_tokens=12)) for i in range(2)]
    new = [(1.0 + i / 18, generate(100 + i, "a", client=f"new {i}", max_tokens=4)) for i in range(100)]
    records = played([single], [*old, *new], hbm=ONE, draw_token=never_ends)
    assert begun(records).index(1) < 15


# Copies to ddr and back


def test_a_conversation_goes_on_where_it_was_after_its_model_was_away():
    arrivals = [(1.0, generate(1, "a", prompt=PROMPT)), (2.0, generate(2, "b")), (3.0, generate(3, "a", prompt=PROMPT))]
    records = played([A, B], arrivals, hbm=ONE, kv_bytes_per_s=FAST)
    assert cached(records)[3] == 8
    kinds = [type(item) for item in of_kind(records, SaveBlocks, LoadBlocks, Evict)]
    assert kinds == [SaveBlocks, Evict, SaveBlocks, Evict, LoadBlocks] or kinds == [
        SaveBlocks,
        Evict,
        Evict,
        LoadBlocks,
    ]


def test_what_was_saved_is_not_saved_again():
    arrivals = [(float(i), generate(i, "ab"[i % 2], prompt=PROMPT, max_tokens=1)) for i in range(1, 7)]
    records = played([A, B], arrivals, hbm=ONE, kv_bytes_per_s=FAST)
    assert len(of_kind(records, SaveBlocks)) == 2  # one for each model
    assert all(tokens == 8 for i, tokens in cached(records).items() if i > 2)


def test_nothing_is_saved_where_computing_costs_less():
    arrivals = [(1.0, generate(1, "a", prompt=PROMPT)), (2.0, generate(2, "b"))]
    assert not of_kind(played([A, B], arrivals, hbm=ONE, kv_bytes_per_s=100.0), SaveBlocks)


def test_what_was_used_last_is_kept_in_ddr_too():
    room = 2 * BLOCK_TOKENS  # a byte a token, beside the weights of both
    arrivals = [(float(i), generate(i, "ab"[i % 2], prompt=(*(i,) * 9,))) for i in range(1, 7)]
    records = played([A, B], arrivals, hbm=ONE, ddr=2000 + room, kv_bytes_per_s=FAST)
    assert of_kind(records, DropBlocks)


def test_weights_that_come_to_ddr_take_the_room_of_saved_blocks():
    arrivals = [(float(i), generate(i, "a", prompt=PROMPT)) for i in (1, 3)]
    arrivals.append((2.0, generate(2, "c", max_tokens=1)))
    models = [A, decoder("c", weights_bytes=32)]
    records = played(models, arrivals, hbm=ONE, ddr=1010, kv_bytes_per_s=FAST, draw_token=never_ends)
    (drop,) = of_kind(records, DropBlocks)
    assert len(drop.slots) == 1  # of three blocks of four bytes there is room for two: the last one goes
    assert cached(records)[3] == 8


def test_a_preempted_sequence_is_saved_and_goes_on():
    small = decoder("a", num_blocks=4)
    requests = [generate(i, "a", prompt=3, max_tokens=13, seed=i) for i in range(3)]
    records = played([small], [(1.0, r) for r in requests], hbm=ONE, draw_token=never_ends, kv_bytes_per_s=FAST)
    assert of_kind(records, SaveBlocks)
    assert of_kind(records, LoadBlocks)
    assert answers(records) == {r.id: answer_of(r, never_ends)[0] for r in requests}


@pytest.mark.parametrize("kind", [SaveBlocks, LoadBlocks])
def test_a_copy_that_fails_costs_the_cache_and_no_more_than_who_needed_it(kind: type):
    arrivals = [(1.0, generate(1, "a", prompt=PROMPT)), (2.0, generate(2, "b")), (3.0, generate(3, "a", prompt=PROMPT))]
    records = played(
        [A, B],
        [*arrivals, (4.0, generate(4, "a", prompt=PROMPT))],
        hbm=ONE,
        kv_bytes_per_s=FAST,
        is_broken=_once(lambda work: isinstance(work, kind)),
    )
    failed = [i for i, reply in ends(records).items() if reply.failure]
    assert failed == ([3] if kind is LoadBlocks else [])
    assert moves(records) == ["+a", "-a", "+b", "-b", "+a"]


def test_requests_younger_than_a_held_one_do_not_come_between_a_copy_and_its_switch():
    """While a's blocks are saved for the sake of b, requests for a wait."""
    arrivals: list[tuple[float, Request]] = [
        (1.0, generate(1, "a", prompt=PROMPT, max_tokens=1)),
        (2.0, generate(2, "b")),
    ]
    arrivals += [(2.0 + i / 1e5, generate(10 + i, "a", prompt=PROMPT, max_tokens=2)) for i in range(30)]
    records = played([A, B], arrivals, hbm=ONE, kv_bytes_per_s=FAST)
    assert begun(records)[1] == 2


def test_other_models_compute_between_the_copies():
    arrivals = [(1.0, generate(1, "a", prompt=PROMPT)), (1.3, generate(2, "b", max_tokens=12))]
    records = played(
        [A, B, decoder("c")], [*arrivals, (1.45, generate(3, "c"))], hbm=TWO, kv_bytes_per_s=FAST, draw_token=never_ends
    )
    assert moves(records) == ["+a", "+b", "-a", "+c"]
    saved_at = next(r.at_seconds for r in records if isinstance(r.item, SaveBlocks))
    assert saved_at < end_of(records, 2)


def _once(is_meant):
    """Whether work is the first of its kind."""
    seen: list[object] = []

    def is_first(work) -> bool:
        if not is_meant(work) or seen:
            return False
        seen.append(work)
        return True

    return is_first
