"""The messages of a conversation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Discriminator, Field, JsonValue, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from ....errors import InvalidRequestError
from .fields import NonEmptyText, Strict, Text, Unsupported, only

__all__ = ["Message", "check_results"]


class TextPart(Strict):
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
    return {str: "<string>", list: "<parts>", type(None): "<null>"}.get(type(content))


MessageContent = Annotated[
    Annotated[Text, Tag("<string>")]
    | Annotated[list[ContentPart], Tag("<parts>"), Field(min_length=1)]
    | Annotated[None, Tag("<null>")],
    Discriminator(
        _content_kind,
        custom_error_type="content_type",
        custom_error_message="Must be a string or a list of text parts",
    ),
]


class CalledFunction(Strict):
    """What was called."""

    name: NonEmptyText
    arguments: Text

    @field_validator("arguments")
    @classmethod
    def _is_an_object(cls, arguments: str) -> str:
        try:
            is_object = isinstance(json.loads(arguments), dict)
        except (ValueError, RecursionError):
            is_object = False
        if not is_object:
            raise PydanticCustomError("arguments", "Must be a JSON object, as text")
        return arguments


class MessageToolCall(Strict):
    """A call that an earlier answer asked for."""

    id: NonEmptyText
    type: Literal["function"]
    function: CalledFunction

    def as_template_input(self) -> dict[str, object]:
        """Returns what chat templates take: arguments as an object."""
        function = {"name": self.function.name, "arguments": json.loads(self.function.arguments)}
        return {"id": self.id, "type": self.type, "function": function}


class Message(Strict):
    """One message of a conversation; what an answer of ours carries may be sent back as it came."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: Annotated[NonEmptyText | None, Field(validate_default=True)] = None
    content: Annotated[MessageContent, Field(validate_default=True)] = None
    name: Annotated[Text | None, only()] = None
    refusal: Annotated[Text | None, only()] = None
    annotations: Annotated[list[JsonValue] | None, only([])] = None
    audio: Unsupported = None
    function_call: Unsupported = None

    @field_validator("tool_calls")
    @classmethod
    def _only_of_assistants(cls, calls: list[MessageToolCall] | None, info: ValidationInfo) -> object:
        if calls and info.data.get("role") != "assistant":
            raise PydanticCustomError("tool_calls", "Only taken with role 'assistant'")
        return calls

    @field_validator("tool_call_id")
    @classmethod
    def _only_of_results(cls, call_id: str | None, info: ValidationInfo) -> str | None:
        is_result = info.data.get("role") == "tool"
        if call_id is None and is_result:
            raise PydanticCustomError("missing", "Field required")
        if call_id is not None and not is_result:
            raise PydanticCustomError("tool_call_id", "Only taken with role 'tool'")
        return call_id

    @field_validator("content")
    @classmethod
    def _only_calls_do_without(cls, content: object, info: ValidationInfo) -> object:
        if content is None and not info.data.get("tool_calls"):
            raise PydanticCustomError("missing", "Field required")
        return content

    def as_template_input(self) -> dict[str, object]:
        """Returns what chat templates take: a role they know, one string, and calls."""
        role = "system" if self.role == "developer" else self.role
        parts = self.content if isinstance(self.content, list) else []
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in parts)
        message: dict[str, object] = {"role": role, "content": content}
        if self.tool_calls:
            message["tool_calls"] = [call.as_template_input() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


def check_results(messages: Sequence[Message]) -> None:
    """Checks that every result is of a call before it.

    Raises:
        InvalidRequestError: naming the first that is of none.
    """
    called: set[str] = set()
    for index, message in enumerate(messages):
        called |= {call.id for call in message.tool_calls or ()}
        if message.tool_call_id is not None and message.tool_call_id not in called:
            raise InvalidRequestError(
                f"'messages[{index}].tool_call_id' is {message.tool_call_id!r}: no message before it has a tool call "
                "of that id",
                param=f"messages[{index}].tool_call_id",
            )
