"""What is not supported is refused by name; what has no effect is accepted."""

import json

import pytest

from plait.runtime.request import Tool, ToolUse

USER = [{"role": "user", "content": "hello"}]
TEXT_PART = {"type": "text", "text": "hello"}
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


def tool(name: str, **fields: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": name, **fields}}


def called(call_id: str = "1", arguments: str = "{}") -> dict[str, object]:
    return {"id": call_id, "type": "function", "function": {"name": "f", "arguments": arguments}}


TOOL = tool("f")


def chat(http, **fields):
    return http.post("/v1/chat/completions", json={"model": "chat", "messages": USER, **fields})


def assert_refused(response, param: str | None, code: str | None = None) -> None:
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    if param is not None:
        assert param in error["message"]
    if code is not None:
        assert error["code"] == code


REFUSED = {
    "temperature too high": ({"temperature": 2.5}, "temperature", "decimal_above_max_value"),
    "temperature negative": ({"temperature": -1}, "temperature", "integer_below_min_value"),
    "temperature text": ({"temperature": "1"}, "temperature", "invalid_type"),
    "temperature bool": ({"temperature": True}, "temperature", "invalid_type"),
    "top_p zero": ({"top_p": 0}, "top_p", "integer_below_min_value"),
    "top_p above one": ({"top_p": 1.1}, "top_p", "decimal_above_max_value"),
    "max_tokens zero": ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
    "max_tokens float": ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
    "max_tokens huge": ({"max_tokens": 10**30}, "max_tokens", "integer_above_max_value"),
    "limits that disagree": ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens", None),
    "seed huge": ({"seed": 2**63}, "seed", "integer_above_max_value"),
    "stop too many": ({"stop": list("abcde")}, "stop", "array_above_max_length"),
    "stop empty": ({"stop": ""}, "stop", "empty_string"),
    "stop number": ({"stop": 7}, "stop", "invalid_type"),
    "stop of numbers": ({"stop": ["a", 7]}, "stop[1]", "invalid_type"),
    "stream text": ({"stream": "yes"}, "stream", "invalid_type"),
    "stream_options without stream": ({"stream_options": {"include_usage": True}}, "stream_options", None),
    "stream_options unknown": (
        {"stream": True, "stream_options": {"colour": 1}},
        "stream_options.colour",
        "unknown_parameter",
    ),
    "obfuscation": (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
        "unsupported_parameter",
    ),
    "n zero": ({"n": 0}, "n", "integer_below_min_value"),
    "n many": ({"n": 129}, "n", "integer_above_max_value"),
    "n bool": ({"n": True}, "n", "invalid_type"),
    "presence_penalty": ({"presence_penalty": 2.5}, "presence_penalty", "decimal_above_max_value"),
    "frequency_penalty": ({"frequency_penalty": -3}, "frequency_penalty", "integer_below_min_value"),
    "repetition_penalty": ({"repetition_penalty": 0}, "repetition_penalty", "integer_below_min_value"),
    "logit_bias of a word": ({"logit_bias": {"the": 5}}, "logit_bias", "invalid_value"),
    "logit_bias too much": ({"logit_bias": {"1": 101}}, "logit_bias.1", "integer_above_max_value"),
    "top_k": ({"top_k": -2}, "top_k", "integer_below_min_value"),
    "min_p": ({"min_p": 1.5}, "min_p", "decimal_above_max_value"),
    "min_tokens": ({"min_tokens": -1}, "min_tokens", "integer_below_min_value"),
    "stop_token_ids": ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "integer_below_min_value"),
    "ignore_eos": ({"ignore_eos": 1}, "ignore_eos", "invalid_type"),
    "logprobs number": ({"logprobs": 2}, "logprobs", "invalid_type"),
    "top_logprobs alone": ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    "top_logprobs many": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
    "tool_choice alone": ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    "tool_choice unknown": ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice", "invalid_value"),
    "tool_choice number": ({"tools": [TOOL], "tool_choice": 1}, "tool_choice", "invalid_value"),
    "tool_choice of another": (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice",
        "invalid_value",
    ),
    "tool_choice of a kind": (
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "function": {"name": "f"}}},
        "tool_choice.type",
        "invalid_value",
    ),
    "tools twice": ({"tools": [TOOL, TOOL]}, "tools", "invalid_value"),
    "tools many": ({"tools": [tool(f"f{number}") for number in range(129)]}, "tools", "array_above_max_length"),
    "tool of a kind": ({"tools": [{"type": "custom", "function": {"name": "f"}}]}, "tools[0].type", "invalid_value"),
    "tool without name": (
        {"tools": [{"type": "function", "function": {}}]},
        "tools[0].function.name",
        "missing_required_parameter",
    ),
    "tool's name": ({"tools": [tool("a b")]}, "tools[0].function.name", "invalid_value"),
    "tool's parameters": ({"tools": [tool("f", parameters="x")]}, "tools[0].function.parameters", "invalid_type"),
    "tool's field": ({"tools": [tool("f", colour=1)]}, "tools[0].function.colour", "unknown_parameter"),
    "parallel_tool_calls": ({"parallel_tool_calls": "yes"}, "parallel_tool_calls", "invalid_type"),
    "format unknown": ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    "format without schema": (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
        "invalid_value",
    ),
    "schema missing": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
        "missing_required_parameter",
    ),
    "schema of another type": (
        {"response_format": {"type": "json_object", "json_schema": {"schema": {}}}},
        "response_format.json_schema",
        "invalid_value",
    ),
    "two structures": ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice", "invalid_value"),
    "structure in two ways": (
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        "structured_outputs.regex",
        "invalid_value",
    ),
    "no choice": ({"guided_choice": []}, "guided_choice", "empty_array"),
    "structure unknown": ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", None),
    "audio": ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
    "reasoning": ({"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter"),
    "unknown": ({"top_banana": 1}, "top_banana", "unknown_parameter"),
    "unknown that looks like a branch": ({"<x>": 1}, "<x>", "unknown_parameter"),
    "messages missing": ({"messages": None}, "messages", "invalid_type"),
    "messages empty": ({"messages": []}, "messages", "empty_array"),
    "message not an object": ({"messages": ["hi"]}, "messages[0]", "invalid_type"),
    "content missing": ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    "content number": ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", "invalid_type"),
    "content no parts": ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "empty_array"),
    "image": (
        {"messages": [{"role": "user", "content": [TEXT_PART, IMAGE_PART]}]},
        "messages[0].content[1]",
        "unsupported_parameter",
    ),
    "role unknown": ({"messages": [{"role": "alien", "content": "x"}]}, "messages[0].role", "invalid_value"),
    "result without call": (
        {"messages": [*USER, {"role": "tool", "content": "x", "tool_call_id": "1"}]},
        "messages[1].tool_call_id",
        "invalid_value",
    ),
    "result without id": (
        {"messages": [{"role": "tool", "content": "x"}]},
        "messages[0].tool_call_id",
        "missing_required_parameter",
    ),
    "id of a user's": ({"messages": [{**USER[0], "tool_call_id": "1"}]}, "messages[0].tool_call_id", "invalid_value"),
    "content null": ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", None),
    "name": ({"messages": [{**USER[0], "name": "Ann"}]}, "messages[0].name", "unsupported_parameter"),
    "tool calls": ({"messages": [{**USER[0], "tool_calls": [called()]}]}, "messages[0].tool_calls", "invalid_value"),
    "arguments": (
        {"messages": [*USER, {"role": "assistant", "tool_calls": [called(arguments="[1]")]}]},
        "messages[1].tool_calls[0].function.arguments",
        "invalid_value",
    ),
    "message field": ({"messages": [{**USER[0], "mood": "x"}]}, "messages[0].mood", "unknown_parameter"),
    "model number": ({"model": 7}, "model", "invalid_type"),
    "embedding model": ({"model": "embed"}, "model", "unsupported_model"),
    "template's refusal": ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "invalid_value"),
    "context": ({"max_tokens": 1000}, "messages", "context_length_exceeded"),
}


