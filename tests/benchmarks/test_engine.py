"""Decode and prefill rates of the example's chat model, through the runtime."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

import plait
from plait.runtime.engine import Runtime
from plait.runtime.request import SamplingParams

SPEC = Path(__file__).parents[2] / "examples" / "agent.yaml"
NUM_TOKENS = 64
NUM_RUNS = 5


def test_decode_and_prefill_rates(tmp_path: Path) -> None:
    bundle = plait.bundle(plait.read_spec(SPEC), tmp_path / "agent.plait", base=SPEC.parent)
    long = SamplingParams(max_tokens=NUM_TOKENS, temperature=0)
    with Runtime(bundle) as runtime:
        runtime.complete("chat", "warm up", SamplingParams(max_tokens=2, temperature=0))

        async def batch(size: int) -> float:
            began = time.perf_counter()
            prompts = [f"The story of number {index} begins when" for index in range(size)]
            answers = await asyncio.gather(*(runtime.complete_async("chat", prompt, long) for prompt in prompts))
            tokens = sum(answer.usage.completion_tokens for answer in answers)
            return tokens / (time.perf_counter() - began)

        def prefill(run: int) -> float:
            prompt = [(run * 7919 + index * 31) % 40000 + 100 for index in range(512)]
            usage = runtime.complete("chat", prompt, SamplingParams(max_tokens=1, temperature=0)).usage
            return 512 / usage.time_to_first_token_seconds

        for size in (1, 8):
            rate = statistics.median(asyncio.run(batch(size)) for _ in range(NUM_RUNS))
            print(f"\ndecode, {size} at once: {rate:.0f} tokens/s")
            assert rate > 0
        rate = statistics.median(prefill(run) for run in range(NUM_RUNS))
        print(f"prefill of 512 tokens: {rate:.0f} tokens/s")
        assert rate > 0
