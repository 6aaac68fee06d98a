"""What clients may ask, field by field: what is not described here is refused by name.

A field that the runtime has no part for yet is declared with `_only`: it takes the values that mean "don't", so that
clients which spell out defaults work, and refuses the others. Types are strict: no "1" for 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from ...errors import InvalidRequestError
from ..request import MAX_LOGPROBS, SamplingParams, Structure

__all__ = ["ChatRequest", "ClassifyRequest", "CompletionRequest", "EmbeddingRequest", "RerankRequest", "ScoreRequest"]

_COMPLETION_MAX_TOKENS = 16  # OpenAI's default for text completions
_MAX_STOPS = 4
_MAX_STOP_TOKENS = 64
_MAX_CHOICES = 128
_MAX_PROMPTS = 128
_MAX_INPUTS = 2048
_INT32_MAX = 2**31 - 1
_INT64_MAX = 2**63 - 1


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("string_unicode", "Text must be Unicode, without lone surrogates") from None
    return text


def _only(*accepted: JsonValue) -> AfterValidator:
    """Accepts null and the given values."""

    def check(value: JsonValue) -> JsonValue:
        if value is None or value in accepted:
            return value
        values = " or ".join(repr(one) for one in accepted)
        remedy = f"leave it out, or send {values}" if accepted else "leave it out"
        raise PydanticCustomError("unsupported_parameter", "Not supported by this server; {remedy}", {"remedy": remedy})

    return AfterValidator(check)


def _by_token(biases: dict[str, float]) -> dict[str, float]:
    """Accepts tokens as keys, which JSON has only as texts."""
    if not all(key.isascii() and key.isdecimal() and int(key) <= _INT32_MAX for key in biases):
        raise PydanticCustomError("logit_bias", "Must have tokens as keys, e.g. '42'")
    return biases


Text = Annotated[str, AfterValidator(_encodable)]
NonEmptyText = Annotated[str, Field(min_length=1), AfterValidator(_encodable)]
TokenId = Annotated[int, Field(ge=0, le=_INT32_MAX)]
TokenCount = Annotated[int, Field(ge=1, le=_INT32_MAX)]
LogitBias = Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], AfterValidator(_by_token)]
Unsupported = Annotated[JsonValue, _only()]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(_Strict):
    """A piece of a message's text."""

    type: Literal["text"]
    text: Text


def _part_kind(part: JsonValue) -> str | None:
    return "<text>" if isinstance(part, dict) and part.get("type") == "text" else None


ContentPart = Annotated[
    Annotated[TextPart, Tag("<text>")],
    Discriminator(
        _part_kind,
        custom_error_type="unsupported_parameter",
        custom_error_message="Only parts of type 'text' are supported, no images, audio or files",
    ),
]


def _content_kind(content: JsonValue) -> str | None:
    return {str: "<string>", list: "<parts>"}.get(type(content))


MessageContent = Annotated[
    Annotated[Text, Tag("<string>")] | Annotated[list[ContentPart], Tag("<parts>"), Field(min_length=1)],
    Discriminator(
        _content_kind,
        custom_error_type="content_type",
        custom_error_message="Must be a string or a list of text parts",
    ),
]


class Message(_Strict):
    """One message of a conversation; what an answer of ours carries may be sent back as it came."""

    role: Annotated[str, Field(json_schema_extra={"enum": ["system", "developer", "user", "assistant"]})]
    content: MessageContent
    name: Annotated[Text | None, _only()] = None
    refusal: Annotated[Text | None, _only()] = None
    annotations: Annotated[list[JsonValue] | None, _only([])] = None
    audio: Unsupported = None
    tool_calls: Annotated[list[JsonValue] | None, _only([])] = None
    function_call: Unsupported = None

    @field_validator("role")
    @classmethod
    def _known_role(cls, role: str) -> str:
        if role in ("tool", "function"):
            raise PydanticCustomError("unsupported_parameter", "Tool calling is not supported by this server")
        if role not in ("system", "developer", "user", "assistant"):
            raise PydanticCustomError("enum", "Must be 'system', 'developer', 'user' or 'assistant'")
        return role

    def as_template_input(self) -> dict[str, str]:
        """Returns what chat templates take: a role they know and one string."""
        role = "system" if self.role == "developer" else self.role
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": role, "content": content}


