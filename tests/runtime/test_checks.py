"""Checks are in nobody's way, however many are asked for."""

from __future__ import annotations

from functools import partial

from tiny_models import answer_of, decoder, generate, never_ends, run
from virtual_machine import verify

from plait.compiler.bundle.manifest import TierBudget
from plait.runtime.events import Check, Event, Prefill, Reply

A, B = decoder("a"), decoder("b")
ONE = 1100  # bytes of hbm for one of them
WAKE = (0.0, generate(0, "a", max_tokens=1))


def two_checks(max_tokens: int) -> list[tuple[float, Event]]:
    """Two checks of a model, the second while the first runs."""
    return [(at, Check(generate(number, "a", max_tokens=max_tokens))) for at, number in ((0.5, 1000), (0.53, 1001))]


def test_a_check_gives_way_to_who_waits_for_a_model_whether_or_not_another_was_asked_for():
    records = run([A, B], [WAKE, (0.6, generate(1, "b"))], hbm=ONE, events=two_checks(12), draw_token=never_ends)
    verify(records, [A, B], TierBudget(ONE, 10**6), partial(answer_of, draw_token=never_ends))
    begun = {e.request_id for r in records if isinstance(r.item, Prefill) for e in r.item.entries}
    assert begun == {0, 1, 1000}
    dropped = [r.item.request_id for r in records if isinstance(r.item, Reply) and r.item.failure == "dropped"]
    assert sorted(dropped) == [1000, 1001]


def test_checks_of_a_model_run_one_after_the_other():
    records = run([A], [WAKE], hbm=ONE, events=two_checks(8), draw_token=never_ends)
    verify(records, [A], TierBudget(ONE, 10**6), partial(answer_of, draw_token=never_ends))
    ended = {r.item.request_id: r.at_seconds for r in records if isinstance(r.item, Reply) and r.item.finish_reason}
    begun = {r.item.entries[0].request_id: r.at_seconds for r in records if isinstance(r.item, Prefill)}
    assert begun[1001] >= ended[1000]
    assert {1000, 1001} <= set(ended)
