"""Text to token ids and back: encoding, incremental decoding, stop strings and chat templates.

Comes in: the tokenizer.json and the Jinja template of a model, texts, and tokens one by one. Goes out: token ids, and
text that is final: what a `Detokenizer` has returned is never taken back, and all of it together is the decoding of
the whole; what a `StopMatcher` lets through ends before the first stop string, wherever the pieces were cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NoReturn

import jinja2
import tokenizers
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import CheckpointError, InvalidRequestError, UnsupportedModelError

__all__ = ["ChatTemplate", "Detokenizer", "StopMatcher", "Tokenizer"]

ROLES = ("system", "user", "assistant")

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Tokenizer:
    """A model's tokenizer.

    Args:
        text: The contents of a tokenizer.json.

    Raises:
        CheckpointError: if the text is no tokenizer.json.
    """

    def __init__(self, text: str) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises the bare class
            reason = " ".join(str(error).split())
            raise CheckpointError(f"the tokenizer cannot be read: {reason}; bundle the model again") from None
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Returns the token ids of a text.

        Args:
            text: Any text. Special tokens written out in it, as a chat template writes them, become those tokens.
            add_special_tokens: Whether to add those that the model wants around every text, e.g. [CLS] and [SEP];
                False for a rendered chat template, which has them already.
        """
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids without special tokens; bytes that are no UTF-8 become U+FFFD."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def is_special(self, token_id: int) -> bool:
        """Returns whether a token controls the model and has no text."""
        return token_id in self._special_ids

    def ends_in_byte(self, ids: Sequence[int]) -> bool:
        """Returns whether the last token stands for one byte, as vocabularies with byte fallback have them."""
        token = self._tokenizer.id_to_token(ids[-1]) if ids else None
        return token is not None and _BYTE_TOKEN.fullmatch(token) is not None


class Detokenizer:
    """Turns tokens into text as they come, never splitting a character.

    The text of a token can depend on those before it (a decoder may strip the first space) and after it (the rest of
    a character), so what is decoded is a window: the tokens whose text was returned last, and those since.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []  # tokens whose text was returned last
        self._pending: list[int] = []  # tokens whose text was not returned yet

    def push(self, token_id: int) -> str:
        """Returns the text that has become final with this token; "" while a character is incomplete."""
        if self._tokenizer.is_special(token_id):
            return ""  # decoding the whole skips it too, and what is on both sides of it belongs together
        self._pending.append(token_id)
        text = self._pending_text()
        # A run of byte tokens can still turn out not to be UTF-8, which changes the text of all of it.
        if not text or text.endswith(_REPLACEMENT) or self._tokenizer.ends_in_byte(self._pending):
            return ""
        self._context, self._pending = self._pending, []
        return text

    def flush(self) -> str:
        """Returns the text that was held back; an incomplete character becomes U+FFFD."""
        text = self._pending_text()
        self._context, self._pending = self._context + self._pending, []
        return text

    def _pending_text(self) -> str:
        known = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + self._pending)[len(known) :]


class StopMatcher:
    """Finds the first stop string in a text that comes in pieces, holding back what may be the beginning of one.

    The first is the one that is complete first; of two that end together, the longer.

    Args:
        stops: Stop strings.

    Raises:
        InvalidRequestError: if one of them is empty.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        if "" in stops:
            raise InvalidRequestError("a stop string is empty; leave it out", param="stop")
        self._stops = stops
        self._held = ""
        self._is_stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Returns the text that may be shown and whether a stop string was found; nothing is shown after that."""
        if self._is_stopped:
            return "", True
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self._is_stopped, self._held = True, ""
            return text[: min(found)[1]], True
        safe = len(text) - self._num_held(text)
        self._held = text[safe:]
        return text[:safe], False

    def flush(self) -> str:
        """Returns the text that was held back, no stop string having come of it."""
        held, self._held = self._held, ""
        return held

    def _num_held(self, text: str) -> int:
        """Returns the length of the longest end of the text that is the beginning of a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        lengths = range(min(longest, len(text)), 0, -1)
        return next((length for length in lengths if self._is_beginning(text[-length:])), 0)

    def _is_beginning(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._stops)


class ChatTemplate:
    """A model's Jinja template, which turns messages into the text that the model was trained on.

    It runs in a sandbox: it comes with the model, not from us.

    Args:
        source: The template.
        bos_token: What the template knows as `bos_token`; None for a model without one.
        eos_token: Likewise.

    Raises:
        UnsupportedModelError: if the template is none that Jinja reads.
    """

    def __init__(self, source: str, *, bos_token: str | None = None, eos_token: str | None = None) -> None:
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise UnsupportedModelError(f"the model's chat template cannot be read: {error}") from None
        self._tokens = {"bos_token": bos_token or "", "eos_token": eos_token or ""}

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        """Returns the prompt for a conversation.

        Args:
            messages: Each with "role" (system, user or assistant) and "content".
            add_generation_prompt: Whether to end with the beginning of the assistant's answer.

        Raises:
            InvalidRequestError: if there is no message, a role is wrong, or the template refuses the conversation.
        """
        _check_messages(messages)
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise _invalid_messages(f"the model's chat template refuses these messages: {error}") from None


def _check_messages(messages: Sequence[Mapping[str, str]]) -> None:
    if not messages:
        raise _invalid_messages("there are no messages; give at least one")
    for index, message in enumerate(messages):
        if (role := message.get("role")) not in ROLES:
            raise _invalid_messages(f"messages[{index}] has role {role!r}; the roles are {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise _invalid_messages(f"messages[{index}] has no text as its content")


def _invalid_messages(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, param="messages")


def _environment() -> ImmutableSandboxedEnvironment:
    """Returns the environment that templates are written for."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)  # Jinja's own escapes HTML


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
