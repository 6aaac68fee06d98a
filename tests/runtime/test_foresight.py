"""What the scheduler makes of the requests that it has seen: whom it evicts, and what it fetches ahead."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import pytest
from tiny_models import answer_of, decoder, generate, never_ends, target
from virtual_machine import verify

from plait.compiler.bundle.manifest import ModelEntry, TierBudget
from plait.compiler.target import Link
from plait.runtime.events import Decode, Evict, Reply, Request, TierName, Transfer
from plait.runtime.foresight import Foresight
from plait.runtime.model_queue import ModelQueue
from plait.runtime.residency import ResidencyManager
from plait.runtime.scheduler import Scheduler
from plait.runtime.simulator import Record, SimExecutor, simulate
from plait.runtime.workflow import Forecast

WORKSPACE = 10
LOOP = "abcd"


def models(names: str = LOOP, *, sizes: Sequence[int] = ()) -> list[ModelEntry]:
    sizes = sizes or [1000] * len(names)
    return [decoder(name, num_blocks=4, batch=1, weights_bytes=size) for name, size in zip(names, sizes, strict=True)]


def play(
    entries: list[ModelEntry],
    arrivals: list[tuple[float, Request]],
    *,
    room: int,
    workflows: Sequence[Sequence[str]] = (),
    ddr: int = 10**6,
) -> tuple[Record, ...]:
    """Simulates and verifies a trace with room for so many models of equal size in hbm."""
    budget, machine = TierBudget(room * entries[0].resident_bytes + WORKSPACE, ddr), target()
    scheduler = Scheduler(entries, budget, tiered=True, workflows=workflows, links=machine.links)
    records = simulate(scheduler, SimExecutor(entries, machine, draw=never_ends), arrivals)
    verify(records, entries, budget, lambda request: answer_of(request, never_ends))
    return records


def loop(num_requests: int, *, max_tokens: int = 13, seconds: float = 0.15) -> list[tuple[float, Request]]:
    """Requests for the models in turn, the first a transfer's time earlier, for it will wait for one.

    13 tokens take 0.13 s, longer than the transfer of a model.
    """
    return [
        (2.0 + index * seconds + 0.1 * (index > 0), generate(index, LOOP[index % len(LOOP)], max_tokens=max_tokens))
        for index in range(num_requests)
    ]


def stalls(records: Sequence[Record]) -> list[float]:
    """What each request waited for a switch, in the order of their ends."""
    ends = (record.item for record in records if isinstance(record.item, Reply) and record.item.finish_reason)
    return [reply.timing.switch_seconds for reply in ends if reply.timing is not None]


@pytest.mark.parametrize("room", [2, 3])
def test_a_declared_loop_over_models_that_do_not_all_fit_does_not_stall(room: int):
    without = stalls(play(models(), loop(8), room=room))
    first, second, *others = stalls(play(models(), loop(40), room=room, workflows=[LOOP]))
    assert first == pytest.approx(0.101)
    assert max(without[room:]) > 0.1
    assert [second, *others] == [0.0] * 39


def test_a_model_between_all_others_stays_while_they_come_and_go():
    cycle = "exeyez"  # when e is idle, z is the nearest that is away, but e is wanted before it
    entries = models("exyz")
    arrivals = [
        (2.0 + 0.15 * index + 0.1 * (index > 0), generate(index, cycle[index % len(cycle)], max_tokens=13))
        for index in range(60)
    ]
    records = play(entries, arrivals, room=3, workflows=[cycle])
    moved = [r.item.model for r in records if isinstance(r.item, Transfer) and r.item.destination == "hbm"]
    assert moved.count("e") == 1
    assert len(moved) <= 30 + 3  # one for each turn of another model
    assert stalls(records)[1:] == [0.0] * 59


def test_a_loop_that_nobody_declared_stalls_until_it_is_learned():
    waits = stalls(play(models(), loop(60), room=2))
    assert waits[:8] == pytest.approx([0.101] * 8)
    assert waits[20:] == [0.0] * 40


def test_a_transfer_longer_than_the_compute_stalls_for_the_rest():
    waits = stalls(play(models(), loop(20, max_tokens=6, seconds=0.101), room=2, workflows=[LOOP]))
    assert all(0.0 < stall < 0.06 for stall in waits[1:])


def test_a_fetch_waits_for_the_steps_of_an_answer_where_that_is_in_time():
    long = {"a": 13, "b": 1, "c": 13, "d": 1}  # tokens; a step takes 0.01 s, and a transfer 0.041 s
    at = itertools.accumulate(itertools.cycle((0.16, 0.04)), initial=2.0)
    arrivals = [(next(at), generate(n, LOOP[n % 4], max_tokens=long[LOOP[n % 4]])) for n in range(60)]
    records = play(models(sizes=[400] * 4), arrivals, room=3, workflows=[LOOP])
    began = [r.at_seconds for r in records if isinstance(r.item, Transfer) and r.item.destination == "hbm"]
    learned = [second for second in began if second > 3.0]
    answers = [(second + 0.01, second + 0.16) for second, request in arrivals if request.model in "ac"]
    assert len(learned) > 20
    assert all(any(begin <= second < end for begin, end in answers) for second in learned)
    assert stalls(records)[8:] == [0.0] * 52


def test_a_prefetch_evicts_the_model_that_is_wanted_last():
    records = play(models(), loop(5), room=3, workflows=[LOOP])
    assert [record.item.model for record in records if isinstance(record.item, Evict)][:2] == ["a", "b"]


def test_what_was_not_fetched_is_weighed_again_only_when_something_has_changed(monkeypatch: pytest.MonkeyPatch):
    weighed: list[float] = []
    order = Foresight.order

    def counted(self: Foresight, tier: TierName, may_evict: Callable[[str], bool], now: float) -> list[str]:
        weighed.append(now)
        return order(self, tier, may_evict, now)

    monkeypatch.setattr(Foresight, "order", counted)
    arrivals = [(2.0 + 0.2 * index, generate(index, "ab"[index], max_tokens=13)) for index in range(2)]
    records = play(models(), arrivals, room=1, workflows=["abc"])  # c is foretold; b answers
    begin = max(r.at_seconds for r in records if isinstance(r.item, Decode) and r.item.model == "a")
    steps = [r.at_seconds for r in records if isinstance(r.item, Decode) and r.item.model == "b"]
    assert begin < steps[0]
    assert len(steps) > 10
    assert sum(steps[0] < at < steps[-1] for at in weighed) <= 1


def test_nothing_is_fetched_ahead_while_a_request_is_held():
    arrivals = [*loop(1), (2.0, generate(7, "d", max_tokens=13))]
    records = play(models(), arrivals, room=2, workflows=[LOOP])
    moved = [r.item.model for r in records if isinstance(r.item, Transfer) and r.item.destination == "hbm"]
    assert moved[:2] == ["a", "d"]


def test_nothing_is_evicted_ahead_of_a_busy_model_or_one_with_requests():
    arrivals = [(2.0 + 0.01 * index, generate(index, "ab"[index % 2], max_tokens=13)) for index in range(20)]
    records = play(models(), arrivals, room=2, workflows=["abc"])  # c is foretold, and there is no idle model
    busy_until = max(record.at_seconds for record in records if isinstance(record.item, Reply))
    assert not [r for r in records if isinstance(r.item, Evict) and r.at_seconds < busy_until]


def test_requests_at_random_fetch_next_to_nothing_ahead():
    order = random.Random(4).choices(range(4), k=60)
    arrivals = [(2.0 + 0.5 * index, generate(index, LOOP[model])) for index, model in enumerate(order)]
    records = play(models(), arrivals, room=2)
    moves = sum(isinstance(r.item, Transfer) and r.item.destination == "hbm" for r in records)
    assert moves <= 1 + sum(stall > 0 for stall in stalls(records)) + 10


def test_a_model_that_is_asked_for_again_and_again_does_not_go_for_the_next_one():
    draw = random.Random(3)
    order = [0]
    for _ in range(99):  # three of four requests are for the same model as the one before
        order.append(order[-1] ^ (draw.random() < 0.25))
    arrivals = [(2.0 + 0.5 * index, generate(index, LOOP[model])) for index, model in enumerate(order)]
    records = play(models("ab"), arrivals, room=1)
    moves = sum(isinstance(r.item, Transfer) and r.item.destination == "hbm" for r in records)
    turns = 1 + sum(a != b for a, b in itertools.pairwise(order))
    assert turns <= moves <= turns + 2


def foresight(entries: list[ModelEntry], links: dict[str, Link] | None = None, *, hot: str = "") -> Foresight:
    residency = ResidencyManager(entries, TierBudget(10**6, 10**6), tiered=True)
    places = [(entry.name, "ddr") for entry in entries] + [(name, "hbm") for name in hot]
    for name, tier in places:
        residency.begin(name, tier)  # type: ignore[arg-type]
        residency.finish(name, 0.0)
    queues = {entry.name: ModelQueue(entry, None) for entry in entries}
    return Foresight(queues, residency, workflows=["ab"], links=links)


def test_only_what_gains_more_than_it_costs_is_fetched_ahead():
    seer = foresight(models("abc", sizes=[1000, 1000, 9000]), hot="bc")
    assert seer.is_worth(Forecast("a", 0.65, 1, 0.0), [])
    assert seer.is_worth(Forecast("a", 0.8, 1, 0.0), ["b"])
    assert not seer.is_worth(Forecast("a", 0.65, 1, 0.0), ["b"])
    assert not seer.is_worth(Forecast("a", 0.8, 1, 0.0), ["c"])
    assert seer.is_worth(Forecast("a", 1.0, 1, 0.0), ["b", "c"])
    assert seer.is_worth(Forecast("a", 0.8, 1, 0.0, "b", 0.5), [])
    assert not seer.is_worth(Forecast("a", 0.8, 1, 0.0, "b", 0.5), ["b"])


def test_what_is_foretold_is_evicted_last():
    seer = foresight(models("abcd"))
    for model in "cdcda":
        seer.observe(generate(0, model), 0.0)
    assert seer.order("hbm", lambda _: True, 0.0)[-1] == "b"
    assert "b" not in seer.order("hbm", lambda name: name != "b", 0.0)


def test_a_model_on_a_slow_way_back_stays_longer():
    links = {"disk->ddr": Link(10.0), "ddr->hbm": Link(1000.0)}
    seer = foresight(models("abcd"), links, hot="cd")
    residency = seer._residency
    residency.evict("c", "ddr")  # only in hbm: it would have to come from the disk
    for model in "dcdcdcdcd":
        seer.observe(generate(0, model), 0.0)
    assert seer.order("hbm", lambda name: name in "cd", 0.0) == ["d", "c"]
