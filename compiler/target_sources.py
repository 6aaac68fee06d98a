"""Where a target's numbers are from: each number by its dotted key, with the source that the target gives for it.

Comes in: a target. Goes out: its numbers, each with a text. Of the keys in `sources` the longest counts that is the
number's own or the beginning of it: `tiers.hbm` is the source of `tiers.hbm.capacity_bytes`, unless that has one of its
own. What no key covers has the source of the whole file. `tests/compiler/test_target.py` holds that in the targets that
come with plait every number is covered, and that no key covers none.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

import pydantic

from . import target as fields
from .target import Target

__all__ = ["TargetNumber", "source_of", "target_numbers", "target_schema", "unused_sources", "with_sources"]

_ASSUMED = "assumed"
_FIELD_COMMENT = re.compile(r"^    (\w+): .*  # (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class TargetNumber:
    """One number of a target."""

    key: str  # dotted, as in "tiers.hbm.capacity_bytes"
    value: float  # in the unit that the key ends in
    source: str

    @property
    def is_assumed(self) -> bool:
        """Whether nobody published or measured it, nor what it could be derived from."""
        return self.source.startswith(_ASSUMED)


def target_numbers(target: Target) -> tuple[TargetNumber, ...]:
    """Returns every number of a target, those too that its file leaves at their defaults."""
    return tuple(TargetNumber(key, value, source_of(target, key)) for key, value in _numbers(asdict(target)))


def source_of(target: Target, key: str) -> str:
    """Returns where the number of a dotted key is from; the source of the whole file if it has none of its own."""
    found = _covering(target.sources, key)
    return target.source if found is None else target.sources[found]


def unused_sources(target: Target) -> tuple[str, ...]:
    """Returns the keys of `sources` that are the source of no number: misspelled, or all covered by longer ones."""
    used = {_covering(target.sources, key) for key, _ in _numbers(asdict(target))}
    return tuple(key for key in target.sources if key not in used)


def with_sources(target: Target, base: Target, changed: Mapping[str, str]) -> Target:
    """Returns a target that was made of another one by changing numbers, with sources that are true of it.

    Args:
        target: With the new numbers; its `sources` don't count.
        base: What it was made of.
        changed: Source of each number that was changed, by its own key.
    """
    kept = {key: source_of(base, key) for key, _ in _numbers(asdict(target)) if key not in changed}
    whole = {key: text for key, text in base.sources.items() if key not in changed}
    found = replace(target, sources={**whole, **changed})
    unnamed = {key: text for key, text in kept.items() if source_of(found, key) != text}
    found = replace(found, sources={**found.sources, **unnamed})
    unused = unused_sources(found)
    return replace(found, sources={key: text for key, text in found.sources.items() if key not in unused})


def target_schema() -> dict[str, object]:
    """Returns the JSON schema of a target file; what a field means is the comment beside it in `target.py`."""
    schema = pydantic.TypeAdapter(Target).json_schema()
    for name, table in {**schema["$defs"], "Target": schema}.items():
        for field, meaning in _meanings(name).items():
            table["properties"][field]["description"] = meaning
    return schema


def _meanings(class_name: str) -> dict[str, str]:
    return dict(_FIELD_COMMENT.findall(inspect.getsource(getattr(fields, class_name))))


def _covering(sources: Mapping[str, str], key: str) -> str | None:
    """Returns the longest key of `sources` that is the given one or its beginning."""
    while key not in sources:
        key, dot, _ = key.rpartition(".")
        if not dot:
            return None
    return key


def _numbers(table: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", value
