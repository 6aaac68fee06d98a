"""Whom to evict: an order of victims from predicted next use, bytes and the cost of coming back.

Comes in: the stream of requests, model by model. Goes out: how likely each model is to be the next one that is asked
for, and from that an order of victims. There is no clock: what counts as recent is counted in requests, so equal
streams give equal orders, whatever their speed.

The prediction is a conditional logit, learned online. A model's features are the logarithms of its place among the
models by last use (alone, that is LRU) and of its counts of requests, decayed with half-lives of 2, 8, 32, 128 and 512
requests (each alone is LRFU, Lee et al. 2001). The chance to be next is a softmax over a weighted sum of them; the
weights are shared by all models and move along the gradient of the likelihood whenever the stream turns to another
model. So the policy finds out by itself whether recency or frequency tells more, and a weight below zero makes it give
up what has just been used, as a scan over too many models wants it. What else was tried is in this folder's README.

What a victim costs is its chance to be asked for times the seconds that it takes to come back; what it gives is its
bytes. Victims go in the order of cost by byte, as in GreedyDual-Size (Cao and Irani 1997).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

__all__ = ["EvictionPolicy", "Stake"]

_HALF_LIVES = (2, 8, 32, 128, 512)  # requests
_LEARNING_RATE = 0.1
_FLOOR = 1e-3  # of a count, beside which less is as good as nothing
_URGENCY_HALF_LIFE = 8  # requests of the model itself
_MAX_PRIORITY = 8  # classes further from 0 count like this one
_MAX_UNREAD = 1024  # requests that are learned from when somebody asks


@dataclass(frozen=True)
class Stake:
    """What evicting a model gives, and what it costs if it is asked for again."""

    num_bytes: int  # that become free
    reload_seconds: float  # until it is back


class EvictionPolicy:
    """Learns from requests which models will be asked for.

    Args:
        models: Names of all models.
    """

    def __init__(self, models: Sequence[str]) -> None:
        self._index = {name: index for index, name in enumerate(models)}
        self._decay = 0.5 ** (1 / np.array(_HALF_LIVES, dtype=np.float64))
        self._counts: Float[np.ndarray, "models lives"] = np.zeros((len(models), len(_HALF_LIVES)))
        self._places: NDArray[np.int64] = np.arange(len(models), dtype=np.int64)  # by last use, the latest first
        self._weights = np.array([0.0, *(1 / len(_HALF_LIVES) for _ in _HALF_LIVES)])
        self._squares = np.full(len(self._weights), 1e-2)  # of gradients so far: AdaGrad's step sizes
        self._urgency = [1.0] * len(models)
        self._bars = np.full(len(models), -np.inf)  # models that have never been asked for teach nothing; 0: has been
        self._asked: set[int] = set()  # models whose bar is 0
        self._known: Float[np.ndarray, "models features"] = np.zeros((len(models), len(self._weights)))
        self._last: int | None = None
        self._unread: list[tuple[int, int]] = []  # (model, priority) of requests since somebody last asked

    def observe(self, model: str, priority: int = 0) -> None:
        """Takes note of a request.

        Args:
            model: Which one it asks for.
            priority: Its class; one that comes after another counts half as much.
        """
        self._unread.append((self._index[model], priority))
        if len(self._unread) == 2 * _MAX_UNREAD:
            self._count(self._unread[:_MAX_UNREAD])
            del self._unread[:_MAX_UNREAD]

    def _read(self) -> None:
        """Learns from what was observed. While all models have room nobody asks, and nothing is learned."""
        for index, priority in self._unread:
            self._learn_from(index, priority)
        self._unread.clear()

    def _count(self, requests: Sequence[tuple[int, int]]) -> None:
        """Counts requests without learning from them."""
        indices = np.array([index for index, _ in requests])
        ages = np.arange(len(indices) - 1, -1, -1)
        self._counts *= self._decay ** len(indices)
        np.add.at(self._counts, indices, self._decay ** ages[:, None])
        latest = dict.fromkeys(indices[::-1].tolist())
        others = (index for index in np.argsort(self._places).tolist() if index not in latest)
        for place, index in enumerate([*latest, *others]):
            self._places[index] = place
        for index, priority in requests:
            self._count_urgency(index, priority)
        self._asked.update(latest)
        self._bars[indices] = 0
        self._last = int(indices[-1])

    def _learn_from(self, index: int, priority: int) -> None:
        if index in self._asked:
            if index != self._last:
                self._learn(index)
        else:
            self._asked.add(index)
            self._bars[index] = 0
        self._counts *= self._decay
        self._counts[index] += 1
        if index != self._last:
            self._places += self._places < self._places[index]
            self._places[index] = 0
        self._count_urgency(index, priority)
        self._last = index

    def _count_urgency(self, index: int, priority: int) -> None:
        weight = 0.5 ** min(max(priority, -_MAX_PRIORITY), _MAX_PRIORITY)
        self._urgency[index] += (weight - self._urgency[index]) * (1 - 0.5 ** (1 / _URGENCY_HALF_LIFE))

    def chances(self) -> dict[str, float]:
        """Returns of each model the chance that it is the next one asked for, after the one that was asked for last.

        That one's own chance is as if it had not been the last.
        """
        self._read()
        scores = self._features() @ self._weights
        odds = np.exp(scores - scores.max())
        others = odds.sum() - (0 if self._last is None else odds[self._last])
        return {name: float(odds[i] / max(others, odds[i])) for name, i in self._index.items()}

    def costs(self, stakes: Mapping[str, Stake]) -> dict[str, float]:
        """Returns of each of these models the seconds that its eviction is expected to cost at the next turn."""
        chances = self.chances()
        return {
            name: chances[name] * self._urgency[self._index[name]] * stake.reload_seconds
            for name, stake in stakes.items()
        }

    def order(self, stakes: Mapping[str, Stake], steps: Mapping[str, int] | None = None) -> list[str]:
        """Returns models in the order in which they should go.

        Args:
            stakes: Of the models in question.
            steps: Of models that are known to follow, how many turns ahead: they go last, the nearest at the very end.
        """
        costs, steps = self.costs(stakes), steps or {}

        def rank(name: str) -> tuple[float, float, str]:
            return -steps.get(name, np.inf), costs[name] / max(stakes[name].num_bytes, 1), name

        return sorted(stakes, key=rank)

    def _features(self) -> Float[np.ndarray, "models features"]:
        np.negative(np.log1p(self._places), out=self._known[:, 0])
        np.log(self._counts + _FLOOR, out=self._known[:, 1:])
        return self._known

    def _learn(self, index: int) -> None:
        """Moves the weights towards those that would have told that this model comes next."""
        features = self._features()
        scores = features @ self._weights + self._bars
        scores[self._last] = -np.inf
        odds = np.exp(scores - np.maximum.reduce(scores))
        gradient = features[index] - odds @ features / np.add.reduce(odds)
        self._squares += gradient**2
        self._weights += _LEARNING_RATE * gradient / np.sqrt(self._squares)
