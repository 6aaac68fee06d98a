"""The messages of a conversation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, JsonValue, Tag, field_validator
from pydantic_core import PydanticCustomError

from .fields import Strict, Text, Unsupported, only

__all__ = ["Message"]


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
    return {str: "<string>", list: "<parts>"}.get(type(content))


MessageContent = Annotated[
    Annotated[Text, Tag("<string>")] | Annotated[list[ContentPart], Tag("<parts>"), Field(min_length=1)],
    Discriminator(
        _content_kind,
        custom_error_type="content_type",
        custom_error_message="Must be a string or a list of text parts",
    ),
]


class Message(Strict):
    """One message of a conversation; what an answer of ours carries may be sent back as it came."""

    role: Annotated[str, Field(json_schema_extra={"enum": ["system", "developer", "user", "assistant"]})]
    content: MessageContent
    name: Annotated[Text | None, only()] = None
    refusal: Annotated[Text | None, only()] = None
    annotations: Annotated[list[JsonValue] | None, only([])] = None
    audio: Unsupported = None
    tool_calls: Annotated[list[JsonValue] | None, only([])] = None
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
