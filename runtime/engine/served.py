"""The models of an opened bundle by name and alias, and what turns messages and texts into their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from ...compiler.bundle.manifest import ModelEntry
from ...compiler.bundle.reader import Bundle
from ...errors import InvalidRequestError, ModelNotFoundError
from ...models.config import EncoderConfig
from ..chat_template import ChatTemplate
from ..structured import Grammars
from ..tokenizer import Tokenizer

__all__ = ["Messages", "Prompt", "Served", "ServedModels", "TextOrPair"]

Messages: TypeAlias = Sequence[Mapping[str, str]]  # {"role": ..., "content": ...} each
Prompt: TypeAlias = str | Messages | Sequence[int]  # a text to go on with, a conversation, or tokens
TextOrPair: TypeAlias = str | tuple[str, str]


class Served:
    """What the runtime keeps of each model beside its entry."""

    def __init__(self, bundle: Bundle, entry: ModelEntry) -> None:
        self.entry = entry
        self.tokenizer = Tokenizer(bundle.read_bytes(entry.tokenizer).decode())
        self.grammars = Grammars(self.tokenizer, entry.eos_token_ids)
        self.template = (
            ChatTemplate(
                bundle.read_bytes(entry.chat_template).decode(), bos_token=entry.bos_token, eos_token=entry.eos_token
            )
            if entry.chat_template is not None
            else None
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of a classifier; other models have none."""
        return self.entry.config.labels if isinstance(self.entry.config, EncoderConfig) else ()

    def tokenize(self, text: str) -> list[int]:
        """Returns the tokens of a text, with those that the model wants before and after it."""
        return self.tokenizer.encode(text, add_special_tokens=True)

    def tokenize_prompt(self, prompt: Prompt) -> Sequence[int]:
        """Returns the tokens of a prompt of any kind."""
        if isinstance(prompt, str):
            return self.tokenize(prompt)
        if prompt and isinstance(prompt[0], Mapping):
            return self.tokenize_chat(prompt)  # type: ignore[arg-type]
        return prompt  # type: ignore[return-value]

    def tokenize_chat(self, messages: Messages) -> list[int]:
        """Returns the tokens of a conversation in the model's template.

        Raises:
            InvalidRequestError: if the template refuses the messages, or the model has none.
        """
        if self.template is None:
            raise InvalidRequestError(f"model {self.entry.name!r} has no chat template", param="messages")
        return self.template.encode(messages, self.tokenizer)

    def check_tokens(self, tokens: Sequence[int], *, param: str) -> None:
        """Raises InvalidRequestError if there are no tokens, or some that the model does not have."""
        vocab_size = self.entry.config.vocab_size
        if not tokens:
            raise InvalidRequestError(f"the {param} is empty; give at least one token", param=param)
        if not all(0 <= token < vocab_size for token in tokens):
            wrong = next(token for token in tokens if not 0 <= token < vocab_size)
            raise InvalidRequestError(f"token {wrong} is not in the vocabulary of {vocab_size} tokens", param=param)


class ServedModels:
    """The models of a bundle.

    Args:
        bundle: Opened.
        entries: Its models, with the bytes that they take on this machine.
    """

    def __init__(self, bundle: Bundle, entries: Sequence[ModelEntry]) -> None:
        self._served = {entry.name: Served(bundle, entry) for entry in entries}
        self._names = {name: entry.name for entry in entries for name in (entry.name, *entry.aliases)}

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    def __getitem__(self, name: str) -> Served:
        """Returns a model by name or alias; raises ModelNotFoundError if there is none."""
        return self._served[self.resolve(name)]

    def resolve(self, name: str) -> str:
        """Returns the canonical name for a name or alias.

        Raises:
            ModelNotFoundError: if there is none.
        """
        if name not in self._names:
            known = ", ".join(self._served)
            raise ModelNotFoundError(f"model {name!r} is not in this bundle; it has {known}", param="model")
        return self._names[name]