class StreamOptions(_Strict):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, _only(False)] = None


Choices = Annotated[list[NonEmptyText], Field(min_length=1, max_length=_MAX_INPUTS)]


def _stop_kind(stop: JsonValue) -> str | None:
    return {str: "<string>", list: "<list>", type(None): "<null>"}.get(type(stop))


StopSequences = Annotated[
    Annotated[NonEmptyText, Tag("<string>")]
    | Annotated[list[NonEmptyText], Tag("<list>"), Field(max_length=_MAX_STOPS)]
    | Annotated[None, Tag("<null>")],
    Discriminator(
        _stop_kind, custom_error_type="stop_type", custom_error_message="Must be a string or a list of strings"
    ),
]


class JsonSchema(_Strict):
    """A schema that an answer must fit; it must whether or not the client calls it strict."""

    name: Text | None = None
    description: Text | None = None
    strict: bool | None = None
    of_answer: Annotated[dict[str, JsonValue], Field(alias="schema")]


class ResponseFormat(_Strict):
    """What an answer must look like, as OpenAI has it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(default=None, validate_default=True)

    @field_validator("json_schema")
    @classmethod
    def _goes_with_type(cls, schema: JsonSchema | None, info: ValidationInfo) -> JsonSchema | None:
        if (schema is not None) != (info.data.get("type") == "json_schema"):
            raise PydanticCustomError("json_schema", "Must be there if and only if type is 'json_schema'")
        return schema


class StructuredOutputs(_Strict):
    """What an answer must look like, as vLLM has it."""

    schema_of_answer: Annotated[dict[str, JsonValue] | str | None, Field(alias="json")] = None
    regex: NonEmptyText | None = None
    choice: Choices | None = None
    grammar: NonEmptyText | None = None


class _GenerationRequest(_Strict):
    """What chat and text completions share."""

    model: NonEmptyText
    max_tokens: TokenCount | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-_INT64_MAX - 1, le=_INT64_MAX)] | None = None
    stop: StopSequences = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    n: Annotated[int, Field(ge=1, le=_MAX_CHOICES)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: LogitBias | None = None

    # Of vLLM's.
    top_k: Annotated[int, Field(ge=-1, le=_INT32_MAX)] | None = None  # 0 and -1: all
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=_INT32_MAX)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=_MAX_STOP_TOKENS)] | None = None
    ignore_eos: bool | None = None

    # What the answer must look like; one of them.
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, JsonValue] | str | None = None
    guided_regex: NonEmptyText | None = None
    guided_choice: Choices | None = None
    guided_grammar: NonEmptyText | None = None

    user: Text | None = None  # without effect on the answer

    @field_validator("stream_options")
    @classmethod
    def _only_of_streams(cls, options: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if options is not None and not info.data.get("stream"):
            raise PydanticCustomError("stream_options", "Only taken together with stream: true")
        return options

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with what it cost."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def num_choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    def _sampling(self, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        seed = None if self.seed is None else self.seed & _INT64_MAX  # generators take no negative seed
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=seed,
            stop=stop,
            top_k=max(0, self.top_k or 0),
            min_p=self.min_p or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            min_tokens=self.min_tokens or 0,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            logprobs=logprobs,
            structure=self._structure(),
        )

    def _structure(self) -> Structure | None:
        """Returns what the answer must look like.

        Raises:
            InvalidRequestError: if it is said more than once.
        """
        found = list(self._structures())
        if len(found) > 1:
            raise InvalidRequestError(
                f"'{found[1].param}' says what the answer must look like, and so does '{found[0].param}'; send one",
                param=found[1].param,
            )
        return found[0] if found else None

    def _structures(self) -> Iterator[Structure]:
        wanted = self.response_format
        if wanted is not None and wanted.type != "text":
            schema = {"type": "object"} if wanted.json_schema is None else wanted.json_schema.of_answer
            yield Structure("json", json.dumps(schema), "response_format")
        named = self.structured_outputs or StructuredOutputs()
        for prefix, schema, regex, choice, grammar in (
            ("structured_outputs.", named.schema_of_answer, named.regex, named.choice, named.grammar),
            ("guided_", self.guided_json, self.guided_regex, self.guided_choice, self.guided_grammar),
        ):
            if schema is not None:
                yield Structure("json", schema if isinstance(schema, str) else json.dumps(schema), f"{prefix}json")
            if regex is not None:
                yield Structure("regex", regex, f"{prefix}regex")
            if choice is not None:
                yield Structure("choice", json.dumps(choice), f"{prefix}choice")
            if grammar is not None:
                yield Structure("grammar", grammar, f"{prefix}grammar")


class ChatRequest(_GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: TokenCount | None = None

    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Annotated[list[JsonValue] | None, _only([])] = None
    tool_choice: Annotated[JsonValue, _only("none", "auto")] = None
    parallel_tool_calls: bool | None = None  # without effect as there are no tools
    functions: Annotated[list[JsonValue] | None, _only([])] = None
    function_call: Annotated[JsonValue, _only("none", "auto")] = None
    modalities: Annotated[list[JsonValue] | None, _only(["text"])] = None
    audio: Unsupported = None
    prediction: Unsupported = None
    reasoning_effort: Annotated[JsonValue, _only("none")] = None
    verbosity: Annotated[JsonValue, _only("medium")] = None
    web_search_options: Unsupported = None

    # Without effect on the answer.
    metadata: dict[str, Text] | None = None
    store: bool | None = None
    service_tier: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None

    @field_validator("max_completion_tokens")
    @classmethod
    def _agrees_with_max_tokens(cls, limit: int | None, info: ValidationInfo) -> int | None:
        older = info.data.get("max_tokens")
        if limit is not None and older is not None and limit != older:
            raise PydanticCustomError("max_tokens", "Contradicts max_tokens, its older name; send one of them")
        return limit

    @field_validator("top_logprobs")
    @classmethod
    def _only_with_logprobs(cls, count: int | None, info: ValidationInfo) -> int | None:
        if count and not info.data.get("logprobs"):
            raise PydanticCustomError("top_logprobs", "Only taken together with logprobs: true")
        return count

    def conversation(self) -> list[Mapping[str, str]]:
        """Returns the messages as chat templates take them."""
        return [message.as_template_input() for message in self.messages]

    def sampling(self) -> SamplingParams:
        """Returns how the answer is to be drawn; without a limit it may fill the context."""
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self._sampling(self.max_completion_tokens or self.max_tokens, logprobs)


def _prompt_kind(prompt: JsonValue) -> str | None:
    if not isinstance(prompt, list):
        return "<string>" if isinstance(prompt, str) else None
    first = prompt[0] if prompt else None
    return {list: "<token lists>", int: "<tokens>"}.get(type(first), "<strings>")


_PROMPT_KINDS = Discriminator(
    _prompt_kind,
    custom_error_type="prompt_type",
    custom_error_message="Must be a string, a list of strings, a list of tokens or a list of lists of tokens",
)
Tokens = Annotated[list[TokenId], Field(min_length=1)]
Prompts = Annotated[
    Annotated[NonEmptyText, Tag("<string>")]
    | Annotated[Tokens, Tag("<tokens>")]
    | Annotated[list[NonEmptyText], Tag("<strings>"), Field(min_length=1, max_length=_MAX_PROMPTS)]
    | Annotated[list[Tokens], Tag("<token lists>"), Field(min_length=1, max_length=_MAX_PROMPTS)],
    _PROMPT_KINDS,
]
Inputs = Annotated[
    Annotated[NonEmptyText, Tag("<string>")]
    | Annotated[Tokens, Tag("<tokens>")]
    | Annotated[list[NonEmptyText], Tag("<strings>"), Field(min_length=1, max_length=_MAX_INPUTS)]
    | Annotated[list[Tokens], Tag("<token lists>"), Field(min_length=1, max_length=_MAX_INPUTS)],
    _PROMPT_KINDS,
]


def _as_list(prompts: str | list[int] | list[str] | list[list[int]]) -> list[str | list[int]]:
    if isinstance(prompts, str):
        return [prompts]
    texts_or_lists = [prompt for prompt in prompts if not isinstance(prompt, int)]
    return list(texts_or_lists) or [[token for token in prompts if isinstance(token, int)]]


class CompletionRequest(_GenerationRequest):
    """Body of POST /v1/completions."""

    prompt: Prompts
    echo: Annotated[bool | None, _only(False)] = None
    best_of: Annotated[int | None, _only(1)] = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None  # as many likeliest tokens
    suffix: Annotated[Text | None, _only("")] = None

    def prompts(self) -> list[str | list[int]]:
        """Returns each prompt, as text or as tokens."""
        return _as_list(self.prompt)

    def sampling(self) -> SamplingParams:
        """Returns how each answer is to be drawn; without a limit it is short, as OpenAI has it."""
        return self._sampling(self.max_tokens or _COMPLETION_MAX_TOKENS, self.logprobs)


class EmbeddingRequest(_Strict):
    """Body of POST /v1/embeddings."""

    model: NonEmptyText
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int | None, _only()] = None
    user: Text | None = None  # without effect on the answer

    def inputs(self) -> list[str | list[int]]:
        """Returns each input, as text or as tokens."""
        return _as_list(self.input)


class ClassifyRequest(_Strict):
    """Body of POST /v1/classify."""

    model: NonEmptyText
    input: Inputs
    user: Text | None = None  # without effect on the answer

    def inputs(self) -> list[str | list[int]]:
        """Returns each input, as text or as tokens."""
        return _as_list(self.input)


class TextDocument(_Strict):
    """A document of a rerank request as an object."""

    text: NonEmptyText


def _document_kind(document: JsonValue) -> str | None:
    return {str: "<string>", dict: "<object>"}.get(type(document))


Document = Annotated[
    Annotated[NonEmptyText, Tag("<string>")] | Annotated[TextDocument, Tag("<object>")],
    Discriminator(
        _document_kind, custom_error_type="document_type", custom_error_message="Must be a string or {'text': string}"
    ),
]


class RerankRequest(_Strict):
    """Body of POST /v1/rerank, as Cohere, Jina and vLLM have it."""

    model: NonEmptyText
    query: NonEmptyText
    documents: Annotated[list[Document], Field(min_length=1, max_length=_MAX_INPUTS)]
    top_n: TokenCount | None = None
    return_documents: bool | None = None
    user: Text | None = None  # without effect on the answer

    def texts(self) -> list[str]:
        """Returns each document's text."""
        return [document if isinstance(document, str) else document.text for document in self.documents]


