"""Three real models under a budget that holds no two of them whole, asked and left at random for some minutes.

How long, PLAIT_SWITCHES_SECONDS says. All answers must be those of each model alone, and memory must not grow.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from plait.compiler.bundle.reader import Bundle
from plait.runtime.engine import Runtime
from plait.runtime.request import SamplingParams

NUM_SECONDS = float(os.environ.get("PLAIT_SWITCHES_SECONDS", "900"))
NUM_CLIENTS = 6
BASE = "The quick brown fox jumps over the lazy dog while"
PROMPTS = [*(f"Tell me about the number {index}." for index in range(6)), *(f"{BASE} {index}" for index in range(6))]
TEXTS = ["a cat", "how the river froze " * 8, "memory tiers"]
MOST_GROWTH = 48 << 20  # bytes, after a third of the time
LEAST_SECONDS = 300  # for that to be said: before, programs are still being loaded behind the requests' backs


@dataclass
class Alone:
    """What each model answers while nobody else asks for anything, and nothing is switched."""

    tokens: dict[tuple[str, int], tuple[int, ...]]
    vectors: dict[tuple[str, str], np.ndarray]

    @staticmethod
    def of(runtime: Runtime) -> Alone:
        lengths = (1, 5, 24)
        answers = {(p, n): runtime.complete("chat", p, greedy(n)).token_ids for p in PROMPTS for n in lengths}
        return Alone(answers, {(m, t): runtime.embed(m, t)[0] for m in ("embed", "sparse") for t in TEXTS})


@dataclass
class Tally:
    """What the clients saw."""

    requests: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0)


async def ask(runtime: Runtime, alone: Alone, chance: random.Random, tally: Tally, deadline: float) -> None:
    """One client: asks, compares, leaves now and then, waits a little."""
    while time.monotonic() < deadline:
        model = chance.choice(["chat", "chat", "embed", "embed", "sparse"])
        if model != "chat":
            text = chance.choice(TEXTS)
            (vector,) = (await runtime.embed_async(model, [text])).vectors
            if not np.allclose(vector, alone.vectors[model, text], atol=1e-5):
                tally.wrong.append(f"{model} of {text!r}")
            tally.requests[model] += 1
        else:
            (prompt, max_tokens), expected = chance.choice(list(alone.tokens.items()))
            stays = chance.random() < 0.8
            given: list[int] = []
            coming = runtime.generate_async(model, runtime.tokenize(model, prompt), greedy(max_tokens))
            async with contextlib.aclosing(coming) as pieces:
                async for piece in pieces:
                    given += piece.token_ids
                    if not stays:
                        break
            if tuple(given) != (expected if stays else expected[: len(given)]):
                tally.wrong.append(f"{model} of {prompt!r}: {given} instead of {expected}")
            tally.requests["answered" if stays else "left"] += 1
        await asyncio.sleep(chance.choice([0, 0, 0.05, 0.3]))


async def leave(runtime: Runtime, chance: random.Random, tally: Tally, deadline: float) -> None:
    """A client that goes away while it is queued or answered, whatever the time."""
    while time.monotonic() < deadline:
        coming = runtime.complete_async("chat", chance.choice(PROMPTS), greedy(24))
        try:
            await asyncio.wait_for(coming, chance.uniform(0.001, 0.4))
            tally.requests["answered"] += 1
        except TimeoutError:
            tally.requests["left"] += 1


class MemoryWatch:
    """Notes the resident bytes of this process every now and then."""

    def __init__(self, num_seconds: float) -> None:
        self.resident: list[int] = []
        self._interval = max(0.5, num_seconds / 60)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._interval):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.resident.append(pages * os.sysconf("SC_PAGE_SIZE"))


def test_answers_stay_the_same_and_memory_flat_through_many_switches(agent_bundle: Bundle) -> None:
    with Runtime(agent_bundle, hbm="2GiB") as roomy:
        alone = Alone.of(roomy)
    tally = Tally()
    with Runtime(agent_bundle) as runtime:
        for model in ("embed", "sparse"):
            runtime.embed(model, TEXTS[0])
        runtime.complete("chat", PROMPTS[0], greedy(1))
        with MemoryWatch(NUM_SECONDS) as watch:
            asyncio.run(all_clients(runtime, alone, tally))
        moved = Counter((r.model, r.destination) for r in runtime.transfers())
        partial = sum(r.num_bytes < agent_bundle.manifest.model(r.model).moved_bytes for r in runtime.transfers())
        uses = runtime.tier_uses()
        metrics = runtime.metrics.render()[0].decode()
    num_switches = sum(count for (_, destination), count in moved.items() if destination == "hbm")
    early, late = watch.resident[len(watch.resident) // 3], watch.resident[-1]
    print(
        f"\n{NUM_SECONDS:.0f} s: {num_switches} switches, {partial} of them of a part; {dict(tally.requests)} requests"
    )
    print(f"resident: {early / 2**20:.0f} MiB after a third of the time, {late / 2**20:.0f} MiB at the end")
    for use in uses:
        print(f"{use.tier}: {use.measured_bytes} bytes at most, {use.peak_charged_bytes} charged of {use.budget_bytes}")
        assert use.measured_bytes <= use.peak_charged_bytes <= use.budget_bytes
    assert not tally.wrong, tally.wrong[:3]
    for kind in ("running", "waiting"):
        assert f'vllm:num_requests_{kind}{{model_name="chat"}} 0.0' in metrics
    assert num_switches >= 3
    assert late - early <= MOST_GROWTH or NUM_SECONDS < LEAST_SECONDS


async def all_clients(runtime: Runtime, alone: Alone, tally: Tally) -> None:
    """Lets all clients ask until the time is over, and what is under way end."""
    deadline = time.monotonic() + NUM_SECONDS
    asking = [ask(runtime, alone, random.Random(number), tally, deadline) for number in range(NUM_CLIENTS)]
    await asyncio.gather(*asking, leave(runtime, random.Random(99), tally, deadline))
    while 'vllm:num_requests_running{model_name="chat"} 0.0' not in runtime.metrics.render()[0].decode():
        assert time.monotonic() < deadline + 60, "requests are left over"
        await asyncio.sleep(0.1)
