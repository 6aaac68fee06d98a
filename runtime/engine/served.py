"""The models of an opened bundle by name and alias, and what turns messages and texts into their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from ...compiler.bundle.manifest import ModelEntry, Route
from ...compiler.bundle.reader import Bundle
from ...errors import InvalidRequestError, ModelNotFoundError
from ...models.config import EncoderConfig
from ..answer import Answer
from ..chat_template import ChatTemplate
from ..events import Constraint
from ..request import SamplingParams, ToolUse
from ..structured import Grammars
from ..tokenizer import Tokenizer
from ..tool_calls import (
    HERMES,
    TOOL_FORMATS,
    ToolCallParser,
    ToolFormat,
    format_of_template,
    in_hermes_form,
    schema_structures,
    tool_structure,
)

__all__ = ["Messages", "Prompt", "Served", "ServedModels", "TextOrPair"]

Messages: TypeAlias = Sequence[Mapping[str, object]]  # {"role": ..., "content": ...} each, calls as templates take them
Prompt: TypeAlias = str | Messages | Sequence[int]  # a text to go on with, a conversation, or tokens
TextOrPair: TypeAlias = str | tuple[str, str]


class Served:
    """What the runtime keeps of each model beside its entry."""

    def __init__(self, bundle: Bundle, entry: ModelEntry, tool_format: ToolFormat | None = None) -> None:
        self.entry = entry
        self._tool_format = tool_format
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

    def tokenize_input(self, item: TextOrPair) -> list[int]:
        """Returns the tokens of a text, or of two in one sequence with the special tokens around and between them."""
        return self.tokenize(item) if isinstance(item, str) else self.tokenizer.encode_pair(*item)

    def tokenize_prompt(self, prompt: Prompt, tools: ToolUse | None = None) -> Sequence[int]:
        """Returns the tokens of a prompt of any kind; a conversation's offers the tools."""
        if isinstance(prompt, str):
            return self.tokenize(prompt)
        if prompt and isinstance(prompt[0], Mapping):
            return self.tokenize_chat(prompt, tools)  # type: ignore[arg-type]
        return prompt  # type: ignore[return-value]

    def tokenize_chat(self, messages: Messages, tools: ToolUse | None = None) -> list[int]:
        """Returns the tokens of a conversation in the model's template.

        Raises:
            InvalidRequestError: if the template refuses the messages, or the model has none.
        """
        if self.template is None:
            raise InvalidRequestError(f"model {self.entry.name!r} has no chat template", param="messages")
        offered = () if tools is None else tools.tools
        if not self.template.takes_tools and (offered or any(_is_about_tools(message) for message in messages)):
            return self.template.encode(in_hermes_form(messages, offered), self.tokenizer)
        schemas = [tool.to_json() for tool in offered] or None
        return self.template.encode(messages, self.tokenizer, tools=schemas)

    @property
    def tool_format(self) -> ToolFormat:
        """How the model writes tool calls.

        Raises:
            InvalidRequestError: if that is not known.
        """
        if self._tool_format is not None:
            return self._tool_format
        template = self.template
        form = HERMES if template is None else format_of_template(template.source, takes_tools=template.takes_tools)
        if form is None:
            raise InvalidRequestError(
                f"model {self.entry.name!r} writes tool calls in a form that its template does not tell; the server's "
                f"--tool-parser names it, one of {', '.join(TOOL_FORMATS)}",
                param="tools",
            )
        return form

    def constrain(self, params: SamplingParams) -> Constraint | None:
        """Returns what an answer is bound to. Takes up to a second for a complex structure.

        Raises:
            InvalidRequestError: if a structure or a tool's parameters cannot be followed.
        """
        structure, tools = params.structure, params.tools
        if tools is not None:
            ends = self.entry.eos_token_ids
            combined = tool_structure(tools, self.tool_format, self.tokenizer, ends, structure)
            try:
                return self.grammars.constrain(combined)
            except InvalidRequestError:
                for part in (*schema_structures(tools), *([structure] if structure else [])):
                    self.grammars.constrain(part)  # raises for the one that is to blame
                raise
        return None if structure is None else self.grammars.constrain(structure)

    def read_answer(self, prompt: Sequence[int], params: SamplingParams, now: float) -> Answer:
        """Returns what turns the replies to a prompt, submitted now, into text and calls."""
        tools = params.tools
        form = self.tool_format if tools is not None else None
        return Answer(
            self.tokenizer,
            params.stop,
            len(prompt),
            now,
            min_tokens=params.min_tokens,
            tool_calls=ToolCallParser(form, [tool.name for tool in tools.tools]) if tools and form else None,
            shown=[self.tokenizer.special_ids[form.begin]] if form and form.begin in self.tokenizer.special_ids else (),
        )

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
        routes: Names that lead to several models.
        tool_formats: How models write tool calls, where that is not for their templates to say.
    """

    def __init__(
        self,
        bundle: Bundle,
        entries: Sequence[ModelEntry],
        routes: Mapping[str, Route],
        tool_formats: Mapping[str, ToolFormat] | None = None,
    ) -> None:
        self._routes = routes
        self._names = {name: entry.name for entry in entries for name in (entry.name, *entry.aliases)}
        forms = {self._names.get(name, name): form for name, form in (tool_formats or {}).items()}
        self._served = {entry.name: Served(bundle, entry, forms.get(entry.name)) for entry in entries}

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
            if name in self._routes:
                models = ", ".join(self._routes[name].models)
                raise ModelNotFoundError(
                    f"{name!r} is a route, no model; name one of its models: {models}", param="model"
                )
            raise ModelNotFoundError(f"model {name!r} is not in this bundle; it has {known}", param="model")
        return self._names[name]


def _is_about_tools(message: Mapping[str, object]) -> bool:
    return message.get("role") == "tool" or bool(message.get("tool_calls"))
