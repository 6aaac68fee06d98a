"""Text to token ids and back: encoding, incremental decoding and stop strings.

Comes in: the tokenizer.json of a model, texts, and tokens one by one. Goes out: token ids, and text that is final: what
a `Detokenizer` has returned is never taken back, and all of it together is the decoding of the whole; what a
`StopMatcher` lets through ends before the first stop string, wherever the pieces were cut. No text becomes a special
token, except those that a chat template wrote.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import NotRequired, TypedDict

import tokenizers

from ..errors import CheckpointError, InvalidRequestError
from .quotation import Quotation

__all__ = ["Detokenizer", "StopMatcher", "Tokenizer", "num_held"]

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_SPACE_MARK = "\u2581"  # how vocabularies of pieces write a space
# Byte-level vocabularies write a byte as the Latin-1 character of its number if it has a glyph, others from 256 on.
_PRINTED = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTE_OF = {chr(byte): byte for byte in _PRINTED} | {
    chr(256 + index): byte for index, byte in enumerate(sorted(set(range(256)) - set(_PRINTED)))
}


class _AddedToken(TypedDict):
    content: str
    special: bool


class _Model(TypedDict, total=False):
    vocab: dict[str, int] | list[tuple[str, float]]  # a list, in the order of ids, for Unigram
    merges: list[tuple[str, str] | str]  # a string with a space between in older files
    unk_token: str | None


class _Contents(TypedDict):
    """What is read of a tokenizer.json here."""

    added_tokens: list[_AddedToken]
    model: _Model
    decoder: NotRequired[dict[str, object] | None]


class Tokenizer:
    """A model's tokenizer, in which the special tokens have names that nobody can write.

    Were they known by their texts, a text could spell them; to switch off the search for them is not enough, as a
    vocabulary of pieces finds them again.

    Args:
        text: The contents of a tokenizer.json.

    Raises:
        CheckpointError: if the text is no tokenizer.json.
    """

    def __init__(self, text: str) -> None:
        try:
            contents: _Contents = json.loads(text)
            self._names = _rename_special_tokens(contents)
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(contents))
        except Exception as error:  # the library raises the bare class
            reason = " ".join(str(error).split())
            raise CheckpointError(f"the tokenizer cannot be read: {reason}; bundle the model again") from None
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        texts = {name: text for text, name in self._names.items()}
        self._special_texts = {token_id: texts.get(added[token_id].content, "") for token_id in self._special_ids}
        self._is_byte_level = '"ByteLevel"' in json.dumps(contents.get("decoder"))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Returns the token ids of a text.

        Args:
            text: Any text. What it says stays text: special tokens spelled out in it don't become those tokens.
            add_special_tokens: Whether to add those that the model wants around every text, e.g. [CLS] and [SEP].
        """
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def quotation(self) -> Quotation:
        """Returns what marks the strings of one rendering of a chat template, for `encode_rendered`."""
        return Quotation(self._names)

    def encode_rendered(self, text: str, quotation: Quotation) -> list[int]:
        """Returns the token ids of a rendered chat template.

        Args:
            text: What the template made. Special tokens spelled out in it become those tokens, but not in strings
                that were quoted.
            quotation: What quoted them.
        """
        return self._tokenizer.encode(quotation.rename(text, self._names), add_special_tokens=False).ids

    def encode_pair(self, first: str, second: str) -> list[int]:
        """Returns the token ids of two texts with the special tokens that the model wants around and between them."""
        return self._tokenizer.encode(first, second).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids without special tokens; bytes that are no UTF-8 become U+FFFD."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    @property
    def special_ids(self) -> Mapping[str, int]:
        """The special tokens by their texts."""
        return {text: token_id for token_id, text in self._special_texts.items()}

    @property
    def added_ids(self) -> Mapping[str, int]:
        """The tokens that were added to the vocabulary but are not special, by their texts."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: token_id for token_id, token in added.items() if not token.special}

    def is_special(self, token_id: int) -> bool:
        """Returns whether a token controls the model and has no text."""
        return token_id in self._special_ids

    def to_json(self) -> str:
        """Returns the contents of a tokenizer.json for other libraries, with the special tokens' own names."""
        text = self._tokenizer.to_str()
        for content, name in self._names.items():
            text = text.replace(name, json.dumps(content)[1:-1])
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the text of one token, which may be a part of a character only; of a special token, its name."""
        if token_id in self._special_ids:
            return self._special_texts.get(token_id, "").encode()
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""  # a row of the vocabulary that pads it
        if self._is_byte_level and all(character in _BYTE_OF for character in token):
            return bytes(_BYTE_OF[character] for character in token)
        if _BYTE_TOKEN.fullmatch(token):
            return bytes([int(token[3:5], 16)])
        return token.replace(_SPACE_MARK, " ").encode()

    def ends_in_byte(self, ids: Sequence[int]) -> bool:
        """Returns whether the last token stands for one byte, as vocabularies with byte fallback have them."""
        token = self._tokenizer.id_to_token(ids[-1]) if ids else None
        return token is not None and _BYTE_TOKEN.fullmatch(token) is not None


def _rename_special_tokens(contents: _Contents) -> Mapping[str, str]:
    """Renames the special tokens of a tokenizer in place, ids staying as they are; returns the new names by text."""
    secret = secrets.token_hex(16)  # of characters that every normalizer leaves as they are
    special = [token for token in contents["added_tokens"] if token["special"]]
    names = {token["content"]: f"<{secret}{index}>" for index, token in enumerate(special)}
    for token in special:
        token["content"] = names[token["content"]]
    model = contents["model"]
    vocab = model.get("vocab", {})
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(piece, piece): token_id for piece, token_id in vocab.items()}
    else:
        model["vocab"] = [(names.get(piece, piece), score) for piece, score in vocab]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not _touches(merge, names)]
    if (unknown := model.get("unk_token")) is not None:
        model["unk_token"] = names.get(unknown, unknown)
    return names


def _touches(merge: tuple[str, str] | str, names: Mapping[str, str]) -> bool:
    """Returns whether a merge is of a special token or makes one."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left in names or right in names or left + right in names


