"""Canaries: whether a model answers as it did when its bundle was made.

Comes in: models that have come to hbm, and what comes of the requests that are made of their canaries. Goes out: a
verdict. The scheduler runs those requests when nobody waits (`scheduler/checks.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from ..compiler.bundle.canary import TOLERANCE
from ..compiler.bundle.manifest import Canary, ModelEntry
from .events import EmbedWork, GenerateWork, Reply, Request, Sampling
from .request import Health

__all__ = ["Canaries", "CanaryPolicy", "Verdict"]

CanaryPolicy: TypeAlias = Literal["first", "always", "never"]  # wakes after which a model is checked


@dataclass(frozen=True)
class Verdict:
    """What a check has shown."""

    model: str
    message: str  # what is wrong with it; "" if nothing is


class Canaries:
    """Asks models what they are known to answer.

    Args:
        models: Of the bundle; those without a canary are not asked.
        policy: After which wakes a model is checked; one that is not healthy is checked after each.
    """

    def __init__(self, models: Iterable[ModelEntry], policy: CanaryPolicy) -> None:
        self._canaries = {
            entry.name: entry.canary for entry in models if entry.canary and _says_something(entry.canary)
        }
        self._policy = policy
        self._ids = itertools.count(-1, -1)  # below all of clients
        self._asked: dict[int, str] = {}  # models by request
        self._drawn: dict[int, list[int]] = {}  # tokens by request
        self._health: dict[str, Health] = {}

    def health(self, model: str) -> Health:
        """Returns what is known of a model. Any thread may ask."""
        return self._health.get(model, "unchecked")

    def model_of(self, request_id: int) -> str:
        """Returns the model that a request under way is made of."""
        return self._asked[request_id]

    def wake(self, model: str) -> Request | None:
        """Returns the request to make of a model that has become hot, if it is to be checked."""
        canary = self._canaries.get(model)
        is_known = self._policy == "first" and self.health(model) == "healthy"
        if canary is None or self._policy == "never" or is_known:
            return None
        request_id = next(self._ids)
        self._asked[request_id] = model
        return Request(request_id, model, _work(canary))

    def hear(self, reply: Reply, vectors: Sequence[np.ndarray]) -> Verdict | None:
        """Takes what comes of a check in.

        Args:
            reply: To one of the requests.
            vectors: Of an encoder, with the end.

        Returns:
            What it has shown, once it is over; None too if it was not answered.
        """
        drawn = self._drawn.setdefault(reply.request_id, [])
        drawn += reply.tokens
        if reply.finish_reason is None and reply.failure is None:
            return None
        del self._drawn[reply.request_id]
        model = self._asked.pop(reply.request_id)
        if reply.failure is not None:
            return None
        message = _difference(self._canaries[model], drawn, vectors)
        self._health[model] = "unhealthy" if message else "healthy"
        return Verdict(model, f"model {model!r} {message}; unload it and load it again" if message else "")


def _says_something(canary: Canary) -> bool:
    return bool(canary.tokens or canary.values)


def _work(canary: Canary) -> GenerateWork | EmbedWork:
    if canary.values:
        return EmbedWork((canary.prompt,))
    return GenerateWork(canary.prompt, len(canary.tokens), Sampling(0.0, 1.0, 0, ignores_eos=True))


def _difference(canary: Canary, drawn: Sequence[int], vectors: Sequence[np.ndarray]) -> str:
    """Returns how an answer differs from the one that was recorded; "" if it does not."""
    if not canary.values:
        if tuple(drawn) == canary.tokens:
            return ""
        return f"does not answer as when its bundle was made: its canary says {drawn}, not {list(canary.tokens)}"
    positions = [position for position, _ in canary.values]
    wanted = np.array([value for _, value in canary.values])
    difference = np.abs(vectors[0][positions] - wanted).max()
    if difference <= TOLERANCE * np.abs(wanted).max():  # false for NaN
        return ""
    return f"does not answer as when its bundle was made: its canary's vector is off by {difference:.3g}"