TextOrTexts = Annotated[
    Annotated[NonEmptyText, Tag("<string>")]
    | Annotated[list[NonEmptyText], Tag("<list>"), Field(min_length=1, max_length=_MAX_INPUTS)],
    Discriminator(
        _stop_kind, custom_error_type="text_type", custom_error_message="Must be a string or a list of strings"
    ),
]


class ScoreRequest(_Strict):
    """Body of POST /v1/score, as vLLM has it: one text against one or several, or pairs from two lists."""

    model: NonEmptyText
    text_1: TextOrTexts
    text_2: TextOrTexts
    user: Text | None = None  # without effect on the answer

    @field_validator("text_2")
    @classmethod
    def _makes_pairs(cls, second: str | list[str], info: ValidationInfo) -> str | list[str]:
        first = info.data.get("text_1")
        if isinstance(first, list) and len(first) != (1 if isinstance(second, str) else len(second)):
            raise PydanticCustomError("text_pairs", "Must have as many texts as text_1, or text_1 be one string")
        return second

    def pairs(self) -> list[tuple[str, str]]:
        """Returns the pairs to be scored."""
        second = [self.text_2] if isinstance(self.text_2, str) else self.text_2
        first = [self.text_1] * len(second) if isinstance(self.text_1, str) else self.text_1
        return list(zip(first, second, strict=True))
