"""The tokenizer of a Hugging Face directory: tokenizer.json, tokenizer_config.json and the chat template."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from .contents import TokenizerContents, plain_tokenizer
from .files import read_optional_fields, read_text

__all__ = ["read_tokenizer", "tokenizer_limit"]


class _Content(BaseModel):
    content: str


class _NamedTemplate(BaseModel):
    name: str
    template: str


class _TokenizerFields(BaseModel):
    chat_template: str | list[_NamedTemplate] | None = None
    bos_token: str | _Content | None = None
    eos_token: str | _Content | None = None
    model_max_length: float | None = None  # "no limit" is written as 1e30


def read_tokenizer(directory: Path, eos_token_ids: tuple[int, ...]) -> TokenizerContents:
    """Returns the tokenizer of a directory.

    Args:
        directory: Where tokenizer.json is.
        eos_token_ids: Tokens that end an answer, from the model's configuration.

    Raises:
        CheckpointError: if a file is missing or damaged.
    """
    fields = read_optional_fields(_TokenizerFields, directory / "tokenizer_config.json")
    path = directory / "tokenizer.json"
    return TokenizerContents(
        json=plain_tokenizer(read_text(path), path),
        chat_template=_chat_template(directory, fields),
        bos_token=_token_text(fields.bos_token),
        eos_token=_token_text(fields.eos_token),
        eos_token_ids=eos_token_ids,
    )


def _chat_template(directory: Path, fields: _TokenizerFields) -> str | None:
    if (path := directory / "chat_template.jinja").exists():  # where newer versions write it
        return read_text(path)
    if isinstance(fields.chat_template, list):
        return next((named.template for named in fields.chat_template if named.name == "default"), None)
    return fields.chat_template


def _token_text(token: str | _Content | None) -> str | None:
    return token.content if isinstance(token, _Content) else token


def tokenizer_limit(directory: Path) -> int | None:
    """Returns the longest sequence in tokens that tokenizer_config.json names, if it names any."""
    limit = read_optional_fields(_TokenizerFields, directory / "tokenizer_config.json").model_max_length
    return int(limit) if limit is not None and limit >= 1 else None
