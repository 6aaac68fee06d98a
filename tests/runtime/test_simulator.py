from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_models import decoder, embed, encoder, generate, never_ends, run, target

from plait.compiler.bundle.manifest import TierBudget
from plait.compiler.configuration import Configuration
from plait.compiler.target import ProgramSeconds, Serving
from plait.errors import TargetError
from plait.runtime.events import (
    Arrival,
    Decode,
    Embed,
    LoadBlocks,
    Prefill,
    Reply,
    Sampling,
    SaveBlocks,
    SequenceEntry,
    Step,
    StepDone,
    Timer,
    Transfer,
    TransferDone,
    TransferProgressed,
)
from plait.runtime.scheduler import Scheduler
from plait.runtime.simulation.costs import StepSeconds, measured_costs
from plait.runtime.simulator import SimExecutor, simulate


def test_a_transfer_takes_latency_and_bytes_over_bandwidth():
    records = run([decoder(weights_bytes=1000)], [])
    assert [(r.at_seconds, r.item) for r in records] == [
        (0.0, Transfer(1, "chat", "disk", "ddr", 1000, chunk_bytes=200)),
        (pytest.approx(0.081), TransferProgressed(1, 800)),
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

    def cost(step: Step) -> StepSeconds:
        return StepSeconds(2.0 * step.configuration.batch)

    executor = SimExecutor(models, target(), draw=never_ends, step_cost=cost)
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


def test_what_comes_during_a_step_is_taken_in_when_it_has_ended():
    records = run([encoder(step_seconds=1.0)], [(2.0, embed(1)), (2.5, embed(2))])
    times = {r.item.request.id: r.at_seconds for r in records if isinstance(r.item, Arrival)}
    issued = next(r.at_seconds for r in records if isinstance(r.item, Embed))
    assert times == {1: 2.0, 2: pytest.approx(issued + 1.0)}
    kinds = [type(r.item) for r in records if r.at_seconds == times[2]]
    assert kinds.index(Arrival) < kinds.index(StepDone)


def test_several_decode_steps_end_with_the_one_during_which_somebody_comes():
    arrivals = [(0.5, embed(3)), (1.0, generate(1, prompt=4, max_tokens=8)), (1.35, embed(2))]  # all hot by then
    records = run([decoder(step_seconds=0.1), encoder()], arrivals, decode_steps=4, draw_token=never_ends)
    ends = [(r.at_seconds, len(r.item.tokens[0])) for r in records if isinstance(r.item, StepDone) and r.item.tokens]
    assert ends[1] == (pytest.approx(1.401), 2)


def test_later_decode_steps_of_an_action_take_longer():
    cost = StepSeconds(1.0, growth=0.5)
    assert [cost.total(count) for count in (1, 2, 3)] == [1.0, 2.5, 4.5]
    assert [cost.steps_within(seconds, 3) for seconds in (0.0, 1.0, 1.1, 2.5, 2.6, 99.0)] == [1, 1, 2, 2, 3, 3]


def test_a_step_costs_its_program_its_context_and_what_the_host_adds():
    chat = decoder(step_seconds=9.0)
    shapes = Configuration("decode", 2, 1, 16)
    programs = {f"chat/{shapes.id}": ProgramSeconds(0.1, context_seconds=0.016, rested_seconds=0.5)}
    serving = Serving(step_seconds=0.01, sequence_seconds=0.002, programs=programs)
    cost = measured_costs([chat], replace(target(), serving=serving))
    entries = tuple(SequenceEntry(i, (5,), 3 + i, (), Sampling(0.0, 1.0, 0), 0) for i in range(2))
    step = cost(Decode(1, "chat", shapes, entries, 1))
    assert step == pytest.approx((0.1 + 5 * 0.001 + 0.01 + 2 * 0.002, 0.001, 0.5))
    chunk = Prefill(2, "chat", Configuration("prefill", 1, 4, 16), (entries[0]._replace(sampling=None),))
    assert cost(chunk) == StepSeconds(9.0 + 0.01)  # not calibrated: as the manifest says


def test_the_first_step_after_a_rest_takes_longer():
    def cost(step: Step) -> StepSeconds:
        return StepSeconds(1.0, rested=0.25)

    times_and_tokens = ((10.0, 3), (13.2, 1), (15.0, 1))
    arrivals = [(at, generate(number, max_tokens=count)) for number, (at, count) in enumerate(times_and_tokens)]
    executor = SimExecutor([decoder()], target(), draw=1, step_cost=cost)
    records = simulate(Scheduler([decoder()], TierBudget(10**6, 10**6), tiered=True), executor, arrivals)
    issued = [r.at_seconds for r in records if isinstance(r.item, Prefill | Decode)]
    ended = [r.at_seconds for r in records if isinstance(r.item, StepDone)]
    steps = [(begin - last, end - begin) for last, begin, end in zip([0.0, *ended[:-1]], issued, ended, strict=True)]
    assert [rest > 0.15 for rest, _ in steps] == [True, False, False, False, True]
    assert [seconds for _, seconds in steps] == pytest.approx([1.25, 1.0, 1.0, 1.0, 1.25])


def test_a_step_after_a_short_rest_or_little_work_takes_somewhat_longer():
    def cost(step: Step) -> StepSeconds:
        return StepSeconds(0.05, rested=0.03)

    arrivals = [(at, embed(number)) for number, at in enumerate((5.0, 10.0, 10.01, 10.2))]  # hot from the first on
    executor = SimExecutor([encoder()], target(), draw=1, step_cost=cost)
    records = simulate(Scheduler([encoder()], TierBudget(10**6, 10**6), tiered=True), executor, arrivals)
    issued = [r.at_seconds for r in records if isinstance(r.item, Embed)]
    ended = [r.at_seconds for r in records if isinstance(r.item, StepDone)]
    assert issued[1:] == pytest.approx([10.0, 10.08, 10.2])
    rests = [0.15, 0.15 - 0.08, 0.15 - 0.08 - 0.064 + (10.2 - 10.144)]  # seconds, less what was worked off
    more = [end - begin - 0.05 for begin, end in zip(issued, ended, strict=True)][1:]
    assert more == pytest.approx([0.03 * rest / 0.15 for rest in rests])


def test_the_pool_of_a_model_that_comes_to_hbm_is_cleared():
    machine = replace(target(), serving=Serving(pool_bytes_per_s=100.0))
    executor = SimExecutor([decoder(num_blocks=5)], machine, draw=1)
    link = machine.link("ddr", "hbm")
    seconds, _ = executor.copy(Transfer(1, "chat", "ddr", "hbm", 1000))[-1]
    assert seconds == pytest.approx(link.latency_seconds + 0.1 + 20 / 100)


def test_copies_of_blocks_are_no_faster_than_measured_and_go_in_groups():
    link = target().link("ddr", "hbm")
    at_link = link.latency_seconds + 100 / link.bandwidth_bytes_per_s
    for a_group, count, seconds in ((0.0, 1, at_link), (1e-9, 1, at_link), (2.0, 1, 2.0), (2.0, 8, 2.0), (2.0, 9, 4.0)):
        machine = replace(target(), serving=Serving(step_seconds=0.5, save_seconds=a_group))
        executor = SimExecutor([decoder()], machine, draw=1)
        blocks = tuple((index, index) for index in range(count))
        assert executor.copy_blocks(SaveBlocks(1, "chat", blocks, 100))[0] == pytest.approx(0.5 + seconds)
        assert executor.copy_blocks(LoadBlocks(1, "chat", blocks, 100))[0] == pytest.approx(0.5 + at_link)


def test_what_the_engine_does_when_models_come_and_go_takes_time():
    arrivals = [(at, generate(number, "ab"[number % 2], max_tokens=2)) for number, at in enumerate((1.0, 21.0, 22.0))]
    entries = [decoder("a", num_blocks=4), decoder("b", num_blocks=4)]
    room = TierBudget(entries[0].resident_bytes + entries[0].workspace_bytes, 10**6)
    ends: list[list[float]] = []
    for serving in (None, Serving(evict_seconds=0.01, reading_seconds=0.001)):
        machine = replace(target(), serving=serving)
        records = simulate(Scheduler(entries, room, tiered=True), SimExecutor(entries, machine, draw=1), arrivals)
        ends.append([r.at_seconds for r in records if isinstance(r.item, Reply) and r.item.finish_reason])
    # Each model that comes after the first is in another one's place; what is alive is read after its first step,
    # unless that was done a moment ago.
    more = [after - before for before, after in zip(*ends, strict=True)]
    assert more == pytest.approx([0.001, 0.01 + 0.001, 0.01])


def test_a_token_that_is_always_drawn_needs_no_prompt():
    scheduler = Scheduler([decoder()], TierBudget(10**6, 10**6), tiered=True)
    executor = SimExecutor([decoder()], target(), draw=1)
    records = simulate(scheduler, executor, [(1.0, generate(1, max_tokens=5))])
    assert sum((r.item.tokens for r in records if isinstance(r.item, Reply)), ()) == (1,) * 5
