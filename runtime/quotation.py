"""Keeps what users write apart from what a chat template writes.

Comes in: the strings of a request, which may spell special tokens such as `<|im_end|>`. Goes out: the same strings with
a mark inside each such spelling, to be rendered by the template, and of the rendered text a version in which only the
template's own special tokens are special. A template can trim, split, compare and measure marked strings as it could
the original ones, as long as it does not look for special tokens in them.

Not covered: a special token that comes about only when the template puts user strings together, or cuts out of one
what was between the token's halves. Templates that are in use write something of their own between.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Mapping

__all__ = ["Quotation"]

_MARK_DIGITS = 24


class Quotation:
    """Marks and unmarks the strings of one rendering.

    The mark is random, so that nobody can write it, and made of digits, which every filter leaves as they are.

    Args:
        special: The texts of the special tokens.
    """

    def __init__(self, special: Collection[str]) -> None:
        self._special = special
        self._mark = f"{secrets.randbelow(10**_MARK_DIGITS):0{_MARK_DIGITS}}"

    def quote(self, value: object) -> object:
        """Returns a JSON-like value with every string in it marked; new lists and objects, the rest as it is."""
        if isinstance(value, str):
            return self._quote_text(value)
        if isinstance(value, Mapping):
            return {self.quote(key): self.quote(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.quote(item) for item in value]
        return value

    def unquote(self, text: str) -> str:
        """Returns a rendered text as it would be had nothing been marked."""
        return text.replace(self._mark, "")

    def rename(self, text: str, names: Mapping[str, str]) -> str:
        """Returns a rendered text, unmarked, in which the template's own special tokens have other names.

        Args:
            text: What the template made of marked strings.
            names: The name of every special token, by its text.
        """
        present = self._present(text)
        # Of two that begin at the same place the longer is meant; one of a single character is marked behind it.
        ordered = "|".join(re.escape(token) for token in sorted(present, key=len, reverse=True))
        if present:
            text = re.sub(rf"(?:{ordered})(?!{self._mark})", lambda match: names[match[0]], text)
        return self.unquote(text)

    def _quote_text(self, text: str) -> str:
        """Puts the mark behind the first character of every spelling, overlapping ones included."""
        present = "|".join(map(re.escape, self._present(text)))
        return re.sub(rf"(?={present})(.)", rf"\g<1>{self._mark}", text, flags=re.DOTALL) if present else text

    def _present(self, text: str) -> list[str]:
        return [token for token in self._special if token in text]
