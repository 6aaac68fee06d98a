"""Sampling parameters, logprobs and several choices over HTTP, on a tiny model whose answers are noise with a seed."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from plait.compiler.target import load_target
from plait.errors import InvalidRequestError
from plait.runtime.engine import Runtime
from plait.runtime.request import SamplingParams
from plait.runtime.server.serve import serving

USER = [{"role": "user", "content": "The cat"}]
WARM = {"temperature": 1.3, "seed": 5, "max_tokens": 24}


@pytest.fixture(scope="module")
def tiny_runtime(tiny_bundle: Path) -> Iterator[Runtime]:
    with Runtime(tiny_bundle) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def tiny_sdk(tiny_runtime: Runtime) -> Iterator[openai.OpenAI]:
    with serving(tiny_runtime) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        yield client


def chat(sdk, extra: dict | None = None, **fields):
    return sdk.chat.completions.create(model="chat", messages=USER, extra_body=extra, **fields)


def test_a_biased_token_is_all_that_is_said(tiny_sdk, tiny_runtime) -> None:
    (token,) = tiny_runtime.tokenize("chat", "e")
    answer = chat(tiny_sdk, logit_bias={str(token): 100}, temperature=0, max_tokens=5)
    assert answer.choices[0].message.content == "eeeee"


def test_a_frequency_penalty_brings_the_next_likeliest_tokens_in(tiny_runtime) -> None:
    bias = {30: 100.0, 31: 90.0, 32: 80.0}
    params = SamplingParams(max_tokens=60, temperature=0, logit_bias=bias)
    assert set(tiny_runtime.complete("chat", "x", params).token_ids) == {30}
    penalized = SamplingParams(max_tokens=60, temperature=0, logit_bias=bias, frequency_penalty=2.0)
    assert set(tiny_runtime.complete("chat", "x", penalized).token_ids) == {30, 31, 32}


def test_penalized_answers_are_the_same_whatever_shares_the_batch(tiny_runtime) -> None:
    # Eight of 107 tokens in a pool of 256: some are preempted and computed anew.
    base = SamplingParams(max_tokens=100, temperature=1.2, repetition_penalty=1.2, frequency_penalty=0.5, min_p=0.05)
    params = [dataclasses.replace(base, seed=seed) for seed in range(8)]
    alone = [tiny_runtime.complete("chat", "The cat", one).token_ids for one in params]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda one: tiny_runtime.complete("chat", "The cat", one).token_ids, params))
    assert together == alone
    assert len(set(alone)) == 8


def test_a_stop_token_ends_the_answer_and_is_not_part_of_it(tiny_sdk, tiny_runtime) -> None:
    tokens = tiny_runtime.complete("chat", USER, SamplingParams(max_tokens=24, temperature=1.3, seed=5)).token_ids
    stop = tokens[9]
    answer = chat(tiny_sdk, {"stop_token_ids": [stop]}, **WARM)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == tokens.index(stop)
    later = chat(tiny_sdk, {"stop_token_ids": [stop], "min_tokens": 20}, **WARM)
    assert later.usage.completion_tokens >= 20


def test_the_models_own_end_is_heeded_ignored_or_put_off(tiny_runtime) -> None:
    (end,) = tiny_runtime.bundle.manifest.models[0].eos_token_ids

    def tokens(**fields) -> tuple[tuple[int, ...], str]:
        params = SamplingParams(max_tokens=9, temperature=0, logit_bias={end: 100}, **fields)
        whole = tiny_runtime.complete("chat", "The cat", params)
        return whole.token_ids, whole.finish_reason

    assert tokens() == ((), "stop")
    assert tokens(ignore_eos=True) == ((end,) * 9, "length")
    late, reason = tokens(min_tokens=4)
    assert (len(late), reason) == (4, "stop")
    assert end not in late


def test_a_stop_string_does_not_count_before_the_least_number_of_tokens(tiny_runtime) -> None:
    bias = {tiny_runtime.tokenize("chat", "e")[0]: 100.0}
    params = SamplingParams(max_tokens=9, temperature=0, logit_bias=bias, stop=("e",))
    assert tiny_runtime.complete("chat", "x", params).text == ""
    params = SamplingParams(max_tokens=9, temperature=0, logit_bias=bias, stop=("e",), min_tokens=4)
    assert tiny_runtime.complete("chat", "x", params).text == "eee"


def test_chat_logprobs_are_of_each_token_and_the_likeliest(tiny_sdk) -> None:
    answer = chat(tiny_sdk, logprobs=True, top_logprobs=4, **WARM)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    text = b"".join(bytes(one.bytes) for one in content).decode(errors="replace")
    assert text == answer.choices[0].message.content
    for one in content:
        best = [top.logprob for top in one.top_logprobs]
        assert len(best) == 4
        assert best == sorted(best, reverse=True)
        assert one.logprob <= best[0] <= 0
        assert sum(map(math.exp, best)) <= 1
        assert one.token == bytes(one.bytes).decode(errors="replace")
    assert chat(tiny_sdk, **WARM).choices[0].logprobs is None
    assert chat(tiny_sdk, logprobs=True, **WARM).choices[0].logprobs.content[0].top_logprobs == []


def test_streamed_logprobs_are_the_unstreamed_ones(tiny_sdk) -> None:
    whole = chat(tiny_sdk, logprobs=True, top_logprobs=2, **WARM).choices[0]
    chunks = list(chat(tiny_sdk, logprobs=True, top_logprobs=2, stream=True, **WARM))
    streamed = [one for chunk in chunks if (given := chunk.choices[0].logprobs) for one in given.content]
    assert streamed == whole.logprobs.content


def test_greedy_tokens_are_the_likeliest(tiny_sdk) -> None:
    answer = chat(tiny_sdk, logprobs=True, top_logprobs=1, temperature=0, max_tokens=8)
    assert all(one.token == one.top_logprobs[0].token for one in answer.choices[0].logprobs.content)


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_completion_logprobs_are_lists(tiny_sdk, is_streamed: bool) -> None:
    answer = tiny_sdk.completions.create(model="chat", prompt="The cat", logprobs=3, stream=is_streamed, **WARM)
    choices = [chunk.choices[0] for chunk in answer] if is_streamed else answer.choices
    given = [choice.logprobs for choice in choices if choice.logprobs]
    tokens = [token for one in given for token in one.tokens]
    offsets = [offset for one in given for offset in one.text_offset]
    assert len(tokens) == sum(len(one.token_logprobs) for one in given) == 24
    assert offsets == [sum(map(len, tokens[:index])) for index in range(24)]
    for one in given:
        for token, logprob, best in zip(one.tokens, one.token_logprobs, one.top_logprobs, strict=True):
            assert best[token] >= logprob
            assert len(best) <= 4
    none = tiny_sdk.completions.create(model="chat", prompt="The cat", logprobs=0, **WARM).choices[0].logprobs
    assert all(len(best) == 1 for best in none.top_logprobs)


def test_choices_differ_and_come_again_with_the_seed(tiny_sdk) -> None:
    first = chat(tiny_sdk, n=3, **WARM)
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert [choice.message.content for choice in chat(tiny_sdk, n=3, **WARM).choices] == texts
    assert chat(tiny_sdk, **WARM).choices[0].message.content == texts[0]
    alone = chat(tiny_sdk, **WARM).usage
    assert first.usage.prompt_tokens == alone.prompt_tokens
    assert first.usage.completion_tokens == 72


def test_streamed_choices_are_told_apart_by_their_index(tiny_sdk) -> None:
    texts = [choice.message.content for choice in chat(tiny_sdk, n=3, **WARM).choices]
    streamed, ends, order = {}, {}, []
    chunks = list(chat(tiny_sdk, n=3, stream=True, stream_options={"include_usage": True}, **WARM))
    for chunk in chunks:
        for choice in chunk.choices:
            order.append(choice.index)
            streamed[choice.index] = streamed.get(choice.index, "") + (choice.delta.content or "")
            ends[choice.index] = choice.finish_reason or ends.get(choice.index)
    assert [streamed[index] for index in range(3)] == texts
    assert ends == dict.fromkeys(range(3), "length")
    assert order != sorted(order)
    assert chunks[-1].usage.completion_tokens == 72


def test_several_prompts_have_several_choices_each(tiny_sdk) -> None:
    answer = tiny_sdk.completions.create(model="chat", prompt=["The cat", "A dog"], n=2, **WARM)
    alone = [tiny_sdk.completions.create(model="chat", prompt=text, n=2, **WARM) for text in ("The cat", "A dog")]
    assert [choice.text for choice in answer.choices] == [choice.text for one in alone for choice in one.choices]
    assert answer.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop_token_ids": [288]}, "stop_token_ids"),
        ({"logit_bias": {"288": 1}}, "logit_bias"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"min_tokens": 1000}, "min_tokens"),
    ],
    ids=str,
)
def test_what_the_model_cannot_do_is_refused_by_name(tiny_sdk, fields, param) -> None:
    with pytest.raises(openai.BadRequestError, match=param) as caught:
        chat(tiny_sdk, fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"min_p": 2}, "min_p is 2; it must be between 0 and 1"),
        ({"top_k": -1}, "top_k is -1; it must be 0, for all tokens, or more"),
        ({"frequency_penalty": 3}, "frequency_penalty is 3; it must be between -2 and 2"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be between 0.01 and 100"),
        ({"logit_bias": {1: 200}}, "between -100 and 100 each"),
        ({"logprobs": 21}, "logprobs is 21; it must be 0 to 20"),
    ],
    ids=str,
)
def test_python_callers_are_told_as_well(tiny_runtime, fields, match) -> None:
    with pytest.raises(InvalidRequestError, match=match):
        tiny_runtime.complete("chat", "hi", SamplingParams(**fields))


def test_nothing_is_kept_of_logprobs_that_nobody_reads(tiny_runtime) -> None:
    params = SamplingParams(max_tokens=100, temperature=1, logprobs=2)
    pieces = tiny_runtime.pieces("chat", "The cat", params)
    next(pieces)
    pieces.close()
    tiny_runtime.complete("chat", "The cat", params)
    assert tiny_runtime._core._executor.logprobs == {}


def test_energy_is_in_usage_and_metrics(tiny_sdk, tiny_runtime) -> None:
    def counted() -> float:
        text = tiny_runtime.metrics.render()[0].decode()
        return float(re.findall(r'^plait_joules_total\{model_name="chat"\} (.*)$', text, re.MULTILINE)[0])

    before = counted()
    one, three = (chat(tiny_sdk, **WARM, n=n).usage for n in (1, 3))
    assert one.joules_source in ("modelled", "measured")
    assert one.joules_per_token == pytest.approx(one.joules / one.total_tokens)
    assert 0 < one.joules < three.joules
    assert counted() - before >= 0.999 * (one.joules + three.joules)  # others may have been in the steps
    if one.joules_source == "modelled":
        assert one.joules < tiny_runtime.target.power.peak_watts * one.total_latency


def test_energy_is_null_where_nothing_is_known_of_power(tiny_bundle: Path) -> None:
    target = dataclasses.replace(load_target("cpu-tiered"), power=None)
    with Runtime(tiny_bundle, target=target) as runtime:
        usage = runtime.complete("chat", "x", SamplingParams(max_tokens=2)).usage
        assert usage.energy is None or usage.energy.source == "measured"
