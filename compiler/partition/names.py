"""Names for what is alike: one pattern for the same operation, or the same weight, of every layer."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["component_of", "escaped", "pattern_of"]

_DIGITS = re.compile(r"(\d+)")
_PLACE = re.compile(r"(?<![^./])\d+(?![^./])")  # a number that stands alone between dots or slashes


def component_of(name: str) -> str:
    """Returns a path or a dotted name with `*` for each number that is a part of its own: `layers.*/mlp`."""
    return _PLACE.sub("*", name)


def pattern_of(names: Sequence[str]) -> str:
    """Returns the first name, with `*` for each number in which it differs from those that are otherwise like it."""
    first, *others = (_DIGITS.split(name) for name in names)
    alike = [parts for parts in others if len(parts) == len(first) and parts[::2] == first[::2]]
    return "".join(
        "*" if i % 2 and any(parts[i] != part for parts in alike) else escaped(part) for i, part in enumerate(first)
    )


def escaped(name: str) -> str:
    """Returns the pattern that a name alone matches: brackets, stars and question marks stand for themselves."""
    return re.sub(r"([\[*?])", r"[\1]", name)
