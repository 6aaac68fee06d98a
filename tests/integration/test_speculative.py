"""Speculative decoding with tiny models: what is answered is what the target alone would say, in fewer steps."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from tiny import write_tiny_bert, write_tiny_llama

import plait
from plait.compiler.bundle.build import build_bundle
from plait.compiler.bundle.manifest import ModelEntry
from plait.compiler.bundle.reader import Bundle
from plait.compiler.bundle.spec import BundleSpec
from plait.errors import ConfigurationError
from plait.runtime.engine import Runtime
from plait.runtime.request import Completion, SamplingParams, Structure
from plait.runtime.server.serve import serving

MODELS = {
    "chat": {"source": "llama", "sequence": 64, "batch": 2, "kv_tokens": 96},
    "near": {"source": "near", "sequence": 64, "batch": 2, "kv_tokens": 96},
}
PAIRS = [{"draft": "near", "target": "chat", "tokens": 3}]
GREEDY = SamplingParams(max_tokens=30, temperature=0)


def spec_of(**fields: object) -> BundleSpec:
    return BundleSpec.model_validate({"bundle": "pair", "target": "cpu-tiered", "models": MODELS, **fields})


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and another one that mostly says the same."""
    path = tmp_path_factory.mktemp("pair")
    write_tiny_llama(path / "llama", seed=0)
    write_tiny_llama(path / "near", seed=0, noise=0.03)
    return path


@pytest.fixture(scope="module")
def bundle(directory: Path) -> Bundle:
    """A pair whose draft takes no time, by its manifest: it always pays."""
    built = build_bundle(spec_of(speculative=PAIRS), directory / "pair.plait", base=directory)
    models = tuple(with_seconds(entry, 1e-6 if entry.name == "near" else 0.01) for entry in built.manifest.models)
    return dataclasses.replace(built, manifest=dataclasses.replace(built.manifest, models=models))


def with_seconds(entry: ModelEntry, seconds: float) -> ModelEntry:
    programs = tuple(dataclasses.replace(program, step_seconds=seconds) for program in entry.programs)
    return dataclasses.replace(entry, programs=programs)


@pytest.fixture(scope="module")
def alone(bundle: Bundle) -> Iterator[Runtime]:
    """The same models, without a draft."""
    manifest = dataclasses.replace(bundle.manifest, speculative=())
    with Runtime(dataclasses.replace(bundle, manifest=manifest)) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def paired(bundle: Bundle) -> Iterator[Runtime]:
    with Runtime(bundle) as runtime:
        runtime.complete("near", [1], SamplingParams(max_tokens=1))  # makes it hot
        yield runtime


def together(runtime: Runtime, asked: Sequence[tuple[str, list[int], SamplingParams]]) -> list[Completion]:
    async def ask() -> list[Completion]:
        return await asyncio.gather(*(runtime.complete_async(*one) for one in asked))

    return asyncio.run(ask())


def requests(number: int, params: Sequence[SamplingParams], models: Sequence[str] = ("chat",)):
    """Requests with prompts of all lengths, some of which begin alike."""
    chance = random.Random(number)
    beginning = [chance.randrange(10, 200) for _ in range(20)]
    for index in range(number):
        prompt = beginning[: chance.randrange(21)] + [chance.randrange(10, 200) for _ in range(chance.randrange(1, 12))]
        yield chance.choice(models), prompt, params[index % len(params)]


def test_greedy_answers_are_the_targets_own_and_take_fewer_steps(alone: Runtime, paired: Runtime) -> None:
    asked = list(requests(12, [GREEDY]))
    ours = together(paired, asked)
    assert [one.token_ids for one in ours] == [one.token_ids for one in together(alone, asked)]
    accepted = sum(one.usage.accepted_tokens for one in ours)
    assert accepted > 100
    assert sum(one.usage.rejected_tokens for one in ours) > 10
    assert accepted < sum(one.usage.completion_tokens for one in ours)


def test_seeded_answers_are_the_targets_own_however_they_are_drawn(alone: Runtime, paired: Runtime) -> None:
    params = [
        SamplingParams(max_tokens=30, temperature=1.0, seed=3),
        SamplingParams(max_tokens=30, temperature=0.7, top_p=0.8, seed=4, logprobs=2),
        SamplingParams(max_tokens=30, temperature=0.9, top_k=7, seed=5, frequency_penalty=0.5, presence_penalty=0.1),
        SamplingParams(max_tokens=30, temperature=0.5, min_p=0.1, seed=6, repetition_penalty=1.2, min_tokens=9),
        SamplingParams(max_tokens=9, temperature=0, logit_bias={17: 3.0}, stop_token_ids=(17,)),
        SamplingParams(max_tokens=2, temperature=0),
    ]
    asked = list(requests(12, params))
    ours, theirs = together(paired, asked), together(alone, asked)
    assert [one.token_ids for one in ours] == [one.token_ids for one in theirs]
    assert [one.finish_reason for one in ours] == [one.finish_reason for one in theirs]
    assert [one.logprobs for one in ours] == [one.logprobs for one in theirs]
    assert sum(one.usage.accepted_tokens for one in ours) > 20


