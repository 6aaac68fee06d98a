"""Fusion by rules (mode o1): a YAML file in SambaFlow's form says which operations make one section.

    mlp:
      priority: 20                    # higher ones are tried first
      heuristic: SAFE_GEMM            # accepted, and without effect: the chip's units decide here
      pattern:
        gate:   {op_type: linear, child: act}
        act:    {op_type: logistic, required: false}
        up:     {op_type: [linear, mul]}
      match_first_option: true        # of alternatives, the first that matches instead of the longest

A pattern's steps match consecutive operations, views aside, by the names that `plait compile --graph` shows, in any
case, and `gemm` matches all products; a step that is not required may be missing, and one with several `op_type`s
matches any of them. `child` may name the step that follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pydantic
import yaml

from ...errors import ConfigurationError
from .work import Work

__all__ = ["FusionRule", "PatternStep", "read_rules", "ruled_cuts"]

_PRODUCTS = ("linear", "dot_general")
_GENERAL_PRODUCTS = ("gemm", "matmul")
_STRICT = pydantic.ConfigDict(extra="forbid")


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


@dataclass(frozen=True)
class PatternStep:
    """One operation of a pattern."""

    __pydantic_config__ = _STRICT

    op_type: Annotated[tuple[str, ...], pydantic.BeforeValidator(_listed)]
    required: bool = True
    child: Annotated[tuple[str, ...], pydantic.BeforeValidator(_listed)] = ()  # names of later steps

    def matches(self, name: str) -> bool:
        """Whether an operation of this name is one of those that are meant."""
        wanted = {each.lower() for each in self.op_type}
        return name.lower() in wanted or (name in _PRODUCTS and not wanted.isdisjoint(_GENERAL_PRODUCTS))


@dataclass(frozen=True)
class FusionRule:
    """A pattern of operations that make one section."""

    __pydantic_config__ = _STRICT

    pattern: dict[str, PatternStep] = field(default_factory=dict[str, PatternStep])
    priority: int = 0
    heuristic: str = ""
    match_first_option: bool = False

    def length(self, names: Sequence[str]) -> int:
        """Returns how many of some names, from the first on, the pattern matches; 0 if it does not."""
        ends = self._ends(names, 0, tuple(self.pattern.values()))
        found = [end for end in ends if end]
        return (found[0] if self.match_first_option else max(found)) if found else 0

    def _ends(self, names: Sequence[str], place: int, steps: tuple[PatternStep, ...]) -> list[int]:
        if not steps:
            return [place]
        step, *rest = steps
        ends: list[int] = []
        if place < len(names) and step.matches(names[place]):
            ends += self._ends(names, place + 1, tuple(rest))
        if not step.required:
            ends += self._ends(names, place, tuple(rest))
        return ends


_ADAPTER = pydantic.TypeAdapter(dict[str, FusionRule])


def read_rules(path: Path) -> tuple[FusionRule, ...]:
    """Returns the rules of a file, those of the highest priority first.

    Raises:
        ConfigurationError: if it cannot be read, or says something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        rules = _ADAPTER.validate_python({} if content is None else content)
    except OSError as error:
        raise ConfigurationError(f"cannot read fusion rules {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"fusion rules {path} are not YAML: {str(error).splitlines()[0]}") from None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "top level"
        raise ConfigurationError(f"fusion rules {path}: {where}: {first['msg']}") from None
    for name, rule in rules.items():
        labels = list(rule.pattern)
        if not labels:
            raise ConfigurationError(f"fusion rules {path}: {name} has no pattern")
        for place, step in enumerate(rule.pattern.values()):
            if unknown := set(step.child) - set(labels[place + 1 :]):
                raise ConfigurationError(
                    f"fusion rules {path}: {name}: child {min(unknown)!r} of {labels[place]!r} is no later step"
                )
    return tuple(sorted(rules.values(), key=lambda rule: -rule.priority))


def ruled_cuts(works: Sequence[Work], rules: Sequence[FusionRule]) -> list[tuple[int, int]]:
    """Returns the stretches (begin, end) of a sequence of operations that rules make; what no rule takes stays alone.

    Args:
        works: Operations in order.
        rules: The highest priority first.
    """
    places = [place for place, work in enumerate(works) if not work.is_view]
    names = [works[place].name for place in places]
    taken: dict[int, int] = {}  # of the first operation of a match, how many
    free = [True] * len(places)
    for rule in rules:
        for at in range(len(places)):
            length = rule.length(names[at:])
            if length and all(free[at : at + length]):
                taken[at] = length
                free[at : at + length] = [False] * length
    cuts: list[tuple[int, int]] = []
    at = 0
    while at < len(places):
        length = taken.get(at, 1)
        cuts.append((places[at], places[at + length - 1] + 1))
        at += length
    return cuts
