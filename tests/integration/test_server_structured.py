"""Structured output over HTTP: a model that says noise gives JSON that fits, streamed or not, and ends by itself."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Iterator

import httpx
import jsonschema
import openai
import pytest
from random_schemas import random_schema
from tiny import write_tiny_llama

from plait.compiler.bundle.build import build_bundle
from plait.compiler.bundle.spec import BundleSpec
from plait.errors import ExecutionError, InvalidRequestError
from plait.runtime.engine import Runtime
from plait.runtime.request import SamplingParams, Structure
from plait.runtime.server.serve import serving

USER = [{"role": "user", "content": "hi"}]
MAX_TOKENS = 440
NUM_SCHEMAS = 50
CAT = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "lives": {"type": "integer", "minimum": 0, "maximum": 9},
        "moods": {"type": "array", "items": {"enum": ["calm", "hungry"]}, "maxItems": 3},
    },
    "required": ["name", "lives", "moods"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    directory = tmp_path_factory.mktemp("structured")
    write_tiny_llama(directory / "llama", seed=0)
    models = {"chat": {"source": "llama", "sequence": 512, "batch": 8, "kv_tokens": 1024}}
    spec = BundleSpec.model_validate({"bundle": "structured", "target": "cpu", "models": models})
    with Runtime(build_bundle(spec, directory / "structured.plait", base=directory).path) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def url(runtime: Runtime) -> Iterator[str]:
    with serving(runtime) as url:
        yield url


@pytest.fixture(scope="module")
def sdk(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=60) as client:
        yield client


def ask(sdk, *, extra: dict | None = None, **fields):
    fields = {"temperature": 1, "seed": 3, "max_tokens": MAX_TOKENS} | fields
    return sdk.chat.completions.create(model="chat", messages=USER, extra_body=extra, **fields)


def response_format(schema: dict) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def test_answers_to_random_bounded_schemas_are_json_that_validates(runtime: Runtime) -> None:
    schemas = [random_schema(random.Random(index), 3) for index in range(NUM_SCHEMAS)]
    assert any("properties" in str(one) and "items" in str(one) for one in schemas)

    async def answer(index: int) -> tuple[str, str]:
        structure = Structure("json", json.dumps(schemas[index]))
        params = SamplingParams(max_tokens=MAX_TOKENS, temperature=1, seed=index, structure=structure)
        whole = await runtime.complete_async("chat", USER, params)
        return whole.text, whole.finish_reason

    async def answers() -> list[tuple[str, str]]:
        return await asyncio.gather(*(answer(index) for index in range(NUM_SCHEMAS)))

    for schema, (text, reason) in zip(schemas, asyncio.run(answers()), strict=True):
        jsonschema.validate(json.loads(text), schema)
        assert reason == "stop"


def test_a_schema_is_followed_by_every_choice_streamed_or_not(sdk) -> None:
    whole = ask(sdk, response_format=response_format(CAT), n=3)
    texts = [choice.message.content for choice in whole.choices]
    for choice in whole.choices:
        jsonschema.validate(json.loads(choice.message.content), CAT)
        assert choice.finish_reason == "stop"
    assert len(set(texts)) == 3
    streamed = ["", "", ""]
    for chunk in ask(sdk, response_format=response_format(CAT), n=3, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_a_json_object_is_one(sdk) -> None:
    texts = [ask(sdk, response_format={"type": "json_object"}, temperature=0.7, seed=seed) for seed in range(6)]
    finished = [answer.choices[0] for answer in texts if answer.choices[0].finish_reason == "stop"]
    assert all(isinstance(json.loads(choice.message.content), dict) for choice in finished)
    assert all(answer.choices[0].message.content.startswith("{") for answer in texts)


def test_an_answer_that_is_complete_ends_at_once(sdk) -> None:
    schema = {"const": "x"}
    answer = ask(sdk, response_format=response_format(schema))
    assert (answer.choices[0].message.content, answer.usage.completion_tokens) == ('"x"', 3)
    exactly = ask(sdk, response_format=response_format(schema), max_tokens=3)
    assert exactly.choices[0].finish_reason == "stop"
    cut = ask(sdk, response_format=response_format(schema), max_tokens=2)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ('"x', "length")
    longer = ask(sdk, response_format=response_format(schema), extra={"min_tokens": 9})
    assert longer.choices[0].message.content == '"x"'


@pytest.mark.parametrize(
    ("extra", "expression"),
    [
        ({"guided_regex": "[0-9]{3}-[a-c]{2}"}, "[0-9]{3}-[a-c]{2}"),
        ({"guided_choice": ["red", "green 🙂"]}, "red|green 🙂"),
        ({"guided_grammar": 'start: "a" /[xyz]{2}/ "b"'}, "a[xyz]{2}b"),
        ({"guided_json": {"enum": [1, 23]}}, "1|23"),
        ({"structured_outputs": {"regex": "[ab]{4}"}}, "[ab]{4}"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
        ({"structured_outputs": {"json": '{"type": "boolean"}'}}, "true|false"),
        ({"structured_outputs": {"grammar": 'root ::= "a" [0-9] | "b"'}}, "a[0-9]|b"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_the_forms_of_vllm_are_followed(sdk, extra, expression) -> None:
    answer = ask(sdk, extra=extra)
    assert re.fullmatch(expression, answer.choices[0].message.content)
    assert answer.choices[0].finish_reason == "stop"
    fields = {"temperature": 1, "seed": 3, "extra_body": extra}
    text = sdk.completions.create(model="chat", prompt="hi", **fields).choices[0].text
    assert re.fullmatch(expression, text)


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": response_format({"type": "wrong"})}, "response_format"),
        ({"response_format": response_format({"type": "string", "pattern": "(a"})}, "response_format"),
        ({"guided_regex": "(a"}, "guided_regex"),
        ({"structured_outputs": {"grammar": "start: foo"}}, "structured_outputs.grammar"),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
    ],
    ids=["schema", "pattern", "regex", "grammar", "ignore_eos"],
)
def test_what_cannot_be_followed_is_refused_by_name(url, fields, param, is_streamed: bool) -> None:
    body = {"model": "chat", "messages": USER, "stream": is_streamed, **fields}
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert param in response.json()["error"]["message"]


def test_what_others_ask_meanwhile_changes_nothing(runtime: Runtime) -> None:
    structured = SamplingParams(
        max_tokens=MAX_TOKENS, temperature=1, seed=8, structure=Structure("json", json.dumps(CAT))
    )
    free = SamplingParams(max_tokens=60, temperature=1, seed=9)
    alone = [runtime.complete("chat", USER, params).token_ids for params in (structured, free)]

    async def together() -> list[tuple[int, ...]]:
        asked = [runtime.complete_async("chat", USER, params) for params in (free, structured, free, structured)]
        return [whole.token_ids for whole in await asyncio.gather(*asked)]

    assert asyncio.run(together()) == [alone[1], alone[0], alone[1], alone[0]]


def test_a_constraint_that_fails_on_the_way_fails_its_request_alone(runtime: Runtime, monkeypatch) -> None:
    monkeypatch.setattr("plait.runtime.structured.StructuredAnswer.failure", "too complex")
    with pytest.raises(ExecutionError, match="could not be followed to its end: too complex"):
        runtime.complete("chat", USER, SamplingParams(structure=Structure("regex", "a")))
    assert runtime.complete("chat", USER, SamplingParams(max_tokens=3)).usage.completion_tokens <= 3


def test_python_callers_get_the_same(runtime: Runtime) -> None:
    structure = Structure("choice", '["one", "two"]')
    assert runtime.complete("chat", "hi", SamplingParams(structure=structure)).text in ("one", "two")
    with pytest.raises(InvalidRequestError, match=r"'structure' cannot be answered with: .*unclosed group"):
        runtime.complete("chat", "hi", SamplingParams(structure=Structure("regex", "(a")))
