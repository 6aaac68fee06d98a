"""Body of POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

from pydantic import Field, JsonValue, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from ...request import MAX_LOGPROBS, SamplingParams
from .fields import Text, TokenCount, Unsupported, only
from .generation import GenerationRequest
from .messages import Message, check_results
from .tools import ToolChoice, Tools, tool_use

__all__ = ["ChatRequest"]


class ChatRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: TokenCount | None = None

    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[JsonValue] | None, only([])] = None
    function_call: Annotated[JsonValue, only("none", "auto")] = None
    modalities: Annotated[list[JsonValue] | None, only(["text"])] = None
    audio: Unsupported = None
    prediction: Unsupported = None
    reasoning_effort: Annotated[JsonValue, only("none")] = None
    verbosity: Annotated[JsonValue, only("medium")] = None
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

    def conversation(self) -> list[Mapping[str, object]]:
        """Returns the messages as chat templates take them.

        Raises:
            InvalidRequestError: if a tool's result is of no call.
        """
        check_results(self.messages)
        return [message.as_template_input() for message in self.messages]

    def sampling(self) -> SamplingParams:
        """Returns how the answer is to be drawn; without a limit it may fill the context.

        Raises:
            InvalidRequestError: if what it says of structure or tools does not go together.
        """
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        tools = tool_use(self.tools or [], self.tool_choice, is_parallel=self.parallel_tool_calls is not False)
        return replace(self._sampling(self.max_completion_tokens or self.max_tokens, logprobs), tools=tools)
