"""What chat and text completions share, and what a text completion has of its own."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from ...request import MAX_LOGPROBS, SamplingParams
from .fields import (
    INT32_MAX,
    INT64_MAX,
    NonEmptyText,
    Prompts,
    Strict,
    Text,
    TokenCount,
    TokenId,
    as_list,
    only,
    text_or_list_kind,
)
from .structure import Structured

__all__ = ["CompletionRequest", "GenerationRequest"]

_COMPLETION_MAX_TOKENS = 16  # OpenAI's default for text completions
_MAX_STOPS = 4
_MAX_STOP_TOKENS = 64
_MAX_CHOICES = 128


def _by_token(biases: dict[str, float]) -> dict[str, float]:
    """Accepts tokens as keys, which JSON has only as texts."""
    if not all(key.isascii() and key.isdecimal() and int(key) <= INT32_MAX for key in biases):
        raise PydanticCustomError("logit_bias", "Must have tokens as keys, e.g. '42'")
    return biases


LogitBias = Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], AfterValidator(_by_token)]


class StreamOptions(Strict):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, only(False)] = None


StopSequences = Annotated[
    Annotated[NonEmptyText, Tag("<string>")]
    | Annotated[list[NonEmptyText], Tag("<list>"), Field(max_length=_MAX_STOPS)]
    | Annotated[None, Tag("<null>")],
    Discriminator(
        text_or_list_kind, custom_error_type="stop_type", custom_error_message="Must be a string or a list of strings"
    ),
]


class GenerationRequest(Structured):
    """What chat and text completions share."""

    model: NonEmptyText
    max_tokens: TokenCount | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-INT64_MAX - 1, le=INT64_MAX)] | None = None
    stop: StopSequences = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    n: Annotated[int, Field(ge=1, le=_MAX_CHOICES)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: LogitBias | None = None

    # Of vLLM's.
    top_k: Annotated[int, Field(ge=-1, le=INT32_MAX)] | None = None  # 0 and -1: all
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=_MAX_STOP_TOKENS)] | None = None
    ignore_eos: bool | None = None
    priority: Annotated[int, Field(ge=-INT32_MAX - 1, le=INT32_MAX)] | None = None  # a lower number goes first
    deadline: Annotated[float, Field(gt=0, le=INT32_MAX)] | None = None  # seconds, until the first token is wanted
    cache_salt: NonEmptyText | None = None  # only requests with the same one share what is cached

    user: Text | None = None  # gets the same share as others do; without effect on the answer

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
        seed = None if self.seed is None else self.seed & INT64_MAX  # generators take no negative seed
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
            priority=self.priority or 0,
            deadline_seconds=self.deadline,
            client=self.user or "",
            cache_salt=self.cache_salt or "",
            logprobs=logprobs,
            structure=self.structure(),
        )


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    prompt: Prompts
    echo: Annotated[bool | None, only(False)] = None
    best_of: Annotated[int | None, only(1)] = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None  # as many likeliest tokens
    suffix: Annotated[Text | None, only("")] = None

    def prompts(self) -> list[str | list[int]]:
        """Returns each prompt, as text or as tokens."""
        return as_list(self.prompt)

    def sampling(self) -> SamplingParams:
        """Returns how each answer is to be drawn; without a limit it is short, as OpenAI has it."""
        return self._sampling(self.max_tokens or _COMPLETION_MAX_TOKENS, self.logprobs)