class Detokenizer:
    """Turns tokens into text as they come, never splitting a character.

    The text of a token can depend on those before it (a decoder may strip the first space) and after it (the rest of
    a character), so what is decoded is a window: the tokens whose text was returned last, and those since.

    Args:
        tokenizer: The model's.
        shown: Special tokens whose texts are shown, where others have none.
    """

    def __init__(self, tokenizer: Tokenizer, shown: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._shown = shown
        self._context: list[int] = []  # tokens whose text was returned last
        self._pending: list[int] = []  # tokens whose text was not returned yet, or not all of it
        self._num_shown = 0  # characters of the pending tokens' text that were returned

    def push(self, token_id: int) -> str:
        """Returns the text that has become final with this token; "" while a character is incomplete."""
        if token_id in self._shown:
            return self.flush() + self._tokenizer.token_bytes(token_id).decode()
        if self._tokenizer.is_special(token_id):
            return ""  # decoding the whole skips it too, and what is on both sides of it belongs together
        self._pending.append(token_id)
        text = self._pending_text()
        # A run of byte tokens can still turn out not to be UTF-8, which changes the text of all of it.
        if not text or self._tokenizer.ends_in_byte(self._pending):
            return ""
        if text.endswith(_REPLACEMENT):  # of what is no UTF-8 yet, only the last character can still become some
            self._num_shown += len(text) - 1
            return text[:-1]
        self._context, self._pending, self._num_shown = self._pending, [], 0
        return text

    def flush(self) -> str:
        """Returns the text that was held back; an incomplete character becomes U+FFFD."""
        text = self._pending_text()
        self._context, self._pending, self._num_shown = self._context + self._pending, [], 0
        return text

    def _pending_text(self) -> str:
        known = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + self._pending)[len(known) + self._num_shown :]


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
        safe = len(text) - num_held(text, self._stops)
        self._held = text[safe:]
        return text[:safe], False

    def flush(self) -> str:
        """Returns the text that was held back, no stop string having come of it."""
        held, self._held = self._held, ""
        return held


def num_held(text: str, marks: Sequence[str]) -> int:
    """Returns the length of the longest end of a text that is a beginning, not all, of a mark."""
    longest = max((len(mark) - 1 for mark in marks), default=0)
    lengths = range(min(longest, len(text)), 0, -1)
    return next((length for length in lengths if any(mark.startswith(text[-length:]) for mark in marks)), 0)
