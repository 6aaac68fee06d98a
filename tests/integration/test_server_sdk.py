"""The server as the `openai` SDK sees it."""

import base64

import numpy as np
import openai
import pytest


def ask(sdk: openai.OpenAI, text: str, **options):
    return sdk.chat.completions.create(model="chat", messages=[{"role": "user", "content": text}], **options)


def test_a_chat_answer_has_all_the_schema_asks_for(sdk) -> None:
    answer = ask(sdk, "hello")
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == "chat"
    assert answer.system_fingerprint.startswith("fp_")
    choice = answer.choices[0]
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert choice.message.to_dict() == {
        "role": "assistant",
        "content": "hello",
        "refusal": None,
        "annotations": [],
    }


def test_usage_has_tokens_and_times(sdk) -> None:
    usage = ask(sdk, "hello").usage.to_dict()
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (5, 5, 10)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    assert usage["time_to_first_token"] == 0.1
    assert usage["total_latency"] == 0.5
    assert usage["completion_tokens_per_sec"] == 10
    assert usage["completion_tokens_after_first_per_sec"] == pytest.approx(10)
    assert (usage["queue_ms"], usage["switch_ms"]) == (20, 10)


def test_a_streamed_answer_concatenates_to_the_unstreamed_one(sdk) -> None:
    text = "naïve 🙂 text\nwith lines"
    chunks = list(ask(sdk, text, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert ask(sdk, text).choices[0].message.content == text
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all("usage" not in chunk.to_dict() for chunk in chunks)


def test_a_stream_ends_with_usage_when_asked(sdk) -> None:
    chunks = list(ask(sdk, "hello", stream=True, stream_options={"include_usage": True}))
    assert all(chunk.to_dict()["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 10


def test_an_answer_cut_short_says_length(sdk) -> None:
    answer = ask(sdk, "hello", max_completion_tokens=2)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("he", "length")


def test_an_answer_can_be_sent_back_as_it_came(sdk) -> None:
    message = ask(sdk, "hello").choices[0].message
    history = [{"role": "user", "content": "hello"}, message, {"role": "user", "content": "more"}]
    answer = sdk.chat.completions.create(model="chat", messages=history)
    assert answer.choices[0].message.content == "more"


def test_an_alias_answers_as_its_model(sdk) -> None:
    answer = sdk.chat.completions.create(model="assistant", messages=[{"role": "user", "content": "hello"}])
    assert answer.model == "chat"


def test_several_prompts_give_several_choices(sdk) -> None:
    answer = sdk.completions.create(model="chat", prompt=["one", "three"], max_tokens=4)
    assert [(choice.index, choice.text, choice.finish_reason) for choice in answer.choices] == [
        (0, "one", "stop"),
        (1, "thre", "length"),
    ]
    assert answer.usage.prompt_tokens == 8


def test_several_prompts_stream_together(sdk) -> None:
    texts, reasons = {0: "", 1: ""}, {}
    for chunk in sdk.completions.create(model="chat", prompt=["one", "three"], stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.text
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    assert texts == {0: "one", 1: "three"}
    assert reasons == {0: "stop", 1: "stop"}


@pytest.mark.parametrize(
    "prompt", ["one", ["one"], [111, 110, 101], [[111, 110, 101]]], ids=["text", "texts", "tokens", "token lists"]
)
def test_a_prompt_takes_any_of_its_forms(sdk, prompt) -> None:
    answer = sdk.completions.create(model="chat", prompt=prompt)
    assert answer.choices[0].text == "one"
    assert answer.object == "text_completion"


def test_text_completions_are_short_unless_asked(sdk) -> None:
    assert len(sdk.completions.create(model="chat", prompt="x" * 50).choices[0].text) == 16


@pytest.mark.parametrize(
    ("given", "rows"),
    [("abc", [(3, 97)]), (["abc", "d"], [(3, 97), (1, 100)]), ([7, 8], [(2, 7)]), ([[7, 8], [9]], [(2, 7), (1, 9)])],
    ids=["text", "texts", "tokens", "token lists"],
)
def test_embeddings_take_any_form_of_input(sdk, given, rows) -> None:
    answer = sdk.embeddings.create(model="embed", input=given, encoding_format="float")
    assert [item.embedding[:2] for item in answer.data] == [list(row) for row in rows]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens == sum(row[0] for row in rows)


def test_base64_embeddings_hold_the_same_numbers(sdk, http) -> None:
    body = {"model": "embed", "input": "abc", "encoding_format": "base64"}
    raw = http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    vector = np.frombuffer(base64.b64decode(raw), "<f4")
    assert vector.tolist() == np.array([3, 97, 1 / 3], np.float32).tolist()
    # The SDK asks for base64 unless told otherwise, and decodes it.
    assert sdk.embeddings.create(model="embed", input="abc").data[0].embedding == pytest.approx(vector.tolist())


def test_models_say_where_they_are_and_what_they_take(sdk) -> None:
    chat, embed, *_ = (model.to_dict() for model in sdk.models.list())
    assert (chat["id"], chat["object"], chat["residency"], chat["aliases"]) == (
        "chat",
        "model",
        "hot",
        ["assistant", "org/assistant"],
    )
    assert chat["bytes"] == {"weights": 1000, "kv": 200, "workspace": 30}
    assert (chat["context_length"], chat["max_completion_tokens"], chat["pin"]) == (400, 399, None)
    assert embed["capabilities"] == ["embedding"]
    assert sdk.models.retrieve("org/assistant").id == "chat"


def test_an_unknown_model_is_not_found(sdk) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-x'") as caught:
        sdk.models.retrieve("gpt-x")
    assert caught.value.code == "model_not_found"


def test_an_error_within_a_stream_is_raised_by_the_sdk(sdk) -> None:
    stream = ask(sdk, "overflows", stream=True)
    with pytest.raises(openai.APIError, match="the context is full") as caught:
        list(stream)
    assert caught.value.code == "context_length_exceeded"


def test_a_full_queue_is_a_rate_limit_with_a_time_to_retry(sdk) -> None:
    with pytest.raises(openai.RateLimitError, match="the queue holds 8 requests") as caught:
        ask(sdk, "full", stream=True)
    assert caught.value.response.headers["retry-after"] == "1"
