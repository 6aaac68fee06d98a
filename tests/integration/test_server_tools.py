"""Tool calls over HTTP, through the `openai` client: a model that says noise calls tools with arguments that fit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import jsonschema
import openai
import pytest
import tokenizers
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionMessageFunctionToolCall,
)
from tiny import write_tiny_llama

from plait.compiler.bundle.build import build_bundle
from plait.compiler.bundle.spec import BundleSpec
from plait.errors import ConfigurationError
from plait.runtime.engine import Runtime
from plait.runtime.request import SamplingParams, Structure, Tool, ToolUse
from plait.runtime.server.serve import serving

USER = [{"role": "user", "content": "hi"}]
PARAMETERS = {
    "weather": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 5}, "unit": {"enum": ["C", "F"]}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
    "alarm": {
        "type": "object",
        "properties": {
            "at": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 3}
        },
        "required": ["at"],
        "additionalProperties": False,
    },
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": parameters, "strict": True}}
    for name, parameters in PARAMETERS.items()
]
NAMED = {"type": "function", "function": {"name": "alarm"}}
MARK = "<tool_call>"  # a token of its own, so that a bias can make noise say it
MARK_ID = 267
SEQUENCE = 1024  # bytes are tokens, and the tools are described in hundreds of them
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tools")
    model = write_tiny_llama(directory / "llama", seed=0)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": SEQUENCE}))
    special = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(special | {"chat_template": TEMPLATE}))
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.add_tokens([tokenizers.AddedToken(MARK, special=False, normalized=False)])
    assert tokenizer.token_to_id(MARK) == MARK_ID
    tokenizer.save(str(model / "tokenizer.json"))
    models = {"chat": {"source": "llama", "sequence": SEQUENCE, "batch": 2, "kv_tokens": 2 * SEQUENCE}}
    spec = BundleSpec.model_validate({"bundle": "tools", "target": "cpu", "models": models})
    return build_bundle(spec, directory / "tools.plait", base=directory).path


@pytest.fixture(scope="module")
def runtime(bundle: Path) -> Iterator[Runtime]:
    with Runtime(bundle) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def sdk(runtime: Runtime) -> Iterator[openai.OpenAI]:
    with serving(runtime) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=60) as client:
        yield client


def ask(sdk, *, messages: list | None = None, **fields) -> ChatCompletion:
    fields = {"tools": TOOLS, "temperature": 1, "seed": 3, "max_tokens": 200} | fields
    return sdk.chat.completions.create(model="chat", messages=messages or USER, **fields)


def streamed(sdk, **fields) -> list[dict]:
    """The choices that a stream makes, in the form of whole ones; checks the order of its steps."""
    choices: dict[int, dict] = {}
    stream: Iterable[ChatCompletionChunk] = ask(sdk, stream=True, **fields)  # type: ignore[assignment]
    for chunk in stream:
        for one in chunk.choices:
            choice = choices.setdefault(one.index, {"content": "", "calls": [], "finish_reason": None})
            assert choice["finish_reason"] is None
            choice["content"] += one.delta.content or ""
            choice["finish_reason"] = one.finish_reason
            for step in one.delta.tool_calls or ():
                assert step.function
                if step.index == len(choice["calls"]):
                    assert step.id
                    assert step.type == "function"
                    assert step.function.arguments == ""
                    choice["calls"].append([step.function.name, ""])
                else:
                    assert step.index == len(choice["calls"]) - 1
                    assert (step.id, step.function.name) == (None, None)
                    choice["calls"][-1][1] += step.function.arguments or ""
    return [choices[index] for index in sorted(choices)]


def calls_of(message: ChatCompletionMessage) -> list[ChatCompletionMessageFunctionToolCall]:
    calls = [call for call in message.tool_calls or () if call.type == "function"]
    assert len(calls) == len(message.tool_calls or ())
    return calls


def whole(answer: ChatCompletion) -> list[dict]:
    return [
        {
            "content": choice.message.content or "",
            "calls": [[call.function.name, call.function.arguments] for call in calls_of(choice.message)],
            "finish_reason": choice.finish_reason,
        }
        for choice in answer.choices
    ]


def check_calls(choice: dict) -> None:
    for name, arguments in choice["calls"]:
        jsonschema.validate(json.loads(arguments), PARAMETERS[name])
    assert MARK not in choice["content"]


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_calls_that_are_demanded_fit_their_tool_streamed_or_not(sdk, choice) -> None:
    answer = ask(sdk, tool_choice=choice, parallel_tool_calls=False, n=4)
    for one in whole(answer):
        assert (len(one["calls"]), one["content"], one["finish_reason"]) == (1, "", "tool_calls")
        check_calls(one)
    names = {one["calls"][0][0] for one in whole(answer)}
    assert names == ({"weather", "alarm"} if choice == "required" else {"alarm"})
    assert len({call.id for one in answer.choices for call in calls_of(one.message)}) == 4
    assert all(one.message.content is None for one in answer.choices)
    assert streamed(sdk, tool_choice=choice, parallel_tool_calls=False, n=4) == whole(answer)


def test_several_calls_come_where_they_may(sdk) -> None:
    answers = [whole(ask(sdk, tool_choice="required", seed=seed, max_tokens=400))[0] for seed in range(4)]
    ended = [one for one in answers if one["finish_reason"] == "tool_calls"]
    assert max(len(one["calls"]) for one in ended) > 1
    for one in ended:
        check_calls(one)
    fields = {"tool_choice": "required", "max_tokens": 400, "seed": answers.index(ended[-1])}
    assert streamed(sdk, **fields) == [ended[-1]]


def test_text_stays_text_where_calling_is_free_or_forbidden(sdk) -> None:
    for choice in ("auto", "none"):
        (answer,) = whole(ask(sdk, tool_choice=choice, max_tokens=30))
        assert (answer["calls"], answer["finish_reason"]) == ([], "length")
        assert answer["content"]
        assert streamed(sdk, tool_choice=choice, max_tokens=30) == [answer]
    assert ask(sdk, tool_choice="auto").choices[0].message.tool_calls is None


def test_a_call_that_begins_freely_is_held_to_its_tool(sdk) -> None:
    fields = {"logit_bias": {MARK_ID: 4}, "parallel_tool_calls": False, "n": 4}
    answers = whole(ask(sdk, **fields))
    for one in answers:
        assert (len(one["calls"]), one["finish_reason"]) == (1, "tool_calls")
        check_calls(one)
    assert any(one["content"] for one in answers)
    assert streamed(sdk, **fields) == answers
    (several,) = whole(ask(sdk, logit_bias={MARK_ID: 100}, max_tokens=300))
    assert len(several["calls"]) > 1


def test_what_was_called_may_be_sent_back_and_answered(sdk) -> None:
    called = ask(sdk, tool_choice=NAMED).choices[0].message
    result = {"role": "tool", "tool_call_id": calls_of(called)[0].id, "content": "done <tool_call>"}
    conversation = [*USER, called.model_dump(), result]
    answer = ask(sdk, messages=conversation, tool_choice="none", max_tokens=5)
    assert answer.choices[0].message.content
    assert answer.usage
    assert answer.usage.prompt_tokens > len("done <tool_call>")


def test_a_call_that_is_cut_off_says_so(sdk) -> None:
    (answer,) = whole(ask(sdk, tool_choice=NAMED, max_tokens=40))
    assert (answer["finish_reason"], len(answer["calls"])) == ("length", 1)
    assert not answer["calls"][0][1].endswith("}")
    (sooner,) = whole(ask(sdk, tool_choice=NAMED, max_tokens=9))
    assert (sooner["finish_reason"], sooner["calls"]) == ("length", [])


def test_parameters_that_cannot_be_followed_are_refused_by_name(sdk) -> None:
    for parameters in ({"type": "string"}, {"type": "object", "properties": {"a": {"type": "odd"}}}):
        tools = [TOOLS[0], {"type": "function", "function": {"name": "f", "parameters": parameters}}]
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match=r"tools\[1\]\.function\.parameters") as caught:
                ask(sdk, tools=tools, stream=stream)
            assert caught.value.param == "tools[1].function.parameters"


def test_an_answer_without_calls_has_the_structure_that_was_asked_for(sdk) -> None:
    schema = {"name": "x", "schema": {"enum": ["red", "green"]}}
    answers = [
        whole(ask(sdk, seed=seed, response_format={"type": "json_schema", "json_schema": schema}, n=1))[0]
        for seed in range(4)
    ]
    assert all(one["calls"] or json.loads(one["content"]) in ("red", "green") for one in answers)
    assert any(one["content"] for one in answers)
    with pytest.raises(openai.BadRequestError, match="'guided_regex' cannot be combined with tools"):
        ask(sdk, extra_body={"guided_regex": "a"})


def test_the_runtime_itself_takes_tools(runtime: Runtime) -> None:
    use = ToolUse((Tool("alarm", "Sets it", PARAMETERS["alarm"]),), "required", is_parallel=False)
    params = SamplingParams(max_tokens=200, temperature=1, seed=1, tools=use)
    answer = runtime.complete("chat", USER, params)
    (call,) = answer.tool_calls
    assert (call.name, answer.text, answer.finish_reason) == ("alarm", "", "tool_calls")
    jsonschema.validate(json.loads(call.arguments), PARAMETERS["alarm"])
    pieces = list(runtime.pieces("chat", USER, params))
    assert "".join(delta.arguments for piece in pieces for delta in piece.tool_calls) == call.arguments
    assert len([piece for piece in pieces if piece.tool_calls]) > 3
    prompt = runtime.chat_prompt("chat", USER, use)
    assert len(prompt) > len(runtime.chat_prompt("chat", USER)) + len("Sets it")


def test_tool_parsers_are_named_for_models_that_are_there(bundle: Path) -> None:
    with pytest.raises(ConfigurationError, match="unknown tool parser 'x'; there are hermes, mistral, llama3_json"):
        Runtime(bundle, tool_parsers={"chat": "x"})
    with pytest.raises(ConfigurationError, match="no model 'y' for a tool parser; the bundle has chat"):
        Runtime(bundle, tool_parsers={"y": "hermes"})
    use = ToolUse((Tool("f"),), "required", is_parallel=False)
    with Runtime(bundle, tool_parsers={"chat": "llama3_json"}) as runtime:
        params = SamplingParams(max_tokens=60, temperature=0, tools=use)
        answer = runtime.complete("chat", "hi", params)
        assert [(call.name, call.arguments) for call in answer.tool_calls] == [("f", "{}")]
        spelled = SamplingParams(max_tokens=60, temperature=0, structure=Structure("choice", '["x"]'))
        assert runtime.complete("chat", "hi", spelled).tool_calls == ()
