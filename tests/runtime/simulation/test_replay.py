"""A trace replayed: what the verifier says of it, and that the figures are those of its record."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from tiny_models import SEQUENCE, decoder, encoder, target
from virtual_machine import verify

from plait.compiler.bundle.manifest import Route, TierBudget
from plait.compiler.target import Link, Power, Serving
from plait.runtime.bench.arrivals import Arrival as Asked
from plait.runtime.bench.measures import Bound
from plait.runtime.events import Decode, Prefill, Reply, Request, Transfer
from plait.runtime.simulation.costs import measured_costs
from plait.runtime.simulation.machine import Machine
from plait.runtime.simulation.replay import replay
from plait.runtime.simulation.report import report
from plait.runtime.simulator import Record

MODELS = (decoder("a"), decoder("b", batch=2), encoder("e"))
BUDGET = TierBudget(hbm=1700, ddr=10_000)  # for one decoder and the encoder


def machine(serving: Serving | None = None, power: Power | None = None) -> Machine:
    at_once = {**target().links, "disk->ddr": Link(math.inf)}  # all models are warm at 0
    chosen = replace(target(), links=at_once, serving=serving, power=power)
    watts = None if power is None else lambda _: power.peak_watts
    return Machine("tiny", MODELS, BUDGET, chosen, measured_costs(MODELS, chosen), watts, "made up")


def trace(seed: int, num: int = 200) -> list[Asked]:
    draw = random.Random(seed)
    moments = sorted(draw.uniform(0, 40) for _ in range(num))
    return [Asked(at, draw.choice("abe"), draw.randint(1, SEQUENCE // 2), draw.randint(1, 8)) for at in moments]


def ones(request: Request) -> tuple[tuple[int, ...], str]:
    """The answer to every request of a replay."""
    return (1,) * request.work.max_tokens, "length"  # type: ignore[union-attr]


@pytest.mark.parametrize("decode_steps", [1, 8])
def test_the_verifier_finds_nothing_in_a_replayed_trace(decode_steps: int) -> None:
    records: list[Record] = []
    found = replay(
        machine(), trace(1), decode_steps=decode_steps, observe=lambda now, item: records.append(Record(now, item))
    )
    verify(records, MODELS, BUDGET, ones)
    assert found.begin_seconds == 0
    assert len(found.run.outcomes) == 200
    assert found.transfers["ddr", "hbm"] > 20


def test_figures_are_those_of_the_record() -> None:
    records: list[Record] = []
    asked = trace(2)
    replayed = replay(machine(), asked, observe=lambda now, item: records.append(Record(now, item)))
    found = report(machine(), replayed, [Bound("ttft", 1.0)])
    moved = Counter[str]()
    for record in records:
        if isinstance(record.item, Transfer) and record.item.destination == "hbm":
            moved["switches"] += 1
            moved["bytes"] += record.item.num_bytes
    assert found.num_switches == moved["switches"]
    assert replayed.moved_bytes["ddr", "hbm"] == moved["bytes"]
    assert found.summary.output_tokens == sum(each.output_tokens for each in asked if each.model != "e")
    assert replayed.num_steps["prefill"] == sum(isinstance(record.item, Prefill) for record in records)
    assert sum(replayed.arrivals.values()) == 200
    first: dict[int, float] = {}
    for record in records:
        if isinstance(record.item, Reply) and (record.item.tokens or record.item.finish_reason):
            first.setdefault(record.item.request_id, record.at_seconds)
    ttft = sorted(at - asked[number - 1].seconds for number, at in first.items())
    assert sorted(o.reply.ttft_seconds or 0.0 for o in replayed.run.outcomes) == pytest.approx(ttft)
    attained = found.summary.attainment
    assert attained is not None
    assert attained.num_kept == sum(seconds <= 1.0 for seconds in ttft)


def test_a_request_is_late_by_what_the_host_takes_for_it() -> None:
    asked = [Asked(0.0, "a", 4, 1), Asked(10.0, "a", 4, 3)]
    plain, late = (
        replay(machine(serving), asked).run.outcomes[1].reply for serving in (None, Serving(request_seconds=0.5))
    )
    assert late.ttft_seconds == pytest.approx((plain.ttft_seconds or 0.0) + 0.5)
    assert late.end_seconds == pytest.approx(plain.end_seconds + 0.5)
    assert late.gaps_seconds == pytest.approx([0.01, 0.01])


def test_tokens_of_one_action_come_at_the_pace_of_its_steps() -> None:
    asked = [Asked(0.0, "a", 4, 4)]
    (alone,) = replay(machine(), asked).run.outcomes
    (each,) = replay(machine(), asked, decode_steps=1).run.outcomes
    assert alone.reply == replace(each.reply, gaps_seconds=alone.reply.gaps_seconds)
    assert alone.reply.gaps_seconds == pytest.approx(each.reply.gaps_seconds)


@pytest.mark.parametrize("seed", range(4))
def test_a_trace_comes_to_the_same_whether_decode_steps_are_one_event_or_many(seed: int) -> None:
    roomy, asked = replace(machine(), budget=TierBudget(1 << 30, 1 << 30)), trace(seed)
    records: list[Record] = []
    together = replay(roomy, asked, observe=lambda now, item: records.append(Record(now, item)))
    apart = replay(roomy, asked, decode_steps=1)
    num_actions = sum(isinstance(record.item, Decode) for record in records)
    assert num_actions < apart.num_steps["decode"] == together.num_steps["decode"]
    times = [
        [(o.model, o.reply.ttft_seconds, *o.reply.gaps_seconds) for o in found.run.outcomes]
        for found in (together, apart)
    ]
    assert [model for model, *_ in times[0]] == [model for model, *_ in times[1]]
    assert [t for _, *some in times[0] for t in some] == pytest.approx([t for _, *some in times[1] for t in some])


def test_what_prompts_share_is_found_in_the_cache() -> None:
    asked = [Asked(5.0 * at, "a", 8, 1, (7, 7 + at), 4.0) for at in range(3)]
    found = replay(machine(), asked)
    assert found.prompt_tokens == 24
    assert found.cached_tokens == 8  # the first block of the second and the third prompt


def test_energy_is_idle_power_and_more_while_a_step_computes() -> None:
    found = replay(machine(power=Power(2.0, 10.0)), trace(3))
    assert found.joules == pytest.approx(2.0 * (found.seconds - found.busy_seconds) + 10.0 * found.busy_seconds)
    assert replay(machine(), trace(3)).joules is None


def test_models_are_asked_before_the_trace_begins_if_wanted() -> None:
    asked = [Asked(0.0, "b", 4, 1)]
    assert replay(machine(), asked).arrivals == {"warm": 1}
    warmed = replay(machine(), asked, warm_up=["a", "b"])
    assert warmed.arrivals == {"hot": 1}
    assert (warmed.begin_seconds > 0, len(warmed.run.outcomes), warmed.transfers) == (True, 1, {})


def test_who_waits_too_long_has_failed() -> None:
    asked = [Asked(0.0, "a", 8, 8), Asked(0.01, "b", 8, 8)]
    found = replay(machine(), asked, queue_timeout_seconds=0.12)
    assert [outcome.reply.failure for outcome in found.run.outcomes] == ["timeout", None]


def test_a_trace_may_name_a_route() -> None:
    records: list[Record] = []
    routed = replace(machine(), routes={"any": Route(("a", "b"))})
    asked = [replace(one, model="any" if one.model == "b" else one.model) for one in trace(3, 60)]
    found = replay(routed, asked, observe=lambda now, item: records.append(Record(now, item)))
    verify(records, MODELS, BUDGET, ones, {"any": ("a", "b")})
    assert not [outcome for outcome in found.run.outcomes if outcome.reply.failure]
    assert sum(found.arrivals.values()) == 60
    apart = replay(machine(), trace(3, 60))
    assert found.transfers["ddr", "hbm"] < apart.transfers["ddr", "hbm"]  # what is hot answers
