"""Loads and unloads: in order with requests, gentle to busy models, and what is unloaded stays away until asked for."""

from __future__ import annotations

from functools import partial

from tiny_models import answer_of, decoder, encoder, generate, load, never_ends, run, unload
from virtual_machine import verify

from plait.compiler.bundle.manifest import TierBudget
from plait.runtime.events import DropBlocks, Evict, Reply, SaveBlocks, Transfer

BOTH = 10**6
ONE = 1100  # hbm for one of two decoders


def play(models, arrivals, *, hbm=BOTH, ddr=BOTH, **options):
    records = run(models, arrivals, hbm=hbm, ddr=ddr, draw_token=never_ends, **options)
    verify(records, models, TierBudget(hbm, ddr), partial(answer_of, draw_token=never_ends))
    return records


def replied_at(records, request_id: int) -> float:
    return next(r.at_seconds for r in records if isinstance(r.item, Reply) and r.item.request_id == request_id)


def moves(records, kind, model: str) -> list:
    return [record.item for record in records if isinstance(record.item, kind) and record.item.model == model]


def test_a_load_is_answered_when_the_model_is_hot_and_the_next_request_waits_for_nothing():
    records = play([decoder("a"), decoder("b")], [(1.0, load(1, "a")), (2.0, generate(2, "a"))])
    done = next(r.item for r in records if isinstance(r.item, Reply) and r.item.request_id == 1)
    assert done.finish_reason == "stop"
    assert replied_at(records, 1) > 1.1  # a tenth of a second for the link
    first = next(r.item for r in records if isinstance(r.item, Reply) and r.item.request_id == 2)
    assert first.timing is not None
    assert first.timing.switch_seconds == 0


def test_a_load_of_a_hot_model_is_answered_at_once():
    records = play([decoder("a", pin="hbm")], [(1.0, load(1, "a"))])
    assert replied_at(records, 1) == 1.0


def test_a_load_waits_for_the_busy_model_in_its_way():
    records = play(
        [decoder("a"), decoder("b")], [(1.0, generate(1, "a", max_tokens=12)), (1.15, load(2, "b"))], hbm=ONE
    )
    ends = [r.at_seconds for r in records if isinstance(r.item, Reply) and r.item.finish_reason]
    assert ends[0] < ends[1]  # the answer, then the load
    assert len(moves(records, Evict, "a")) == 1


def test_a_load_whose_client_leaves_evicts_nothing():
    models = [decoder("a"), decoder("b")]
    arrivals = [(1.0, generate(1, "a", max_tokens=12)), (1.15, load(2, "b"))]
    assert not moves(play(models, arrivals, hbm=ONE, cancels=[(1.16, 2)]), Evict, "a")


def test_an_unload_comes_after_running_answers_and_before_what_is_asked_later():
    arrivals = [(1.0, generate(1, "a", max_tokens=12)), (1.15, unload(2, "a")), (1.16, generate(3, "a"))]
    records = play([decoder("a")], arrivals)
    order = [r.item.request_id for r in records if isinstance(r.item, Reply) and r.item.finish_reason]
    assert order == [1, 2, 3]
    assert {evict.tier for evict in moves(records, Evict, "a")} == {"hbm", "ddr"}


def test_an_unloaded_model_is_not_warmed_again_until_somebody_asks():
    records = play([decoder("a"), decoder("b")], [(1.0, unload(1, "a")), (2.0, generate(2, "b"))])
    assert len(moves(records, Transfer, "a")) == 1  # at the start
    back = play([decoder("a"), decoder("b")], [(1.0, unload(1, "a")), (2.0, generate(2, "a"))])
    assert [(move.source, move.destination) for move in moves(back, Transfer, "a")][1:] == [
        ("disk", "ddr"),
        ("ddr", "hbm"),
    ]


def test_an_unload_to_ddr_saves_the_cache_and_one_to_disk_drops_it():
    long = generate(1, "a", prompt=12, max_tokens=2)
    slow = decoder("a", step_seconds=0.2)
    kept = play([slow], [(1.0, long), (5.0, unload(2, "a", tier="ddr"))], kv_bytes_per_s=1e6)
    assert moves(kept, SaveBlocks, "a")
    assert [evict.tier for evict in moves(kept, Evict, "a")] == ["hbm"]
    arrivals = [(1.0, long), (5.0, unload(2, "a", tier="ddr")), (6.0, unload(3, "a"))]
    dropped = play([slow], arrivals, kv_bytes_per_s=1e6)
    assert any(isinstance(record.item, DropBlocks) for record in dropped)
    assert [evict.tier for evict in moves(dropped, Evict, "a")] == ["hbm", "ddr"]


def test_an_unload_of_a_pinned_model_changes_nothing():
    records = play([decoder("a", pin="hbm"), encoder("e")], [(1.0, unload(1, "a", tier="ddr"))])
    assert not moves(records, Evict, "a")


def test_a_load_times_out_as_a_request_does():
    arrivals = [(1.0, generate(1, "a", max_tokens=12)), (1.05, load(2, "b"))]
    records = play([decoder("a"), decoder("b")], arrivals, hbm=ONE, queue_timeout_seconds=0.11)
    assert [r.item.failure for r in records if isinstance(r.item, Reply) and r.item.request_id == 2] == ["timeout"]
