"""What an answer must look like, as OpenAI and vLLM have it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, JsonValue, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from ....errors import InvalidRequestError
from ...request import Structure
from .fields import MAX_INPUTS, NonEmptyText, Strict, Text

__all__ = ["Structured"]

Choices = Annotated[list[NonEmptyText], Field(min_length=1, max_length=MAX_INPUTS)]


class JsonSchema(Strict):
    """A schema that an answer must fit; it must whether or not the client calls it strict."""

    name: Text | None = None
    description: Text | None = None
    strict: bool | None = None
    of_answer: Annotated[dict[str, JsonValue], Field(alias="schema")]


class ResponseFormat(Strict):
    """What an answer must look like, as OpenAI has it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(default=None, validate_default=True)

    @field_validator("json_schema")
    @classmethod
    def _goes_with_type(cls, schema: JsonSchema | None, info: ValidationInfo) -> JsonSchema | None:
        if (schema is not None) != (info.data.get("type") == "json_schema"):
            raise PydanticCustomError("json_schema", "Must be there if and only if type is 'json_schema'")
        return schema


class StructuredOutputs(Strict):
    """What an answer must look like, as vLLM has it."""

    schema_of_answer: Annotated[dict[str, JsonValue] | str | None, Field(alias="json")] = None
    regex: NonEmptyText | None = None
    choice: Choices | None = None
    grammar: NonEmptyText | None = None


class Structured(Strict):
    """A request that may say what its answer must look like, once."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, JsonValue] | str | None = None
    guided_regex: NonEmptyText | None = None
    guided_choice: Choices | None = None
    guided_grammar: NonEmptyText | None = None

    def structure(self) -> Structure | None:
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