@pytest.mark.parametrize(("fields", "param", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_chat_refuses_by_name(http, fields, param, code) -> None:
    response = chat(http, **fields)
    if code == "context_length_exceeded":
        assert response.json()["error"]["param"] == param
        assert response.json()["error"]["code"] == code
    else:
        assert_refused(response, param, code)


def test_a_refusal_shows_value_and_limit(http) -> None:
    message = chat(http, temperature=2.5).json()["error"]["message"]
    assert message == "'temperature' is 2.5: input should be less than or equal to 2"


def test_a_refusal_does_not_echo_long_values(http) -> None:
    assert len(chat(http, temperature="x" * 10_000).json()["error"]["message"]) < 200


WITHOUT_EFFECT = {
    "defaults spelled out": {
        "n": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logprobs": False,
        "top_logprobs": 0,
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
        "logit_bias": {},
        "top_k": -1,
        "min_p": 0,
        "repetition_penalty": 1,
        "min_tokens": 0,
        "stop_token_ids": [],
        "ignore_eos": False,
        "modalities": ["text"],
        "stop": [],
        "stream": False,
    },
    "nulls": dict.fromkeys(
        ["n", "tools", "tool_choice", "stop", "seed", "temperature", "top_p", "max_tokens", "stream_options", "user"]
    ),
    "bookkeeping": {
        "user": "ann",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "safety_identifier": "x",
        "prompt_cache_key": "y",
    },
    "both limits agree": {"max_tokens": 20, "max_completion_tokens": 20},
}


@pytest.mark.parametrize("fields", WITHOUT_EFFECT.values(), ids=WITHOUT_EFFECT.keys())
def test_what_has_no_effect_is_accepted(http, fields) -> None:
    response = chat(http, **fields)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"] == "hello"


def test_supported_parameters_reach_the_engine(http, engine) -> None:
    chat(http, max_tokens=9, temperature=0.5, top_p=0.9, seed=-1, stop=["x", "yz"])
    params = engine.params[-1]
    assert (params.max_tokens, params.temperature, params.top_p, params.stop) == (9, 0.5, 0.9, ("x", "yz"))
    assert params.seed == 2**63 - 1
    chat(http, stop="x")
    assert engine.params[-1].stop == ("x",)
    assert (engine.params[-1].max_tokens, engine.params[-1].temperature, engine.params[-1].seed) == (None, None, None)


def test_parameters_of_sampling_reach_the_engine(http, engine) -> None:
    biases = {"logit_bias": {"7": -100, "8": 2.5}, "stop_token_ids": [3, 4]}
    penalties = {"frequency_penalty": -0.5, "presence_penalty": 2, "repetition_penalty": 1.3}
    rest = {"top_k": 5, "min_p": 0.25, "min_tokens": 2, "ignore_eos": True}
    chat(http, **biases, **penalties, **rest, logprobs=True, top_logprobs=3)
    params = engine.params[-1]
    assert (dict(params.logit_bias), params.stop_token_ids) == ({7: -100, 8: 2.5}, (3, 4))
    assert {name: getattr(params, name) for name in (*penalties, *rest)} == penalties | rest
    assert params.logprobs == 3


def test_whose_turn_it_is_and_who_shares_a_cache_reach_the_engine(http, engine) -> None:
    chat(http, priority=-3, deadline=0.5, user="ann", cache_salt="secret")
    params = engine.params[-1]
    assert (params.priority, params.deadline_seconds) == (-3, 0.5)
    assert (params.client, params.cache_salt) == ("ann", "secret")
    chat(http)
    params = engine.params[-1]
    assert (params.priority, params.deadline_seconds, params.client, params.cache_salt) == (0, None, "", "")


def test_each_choice_has_a_seed_of_its_own_and_the_first_the_requests(http, engine) -> None:
    engine.params.clear()
    response = chat(http, n=3, seed=5).json()
    first = [params.seed for params in engine.params]
    chat(http, n=2, seed=5)
    assert len(set(first)) == 3
    assert first[0] == 5
    assert [params.seed for params in engine.params[3:]] == first[:2]
    assert [choice["index"] for choice in response["choices"]] == [0, 1, 2]
    assert (response["usage"]["prompt_tokens"], response["usage"]["completion_tokens"]) == (5, 15)


def test_tools_reach_the_engine(http, engine) -> None:
    weather = tool("weather", description="Tells", parameters={"type": "object"}, strict=True)
    chat(http, tools=[TOOL, weather])
    tools = (Tool("f"), Tool("weather", "Tells", {"type": "object"}, is_strict=True))
    assert engine.params[-1].tools == ToolUse(tools)
    chat(http, tools=[TOOL, weather], tool_choice="required", parallel_tool_calls=False)
    assert engine.params[-1].tools == ToolUse(tools, "required", is_parallel=False)
    chat(http, tools=[TOOL, weather], tool_choice={"type": "function", "function": {"name": "f"}})
    assert engine.params[-1].tools == ToolUse(tools, "required", "f")
    chat(http, tools=[TOOL], tool_choice="none")
    assert engine.params[-1].tools is None


def test_calls_and_results_may_be_sent_back(http) -> None:
    asked = {"role": "assistant", "content": None, "tool_calls": [called("a"), called("b")], "annotations": []}
    results = [{"role": "tool", "tool_call_id": one, "content": [{"type": "text", "text": one}]} for one in "ba"]
    response = chat(http, messages=[*USER, asked, *results], tools=[TOOL])
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"] == "a"


def test_text_parts_are_joined_and_developer_is_system(http) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [TEXT_PART, {"type": "text", "text": " there"}]},
    ]
    assert chat(http, messages=messages).json()["choices"][0]["message"]["content"] == "hello there"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": "x", "echo": True}, "echo"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({"prompt": "x", "logprobs": True}, "logprobs"),
        ({"prompt": "x", "best_of": 2}, "best_of"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "messages": []}, "messages"),
        ({"prompt": "x", "model": "embed"}, "model"),
        ({}, "prompt"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else value,
)
def test_completions_refuse_by_name(http, fields, param) -> None:
    assert_refused(http.post("/v1/completions", json={"model": "chat", **fields}), param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[1], ["a"]]}, "input[1][0]"),
        ({"input": "x", "dimensions": 64}, "dimensions"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "x", "model": "chat"}, "model"),
        ({"input": "x", "truncate": True}, "truncate"),
        ({}, "input"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else value,
)
def test_embeddings_refuse_by_name(http, fields, param) -> None:
    assert_refused(http.post("/v1/embeddings", json={"model": "embed", **fields}), param)


