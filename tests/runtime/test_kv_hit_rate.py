"""How much of a public trace's prompts the KV cache answers, against what least recently used and foresight can.

Each hash id of the trace, which stands for a piece of 512 tokens there, is a block of 16 tokens here.
"""

from __future__ import annotations

import heapq
import json
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import VOCAB, decoder, target

from plait.compiler.bundle.manifest import KVPlan, ModelEntry, TierBudget
from plait.compiler.configuration import Configuration
from plait.runtime.events import Action, Arrival, Event, GenerateWork, Reply, Request, Sampling
from plait.runtime.scheduler import Scheduler
from plait.runtime.simulator import SimExecutor, Simulation

TRACE = Path(__file__).parents[3] / "shared" / "data" / "traces" / "mooncake_synthetic.jsonl"
BLOCK_TOKENS = 16
LONGEST = 400 * BLOCK_TOKENS
GREEDY = Sampling(0.0, 1.0, 0)
LRU_HIT_RATES = {5_000: 0.279, 20_000: 0.572, 50_000: 0.640}  # of the trace's blocks; the last pool holds them all
BEST_HIT_RATES = {5_000: 0.524, 20_000: 0.640, 50_000: 0.640}  # with foresight


def prompts() -> list[list[int]]:
    """The hash ids of each request's blocks, in the order of arrival."""
    return [json.loads(line)["hash_ids"] for line in TRACE.read_text().splitlines()]


def pool_of(num_blocks: int) -> ModelEntry:
    """A model that computes any prompt of the trace in one step."""
    entry = decoder(num_blocks=num_blocks)
    (shape, *_) = entry.programs
    shapes = (Configuration("prefill", 1, LONGEST, LONGEST), Configuration("decode", 1, 1, LONGEST))
    programs = tuple(replace(shape, configuration=configuration) for configuration in shapes)
    return replace(entry, sequence=LONGEST, kv=KVPlan(BLOCK_TOKENS, num_blocks, 1, "f32"), programs=programs)


def hit_rate(requests: Sequence[Sequence[int]], num_blocks: int) -> float:
    """The share of the prompts' blocks that the scheduler takes from its cache; one request runs after the other."""
    entry = pool_of(num_blocks)
    cached_tokens = 0

    def observe(now: float, item: Event | Action) -> None:
        nonlocal cached_tokens
        if isinstance(item, Reply):
            assert item.timing is not None
            cached_tokens += item.timing.cached_tokens

    scheduler = Scheduler([entry], TierBudget(10**9, 10**9), tiered=False)
    simulation = Simulation(scheduler, SimExecutor([entry], target(tiered=False), draw=1), observe)
    for number, blocks in enumerate(requests):
        # One token more than the blocks have: the last one of a prompt is always computed.
        tokens = (*(VOCAB + block for block in blocks for _ in range(BLOCK_TOKENS)), 1)
        simulation.send(float(number), Arrival(Request(number, entry.name, GenerateWork(tokens, 1, GREEDY))))
    simulation.start()
    simulation.run()
    return cached_tokens / BLOCK_TOKENS / sum(map(len, requests))


def foreseeing_hit_rate(requests: Sequence[Sequence[int]], num_blocks: int) -> float:
    """The hit rate of a cache that drops the block which is needed last of all (Belady's)."""
    uses: dict[int, deque[int]] = defaultdict(deque)
    for number, blocks in enumerate(requests):
        for block in blocks:
            uses[block].append(number)
    held: set[int] = set()
    latest: list[tuple[int, int]] = []  # a heap of (-next use, block); those of blocks used since are outdated
    hits = 0
    for blocks in requests:
        hits += sum(block in held for block in blocks)
        for block in blocks:
            uses[block].popleft()
        for block in blocks:
            if uses[block]:  # what is never used again is not kept
                held.add(block)
                heapq.heappush(latest, (-uses[block][0], block))
            else:
                held.discard(block)
        while len(held) > num_blocks:
            next_use, block = heapq.heappop(latest)
            if block in held and uses[block] and uses[block][0] == -next_use:
                held.remove(block)
    return hits / sum(map(len, requests))


@pytest.mark.skipif(not TRACE.exists(), reason="the trace is not here")
@pytest.mark.parametrize("num_blocks", LRU_HIT_RATES)
def test_the_cache_answers_what_least_recently_used_does(num_blocks: int, capsys: pytest.CaptureFixture[str]) -> None:
    requests = prompts()
    ours, best = hit_rate(requests, num_blocks), foreseeing_hit_rate(requests, num_blocks)
    with capsys.disabled():
        print(f"\n{num_blocks} blocks: hit rate {ours:.3f}, with foresight {best:.3f}")
    assert ours >= LRU_HIT_RATES[num_blocks] - 0.01
    assert best == pytest.approx(BEST_HIT_RATES[num_blocks], abs=0.005)
    assert ours <= best
