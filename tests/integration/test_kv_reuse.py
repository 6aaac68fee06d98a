"""Answers of tiny models are the same tokens whatever of them came out of a cache, and however they were computed."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

import plait
from plait.compiler.bundle.manifest import ModelEntry
from plait.runtime.engine import Runtime
from plait.runtime.events import LoadBlocks, SaveBlocks
from plait.runtime.request import Completion, SamplingParams
from plait.runtime.server.serve import serving

PROMPT = [(index * 7) % 200 + 10 for index in range(70)]  # four blocks and a part of a fifth
SHORT = SamplingParams(max_tokens=8, temperature=0)
LONG = SamplingParams(max_tokens=80, temperature=0)


def together(runtime: Runtime, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[Completion]:
    async def ask() -> list[Completion]:
        asked = zip(prompts, params, strict=True)
        return await asyncio.gather(*(runtime.complete_async("chat", prompt, one) for prompt, one in asked))

    return asyncio.run(ask())


def room_for_one(path: Path) -> int:
    models = plait.load(path).manifest.models
    return max(entry.resident_bytes + entry.workspace_bytes for entry in models)


def copies_of(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """The kinds of copies between hbm and ddr that a runtime makes from now on."""
    seen: list[type] = []
    executor = runtime._core._executor
    run = executor.run

    def watched(step):
        if isinstance(step, SaveBlocks | LoadBlocks):
            seen.append(type(step))
        return run(step)

    monkeypatch.setattr(executor, "run", watched)
    return seen


@pytest.fixture(scope="module")
def runtime(tiny_bundle: Path) -> Iterator[Runtime]:
    """Tests ask it with salts of their own: it knows nothing of their prompts."""
    with Runtime(tiny_bundle) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def expected(runtime: Runtime) -> dict[tuple[int, int], tuple[int, ...]]:
    """Greedy answers by length of the prompt and number of tokens, each computed alone and whole."""
    answers: dict[tuple[int, int], tuple[int, ...]] = {}
    for number, (length, params) in enumerate([(70, SHORT), (64, SHORT), (33, SHORT), (40, LONG)]):
        answer = runtime.complete("chat", PROMPT[:length], dataclasses.replace(params, cache_salt=f"whole {number}"))
        assert answer.usage.cached_tokens == 0
        answers[length, params.max_tokens or 0] = answer.token_ids
    return answers


def value(runtime: Runtime, name: str) -> float:
    """One of the metrics of the model "chat"."""
    text = runtime.metrics.render()[0].decode()
    return float(
        next(line.split()[-1] for line in text.splitlines() if line.startswith(f'{name}{{model_name="chat"}}'))
    )


def test_a_prompt_that_comes_again_is_taken_from_the_cache(runtime: Runtime, expected) -> None:
    params = dataclasses.replace(SHORT, cache_salt="again")
    names = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total")
    before = [value(runtime, name) for name in names]
    answers = [runtime.complete("chat", PROMPT[:length], params) for length in (70, 70, 64, 33)]
    assert [answer.token_ids for answer in answers] == [expected[length, 8] for length in (70, 70, 64, 33)]
    assert [answer.usage.cached_tokens for answer in answers] == [0, 64, 48, 32]
    assert [value(runtime, name) - old for name, old in zip(names, before, strict=True)] == [237, 144]


def test_the_turn_before_is_taken_from_the_cache(runtime: Runtime, expected) -> None:
    params = dataclasses.replace(LONG, max_tokens=40, cache_salt="turns")
    first = runtime.complete("chat", PROMPT[:40], params).token_ids
    rest = runtime.complete("chat", [*PROMPT[:40], *first], params)
    assert first + rest.token_ids == expected[40, 80]
    assert rest.usage.cached_tokens == 64  # of 80, the last of which was drawn and never computed


def test_tenants_with_salts_of_their_own_share_nothing(runtime: Runtime, expected) -> None:
    for salt, cached in (("tenant a", 0), ("tenant b", 0), ("tenant a", 64)):
        answer = runtime.complete("chat", PROMPT, dataclasses.replace(SHORT, cache_salt=salt))
        assert (answer.token_ids, answer.usage.cached_tokens) == (expected[70, 8], cached)


def test_choices_that_come_together_compute_their_prompt_once(runtime: Runtime, expected) -> None:
    answers = together(runtime, [PROMPT] * 3, [dataclasses.replace(SHORT, cache_salt="choices")] * 3)
    assert {answer.token_ids for answer in answers} == {expected[70, 8]}
    assert sorted(answer.usage.cached_tokens for answer in answers) == [0, 69, 69]


def test_over_http_cached_tokens_are_told_and_keys_share_nothing(runtime: Runtime) -> None:
    def cached_tokens(key: str, **fields: object) -> int:
        body = {"model": "chat", "prompt": PROMPT, "max_tokens": 1, **fields}
        response = httpx.post(f"{url}/v1/completions", json=body, headers={"authorization": f"Bearer {key}"})
        return response.raise_for_status().json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    with serving(runtime, api_keys=["one", "two"]) as url:
        found = [cached_tokens(key) for key in ("one", "two", "one")]
        assert found == [0, 0, 64]
        assert cached_tokens("one", cache_salt="apart") == 0
        assert cached_tokens("one", n=2, cache_salt="choices") == 0  # of the prompt, which counts once


@pytest.mark.parametrize("prefill_tokens", [1, 10, 16, None])
def test_chunks_of_any_size_give_the_same_answers(
    runtime: Runtime, expected, prefill_tokens: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime._scheduler._steps, "_prefill_tokens", prefill_tokens)
    lengths = [70, 33, 64]
    salted = [dataclasses.replace(SHORT, cache_salt=f"chunks {prefill_tokens} {length}") for length in lengths]
    answers = together(runtime, [PROMPT[:length] for length in lengths], salted)
    assert [answer.token_ids for answer in answers] == [expected[length, 8] for length in lengths]


@pytest.mark.parametrize("is_swapped", [True, False], ids=["swapped", "computed anew"])
def test_preempted_sequences_give_the_same_answers(
    runtime: Runtime, expected, is_swapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = runtime._scheduler.queues["chat"]
    monkeypatch.setattr(queue, "copy_pays", is_swapped)
    copies = copies_of(runtime, monkeypatch)
    before = queue.num_preemptions
    # With a salt each they share nothing: 4 x 120 tokens in a pool of 256.
    salted = [dataclasses.replace(LONG, cache_salt=f"preempted {is_swapped} {number}") for number in range(4)]
    answers = together(runtime, [PROMPT[:40]] * 4, salted)
    assert {answer.token_ids for answer in answers} == {expected[40, 80]}
    assert queue.num_preemptions > before
    assert set(copies) == ({SaveBlocks, LoadBlocks} if is_swapped else set())


def test_a_conversation_goes_on_where_it_was_after_its_model_was_away(
    tiny_bundle: Path, expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Runtime(tiny_bundle, hbm=room_for_one(tiny_bundle)) as runtime:  # one of the two decoders
        for queue in runtime._scheduler.queues.values():
            queue.copy_pays = queue.pool is not None
        copies = copies_of(runtime, monkeypatch)
        before = runtime.complete("chat", PROMPT, SHORT)
        runtime.complete("other", PROMPT, SHORT)
        after = runtime.complete("chat", PROMPT, SHORT)
        uses = {use.tier: use for use in runtime.tier_uses()}
        saved_bytes = runtime._scheduler.residency.saved.used_bytes
    assert before.token_ids == after.token_ids == expected[70, 8]
    assert (before.usage.cached_tokens, after.usage.cached_tokens) == (0, 64)
    assert copies == [SaveBlocks, SaveBlocks, LoadBlocks]
    assert saved_bytes == 8 * block_bytes(runtime.bundle.manifest.models[0])
    for use in uses.values():
        assert use.measured_bytes <= use.peak_charged_bytes <= use.budget_bytes


def block_bytes(entry: ModelEntry) -> int:
    assert entry.kv is not None
    return entry.kv.block_tokens * entry.kv.bytes_per_token