def test_an_input_that_is_too_long_is_named(http) -> None:
    error = http.post("/v1/embeddings", json={"model": "embed", "input": "x" * 500}).json()["error"]
    assert (error["param"], error["code"]) == ("input", "context_length_exceeded")


def test_a_missing_model_is_named(http) -> None:
    assert_refused(http.post("/v1/chat/completions", json={"messages": USER}), "model", "missing_required_parameter")


@pytest.mark.parametrize(
    ("content", "headers", "code"),
    [
        (b"{", {"content-type": "application/json"}, "invalid_json"),
        (b"", {"content-type": "application/json"}, "invalid_body"),
        (b"[]", {"content-type": "application/json"}, "invalid_body"),
        (b"null", {"content-type": "application/json"}, "invalid_body"),
        (b"\xff\xfe\x00", {"content-type": "application/json"}, None),
        (b"[" * 50_000, {"content-type": "application/json"}, None),
        (b'{"model": "chat"}', {"content-type": "text/plain"}, "invalid_body"),
    ],
    ids=["cut off", "empty", "a list", "null", "not text", "very deep", "not sent as JSON"],
)
def test_a_body_that_is_no_json_object_is_refused(http, content, headers, code) -> None:
    assert_refused(http.post("/v1/chat/completions", content=content, headers=headers), None, code)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (r'{"model": "chat", "messages": [{"role": "user", "content": "\ud800"}]}', "messages[0].content"),
        (r'{"model": "\ud800", "messages": [{"role": "user", "content": "x"}]}', "model"),
        (r'{"model": "chat", "messages": [{"role": "user", "content": "x"}], "\ud800": 1}', "\ud800"),
        (r'{"model": "chat", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "temperature"),
        (r'{"model": "chat", "messages": [{"role": "user", "content": "x"}], "top_p": Infinity}', "top_p"),
    ],
    ids=["content", "model", "key", "nan", "infinity"],
)
def test_text_without_utf8_and_numbers_without_value_are_refused(http, body, param) -> None:
    headers = {"content-type": "application/json"}
    response = http.post("/v1/chat/completions", content=body.encode(), headers=headers)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] in (param, None)
