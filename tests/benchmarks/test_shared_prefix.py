"""What a prompt's first token takes when a part of the prompt is in the cache already.

Needs an otherwise idle machine for a minute or two.
"""

from __future__ import annotations

import random
import statistics
import time
from pathlib import Path

from plait.compiler.bundle.build import build_bundle
from plait.compiler.bundle.spec import BundleSpec
from plait.runtime.engine import Runtime
from plait.runtime.request import SamplingParams

MODEL = {"source": "smollm2-135m", "dtype": "bf16", "sequence": 2048, "batch": 8, "kv_tokens": 16384}
PROMPT_TOKENS = 1024
SHARES = (0.0, 0.25, 0.5, 0.75, 0.9375)
NUM_ROUNDS = 5
BESIDE = 0.1  # of the time without sharing: what does not shrink with the prompt
ONE_TOKEN = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)


def test_the_first_token_comes_sooner_by_what_the_cache_has(tmp_path: Path) -> None:
    spec = BundleSpec.model_validate({"bundle": "one", "target": "cpu-tiered", "models": {"chat": MODEL}})
    bundle = build_bundle(spec, tmp_path / "one.plait", base=tmp_path)
    draw = random.Random(0)
    seconds: dict[float, list[float]] = {share: [] for share in SHARES}
    with Runtime(bundle) as runtime:

        def first_token(prompt: list[int]) -> tuple[float, int]:
            usage = runtime.complete("chat", prompt, ONE_TOKEN).usage
            return usage.time_to_first_token_seconds, usage.cached_tokens

        def tokens(number: int) -> list[int]:
            return [draw.randrange(100, 40000) for _ in range(number)]

        for size in (16, 64, 128, 256, 512, PROMPT_TOKENS):  # each program once
            first_token(tokens(size))
        time.sleep(3)  # for the programs that are read behind the first answers
        for _ in range(NUM_ROUNDS):
            for share in SHARES:
                known = int(share * PROMPT_TOKENS)
                before = tokens(PROMPT_TOKENS)
                first_token(before)
                took, num_cached = first_token(before[:known] + tokens(PROMPT_TOKENS - known))
                assert num_cached == known
                seconds[share].append(took)
    medians = {share: statistics.median(found) for share, found in seconds.items()}
    print(f"\nfirst token of a prompt of {PROMPT_TOKENS} tokens, medians of {NUM_ROUNDS}")
    for share, median in medians.items():
        print(f"  {share:>4.0%} in the cache: {1000 * median:4.0f} ms, {median / medians[0]:.2f} of the time without")
    for share, median in medians.items():
        assert median <= (1 - share + BESIDE) * medians[0.0]
