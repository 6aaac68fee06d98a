"""What goes into the runtime and what comes out of it, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float

__all__ = [
    "MAX_LOGPROBS",
    "ClassifyResult",
    "Completion",
    "EmbedResult",
    "Energy",
    "FinishReason",
    "Health",
    "JoulesSource",
    "LastMove",
    "ModelStatus",
    "Piece",
    "Residency",
    "RouteStatus",
    "SamplingParams",
    "Structure",
    "TokenLogprobs",
    "TokenScore",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolUse",
    "Usage",
]

MAX_LOGPROBS = 20  # of the likeliest tokens in the place of each, as OpenAI has it

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls"]
JoulesSource: TypeAlias = Literal["measured", "modelled"]
Health: TypeAlias = Literal["unchecked", "healthy", "unhealthy"]
Residency: TypeAlias = Literal["hot", "warm", "cold"]


@dataclass(frozen=True)
class Structure:
    """What an answer must look like, whatever the model would say."""

    kind: Literal["json", "regex", "choice", "grammar"]
    source: str  # a JSON schema, an expression, a JSON list of texts, or a grammar in Lark's or GBNF's notation
    param: str = "structure"  # the parameter that it came with, to be named if it is wrong


@dataclass(frozen=True)
class Tool:
    """A function that a model may call."""

    name: str  # of letters, digits, "_" and "-"
    description: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict[str, object])  # JSON schema of an object; {}: none
    is_strict: bool = False  # refuse a schema of which not all can be enforced, rather than enforce what can be

    def to_json(self) -> dict[str, object]:
        """Returns the tool as OpenAI, and so chat templates, have it."""
        parameters = dict(self.parameters) or {"type": "object", "properties": {}}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolUse:
    """The tools of a request, and what the model is to do with them."""

    tools: tuple[Tool, ...]  # at least one; names differ
    choice: Literal["auto", "required"] = "auto"  # required: the answer is calls and nothing else
    only: str | None = None  # name of the one tool that is to be called, once
    is_parallel: bool = True  # whether an answer may have several calls


@dataclass(frozen=True)
class ToolCall:
    """A call that a model asks for."""

    id: str
    name: str
    arguments: str  # a JSON object that fits the tool's parameters; incomplete only if the answer was cut off


@dataclass(frozen=True)
class ToolCallDelta:
    """A piece of a call: first its id and name, then its arguments."""

    index: int  # of the call in its answer
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True)
class SamplingParams:
    """How an answer is drawn from a model, and when. None means the model's own default."""

    max_tokens: int | None = None  # None: until the context is full
    temperature: float | None = None  # 0 is greedy
    top_p: float | None = None
    seed: int | None = None  # None: drawn at random
    stop: tuple[str, ...] = ()  # the answer ends before the first of these
    top_k: int = 0  # draw from so many most likely tokens; 0: all
    min_p: float = 0.0  # draw from tokens with at least this share of the most likely one's probability
    frequency_penalty: float = 0.0  # taken from a token's logit for each time that it is in the answer
    presence_penalty: float = 0.0  # taken once from the logit of a token that is in the answer
    repetition_penalty: float = (
        1.0  # divides the positive logits of tokens in prompt or answer, multiplies negative ones
    )
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])  # added to the logits of tokens
    min_tokens: int = 0  # neither an end nor a stop string comes before so many
    stop_token_ids: tuple[int, ...] = ()  # tokens that end the answer beside the model's own
    ignore_eos: bool = False  # go on after the model's own ends
    logprobs: int | None = None  # 0: logarithms of the drawn tokens' probabilities; k: of the k likeliest as well
    structure: Structure | None = None  # what the answer must look like; it ends when it is complete
    tools: ToolUse | None = None  # a conversation's prompt describes them; the answer may be calls
    priority: int = 0  # class; a lower number goes first
    deadline_seconds: float | None = None  # when the first token is wanted; ends the patience of a request in time
    client: str = ""  # whose the request is: clients of a class get the same share
    cache_salt: str = ""  # what is cached of the prompt and the answer is shared with requests of the same salt only


@dataclass(frozen=True)
class TokenScore:
    """A token and how likely the model itself finds it."""

    token_id: int
    data: bytes  # its text, maybe a part of a character only
    logprob: float  # natural logarithm of its probability, before penalties, temperature and the like


@dataclass(frozen=True)
class TokenLogprobs:
    """A token of an answer, and the likeliest ones in its place."""

    drawn: TokenScore
    likeliest: tuple[TokenScore, ...]  # best first; as many as were asked for


@dataclass(frozen=True)
class Energy:
    """What the steps that computed for a request have taken: its share of them."""

    joules: float
    source: JoulesSource


@dataclass(frozen=True)
class Usage:
    """What an answer cost. Times count from the moment the request was submitted."""

    prompt_tokens: int
    completion_tokens: int
    queue_seconds: float  # until the first step that computed for it
    switch_seconds: float  # of that, waiting for its model to be made hot
    time_to_first_token_seconds: float
    total_seconds: float
    cached_tokens: int = 0  # of the prompt, that were in the KV cache
    accepted_tokens: int = 0  # of the answer, that a draft model proposed
    rejected_tokens: int = 0  # that it proposed too, and that did not come into the answer
    energy: Energy | None = None  # None: nothing is known of power

    @property
    def joules_per_token(self) -> float | None:
        """Joules over the tokens of prompt and answer together."""
        num_tokens = self.prompt_tokens + self.completion_tokens
        return None if self.energy is None or not num_tokens else self.energy.joules / num_tokens


@dataclass(frozen=True)
class Piece:
    """A piece of an answer; the last one has a finish reason and the usage, and may have no text."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()  # of each token, where they were asked for
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True)
class Completion:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprobs, ...] = ()  # of each token, where they were asked for
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class EmbedResult:
    """The vectors of a list of texts, in their order."""

    vectors: Float[np.ndarray, "texts size"]  # f32
    usage: Usage


@dataclass(frozen=True)
class ClassifyResult:
    """What a classifier says of a list of texts or pairs, in their order."""

    labels: tuple[str, ...]
    probabilities: Float[np.ndarray, "inputs labels"]  # f32; a row sums to 1 unless there is one label or many may hold
    usage: Usage


@dataclass(frozen=True)
class RouteStatus:
    """A name for models that can stand for each other."""

    name: str
    models: tuple[str, ...]  # the preferred one first
    policy: str
    capabilities: tuple[str, ...]  # that all of them have
    residency: Residency  # of the one that is closest
    context_length: int  # that all of them take
    max_completion_tokens: int


@dataclass(frozen=True)
class LastMove:
    """The last transfer that brought a model to another tier."""

    source: str
    destination: str
    num_bytes: int
    seconds: float
    ended_at: float  # seconds since the epoch


@dataclass(frozen=True)
class ModelStatus:
    """What a model of the running bundle is and where it is."""

    name: str
    aliases: tuple[str, ...]
    capabilities: tuple[str, ...]
    residency: Residency
    pin: str | None
    context_length: int
    max_completion_tokens: int
    weights_bytes: int
    kv_bytes: int
    workspace_bytes: int
    health: Health = "unchecked"  # what its canary has shown
    tier_bytes: Mapping[str, int] = field(default_factory=dict[str, int])  # that it has in each tier that it is in
    num_running: int = 0  # requests
    num_waiting: int = 0  # likewise
    last_move: LastMove | None = None
