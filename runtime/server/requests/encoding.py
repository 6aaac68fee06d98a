"""What encoders are asked: bodies of POST /v1/embeddings, /v1/classify, /v1/rerank and /v1/score."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, JsonValue, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from .fields import MAX_INPUTS, Inputs, NonEmptyText, Strict, Text, TokenCount, as_list, only, text_or_list_kind

__all__ = ["ClassifyRequest", "EmbeddingRequest", "RerankRequest", "ScoreRequest"]


class EmbeddingRequest(Strict):
    """Body of POST /v1/embeddings."""

    model: NonEmptyText
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int | None, only()] = None
    user: Text | None = None  # without effect on the answer

    def inputs(self) -> list[str | list[int]]:
        """Returns each input, as text or as tokens."""
        return as_list(self.input)


class ClassifyRequest(Strict):
    """Body of POST /v1/classify."""

    model: NonEmptyText
    input: Inputs
    user: Text | None = None  # without effect on the answer

    def inputs(self) -> list[str | list[int]]:
        """Returns each input, as text or as tokens."""
        return as_list(self.input)


class TextDocument(Strict):
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


class RerankRequest(Strict):
    """Body of POST /v1/rerank, as Cohere, Jina and vLLM have it."""

    model: NonEmptyText
    query: NonEmptyText
    documents: Annotated[list[Document], Field(min_length=1, max_length=MAX_INPUTS)]
    top_n: TokenCount | None = None
    return_documents: bool | None = None
    user: Text | None = None  # without effect on the answer

    def texts(self) -> list[str]:
        """Returns each document's text."""
        return [document if isinstance(document, str) else document.text for document in self.documents]


TextOrTexts = Annotated[
    Annotated[NonEmptyText, Tag("<string>")]
    | Annotated[list[NonEmptyText], Tag("<list>"), Field(min_length=1, max_length=MAX_INPUTS)],
    Discriminator(
        text_or_list_kind, custom_error_type="text_type", custom_error_message="Must be a string or a list of strings"
    ),
]


class ScoreRequest(Strict):
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
