"""Answers of /v1/chat/completions, whole and streamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, JsonValue, SerializerFunctionWrapHandler, model_serializer

from ...request import FinishReason, ToolCall, ToolCallDelta
from .logprobs import ChatLogprobs
from .usage import Usage

__all__ = [
    "ChatChoice",
    "ChatChunk",
    "ChatCompletion",
    "ChatDelta",
    "ChatMessage",
    "ChatToolCall",
    "ChatToolCallDelta",
    "FunctionCall",
]


class FunctionCall(BaseModel):
    """What is to be called; of one step of a streamed answer, what is new of it."""

    name: str | None = None
    arguments: str


class ChatToolCall(BaseModel):
    """A call that the model asks for."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall

    @classmethod
    def of(cls, call: ToolCall) -> ChatToolCall:
        """Returns a call in the API's terms."""
        return cls(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments))


class ChatToolCallDelta(BaseModel):
    """One step of a call: its id and name with the first, and then its arguments."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCall

    @classmethod
    def of(cls, delta: ToolCallDelta) -> ChatToolCallDelta:
        """Returns a step in the API's terms."""
        function = FunctionCall(name=delta.name, arguments=delta.arguments)
        return cls(index=delta.index, id=delta.id, type="function" if delta.id else None, function=function)


class ChatMessage(BaseModel):
    """An answer: text, or calls, or both."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    annotations: list[str] = []  # always empty: there are no citations
    tool_calls: list[ChatToolCall] | None = None  # left out where there are none

    @classmethod
    def of(cls, text: str, calls: Sequence[ToolCall]) -> ChatMessage:
        """Returns an answer in the API's terms."""
        return cls(content=None if calls and not text else text, tool_calls=list(map(ChatToolCall.of, calls)) or None)

    @model_serializer(mode="wrap")
    def _without_missing_calls(self, dump: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        return {name: value for name, value in dump(self).items() if name != "tool_calls" or value}


class ChatChoice(BaseModel):
    """One answer of a chat completion."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """Body of a chat completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(BaseModel):
    """One step of a streamed answer."""

    index: int
    delta: dict[str, JsonValue]
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(BaseModel):
    """One event of a streamed chat completion; `usage` is left out unless the client asked for it."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatDelta]
    usage: Usage | None = None
