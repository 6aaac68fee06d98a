from __future__ import annotations

import pytest
from tiny_models import decoder, embed, encoder, generate, never_ends, run, target

from plait.compiler.bundle.manifest import TierBudget
from plait.errors import TargetError
from plait.runtime.events import Arrival, Decode, StepDone, Timer, Transfer, TransferDone, TransferProgressed
from plait.runtime.scheduler import Scheduler
from plait.runtime.simulator import SimExecutor, simulate


def test_a_transfer_takes_latency_and_bytes_over_bandwidth():
    records = run([decoder(weights_bytes=1000)], [])
    assert [(r.at_seconds, r.item) for r in records] == [
        (0.0, Transfer(1, "chat", "disk", "ddr", 1000)),
        (pytest.approx(0.0505), TransferProgressed(1, 500)),
        (pytest.approx(0.101), TransferDone(1)),
    ]


def test_a_step_takes_what_was_measured_for_its_program():
    records = run([encoder(step_seconds=0.25)], [(1.0, embed(1))])
    issued, ended = (r.at_seconds for r in records if type(r.item).__name__ in ("Embed", "StepDone"))
    assert ended - issued == pytest.approx(0.25)


def test_several_decode_steps_in_one_action_take_their_sum():
    records = run([decoder(step_seconds=0.1)], [(1.0, generate(1, prompt=5))], decode_steps=3, draw_token=never_ends)
    (index,) = (i for i, r in enumerate(records) if isinstance(r.item, Decode))
    done = records[index + 1]
    assert isinstance(done.item, StepDone)
    assert len(done.item.tokens[0]) == 3
    assert done.at_seconds - records[index].at_seconds == pytest.approx(0.3)


def test_the_cost_of_steps_can_be_given():
    models = [encoder()]
    scheduler = Scheduler(models, TierBudget(10**6, 10**6), tiered=True)
    executor = SimExecutor(models, target(), draw=never_ends, step_cost=lambda model, shapes: 2.0 * shapes.batch)
    records = simulate(scheduler, executor, [(1.0, embed(1, lengths=(9,)))])
    issued, ended = (r.at_seconds for r in records if type(r.item).__name__ in ("Embed", "StepDone"))
    assert ended - issued == pytest.approx(2.0)


def test_a_timer_comes_when_it_was_set_for():
    records = run([encoder()], [(1.0, embed(1))], queue_timeout_seconds=5.0)
    assert [r.at_seconds for r in records if isinstance(r.item, Timer)] == [6.0]


def test_nothing_is_played_after_the_given_end():
    models = [encoder()]
    scheduler = Scheduler(models, TierBudget(10**6, 10**6), tiered=True)
    executor = SimExecutor(models, target(), draw=never_ends)
    arrivals = [(1.0, embed(1)), (2.0, embed(2))]
    records = simulate(scheduler, executor, arrivals, until_seconds=1.5)
    assert [r.item.request.id for r in records if isinstance(r.item, Arrival)] == [1]


def test_a_target_without_the_link_cannot_be_simulated():
    scheduler = Scheduler([encoder()], TierBudget(10**6, 10**6), tiered=True)
    executor = SimExecutor([encoder()], target(tiered=False), draw=never_ends)
    with pytest.raises(TargetError, match="target 'tiny' has no link disk->ddr"):
        simulate(scheduler, executor, [])