def test_answers_without_a_seed_are_drawn_with_the_rejection_rule(paired: Runtime) -> None:
    drawn = [paired.complete("chat", [5, 6, 7], SamplingParams(max_tokens=30, temperature=1.0)) for _ in range(4)]
    assert len({one.token_ids for one in drawn}) == 4
    accepted = sum(one.usage.accepted_tokens for one in drawn)
    assert accepted > 2 * sum(one.usage.rejected_tokens for one in drawn) / 3  # far more than equal draws would be


def test_nothing_is_proposed_for_a_structure(alone: Runtime, paired: Runtime) -> None:
    params = SamplingParams(max_tokens=40, temperature=0, structure=Structure("regex", "[a-f]{20}"))
    ours = paired.complete("chat", [9, 8, 7], params)
    assert ours.text == alone.complete("chat", [9, 8, 7], params).text
    assert (ours.usage.accepted_tokens, ours.usage.rejected_tokens) == (0, 0)


def test_the_draft_answers_too_and_pools_are_too_small_for_all(alone: Runtime, paired: Runtime) -> None:
    params = [dataclasses.replace(GREEDY, max_tokens=33)]
    asked = list(requests(16, params, models=("chat", "near")))
    assert [one.token_ids for one in together(paired, asked)] == [one.token_ids for one in together(alone, asked)]


def test_a_draft_that_has_no_room_holds_nobody(bundle: Bundle, alone: Runtime) -> None:
    room = max(entry.resident_bytes + entry.workspace_bytes for entry in bundle.manifest.models)
    asked = list(requests(6, [dataclasses.replace(GREEDY, max_tokens=12)], models=("chat", "near", "chat")))
    expected = [one.token_ids for one in together(alone, asked)]
    with Runtime(bundle, hbm=room) as runtime:
        answers = together(runtime, asked)
    assert [one.token_ids for one in answers] == expected
    assert {one.usage.accepted_tokens + one.usage.rejected_tokens for one in answers} == {0}


def test_a_pair_is_switched_together(bundle: Bundle) -> None:
    with Runtime(bundle) as runtime:
        answers = [runtime.complete("chat", [1, 2, index], GREEDY) for index in range(4)]
        assert [status.residency for status in runtime.models()] == ["hot", "hot"]
    assert answers[-1].usage.accepted_tokens > 0


def test_usage_and_metrics_count_proposals(paired: Runtime) -> None:
    body = {"model": "chat", "prompt": [7] * 20, "max_tokens": 30, "temperature": 0}
    with serving(paired) as url:
        before = _counters(url)
        usage = httpx.post(f"{url}/v1/completions", json=body, timeout=60).raise_for_status().json()["usage"]
        after = _counters(url)
    details = usage["completion_tokens_details"]
    accepted, rejected = details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]
    assert accepted > 0
    assert after["accepted"] - before["accepted"] == accepted
    assert after["draft"] - before["draft"] == accepted + rejected


def _counters(url: str) -> dict[str, float]:
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    rows = (line.rsplit(" ", 1) for line in lines if line.startswith("plait_speculative") and 'name="chat"' in line)
    return {name.split("_")[2]: float(value) for name, value in rows if name.split("{")[0].endswith("_total")}


def test_a_draft_needs_its_targets_tokenizer(directory: Path) -> None:
    tokenizer = json.loads((directory / "near" / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    write_tiny_llama(directory / "apart", seed=0)
    (directory / "apart" / "tokenizer.json").write_text(json.dumps(tokenizer))
    models = {**MODELS, "near": {**MODELS["near"], "source": "apart"}}
    spec = spec_of(models=models, speculative=PAIRS)
    with pytest.raises(ConfigurationError, match=r"'near' cannot be the draft of 'chat': .*'a' is token \d+ in"):
        build_bundle(spec, directory / "never.plait", base=directory)


def test_an_encoder_is_in_no_pair(directory: Path) -> None:
    write_tiny_bert(directory / "bert")
    spec = spec_of(models={**MODELS, "near": {"source": "bert"}}, speculative=PAIRS)
    with pytest.raises(ConfigurationError, match="model 'near' is an encoder: it can be in no pair"):
        build_bundle(spec, directory / "never.plait", base=directory)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([*PAIRS, *PAIRS], "model 'chat' is the target of two pairs"),
        ([{"draft": "chat", "target": "chat"}], "model 'chat' is its own draft"),
        ([{"draft": "none", "target": "chat"}], "'none' is no model of this bundle"),
        ([{"draft": "near", "target": "chat", "tokens": 0}], "greater than or equal to 1"),
    ],
    ids=["two drafts", "own draft", "unknown", "no tokens"],
)
def test_pairs_that_cannot_be_are_refused(pairs: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec_of(speculative=pairs)


def test_a_bundle_keeps_its_pairs(bundle: Bundle) -> None:
    (pair,) = plait.load(bundle.path).manifest.speculative
    assert (pair.draft, pair.target, pair.tokens) == ("near", "chat", 3)
    shapes = [program.configuration.id for program in bundle.manifest.model("chat").programs]
    assert [name for name in shapes if name.startswith("verify")] == ["verify-b1-t4-c64", "verify-b2-t4-c64"]
