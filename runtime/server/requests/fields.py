"""The kinds of fields that requests are made of. Types are strict: no "1" for 1.

A field that the runtime has no part for yet is declared with `only`: it takes the values that mean "don't", so that
clients which spell out defaults work, and refuses the others.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag
from pydantic_core import PydanticCustomError

__all__ = [
    "INT32_MAX",
    "INT64_MAX",
    "MAX_INPUTS",
    "Inputs",
    "NonEmptyText",
    "Prompts",
    "Strict",
    "Text",
    "TokenCount",
    "TokenId",
    "Unsupported",
    "as_list",
    "only",
    "text_or_list_kind",
]

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
MAX_INPUTS = 2048
_MAX_PROMPTS = 128


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("string_unicode", "Text must be Unicode, without lone surrogates") from None
    return text


def only(*accepted: JsonValue) -> AfterValidator:
    """Returns a validator that accepts null and the given values."""

    def check(value: JsonValue) -> JsonValue:
        if value is None or value in accepted:
            return value
        values = " or ".join(repr(one) for one in accepted)
        remedy = f"leave it out, or send {values}" if accepted else "leave it out"
        raise PydanticCustomError("unsupported_parameter", "Not supported by this server; {remedy}", {"remedy": remedy})

    return AfterValidator(check)


Text = Annotated[str, AfterValidator(_encodable)]
NonEmptyText = Annotated[str, Field(min_length=1), AfterValidator(_encodable)]
TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]
TokenCount = Annotated[int, Field(ge=1, le=INT32_MAX)]
Unsupported = Annotated[JsonValue, only()]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


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
    | Annotated[list[NonEmptyText], Tag("<strings>"), Field(min_length=1, max_length=MAX_INPUTS)]
    | Annotated[list[Tokens], Tag("<token lists>"), Field(min_length=1, max_length=MAX_INPUTS)],
    _PROMPT_KINDS,
]


def as_list(prompts: str | list[int] | list[str] | list[list[int]]) -> list[str | list[int]]:
    """Returns each prompt, as text or as tokens."""
    if isinstance(prompts, str):
        return [prompts]
    texts_or_lists = [prompt for prompt in prompts if not isinstance(prompt, int)]
    return list(texts_or_lists) or [[token for token in prompts if isinstance(token, int)]]


def text_or_list_kind(value: JsonValue) -> str | None:
    """Returns the branch of a text, a list or nothing."""
    return {str: "<string>", list: "<list>", type(None): "<null>"}.get(type(value))
