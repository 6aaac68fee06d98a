"""What the solver returns: an assignment, a bound, and what the bound can be checked with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["Certificate", "Infeasible", "Message", "Solution", "Status", "Step"]

Status = Literal["optimal", "feasible", "infeasible", "unknown"]


@dataclass(frozen=True)
class Step:
    """A change of the problem that keeps its optimal cost; strategies are numbered as in the problem.

    Kinds:
        prune: strategies and pairs without finite cost go, everywhere and until there are none.
        limit: strategies go that exceed the memory limit even if all other nodes use the least they can.
        fold: `node` goes, since the strategy of `other` decides its own.
        eliminate: `node` goes; its neighbours cost what it would cost at best.
        split: the edge of `node` and `other` goes, since its cost is a sum of one term for each.
        drop: strategy `first` of `node` goes, since `second` is never worse.
    """

    kind: Literal["prune", "limit", "fold", "eliminate", "split", "drop"]
    node: int | None = None
    other: int | None = None  # node
    first: int | None = None
    second: int | None = None

    def to_json(self) -> list[object]:
        """Returns the kind and the ids that it has."""
        return [self.kind, *(ids for ids in (self.node, self.other, self.first, self.second) if ids is not None)]


@dataclass(frozen=True, eq=False)
class Message:
    """Cost moved from an edge to its two nodes, of the problem that the steps leave."""

    source: int  # node
    target: int  # node
    to_source: np.ndarray  # [strategies of source that are left], ascending
    to_target: np.ndarray  # [strategies of target that are left]


@dataclass(frozen=True, eq=False)
class Certificate:
    """Dual values; `verify.sharding.bound_from_duals` gets the bound from them and the problem, and nothing else."""

    prices: dict[int, float]  # of a unit of memory, by time; not negative
    steps: tuple[Step, ...]
    messages: tuple[Message, ...]
    bound: float  # what they prove

    def to_json(self) -> dict[str, object]:
        """Returns plain data for `verify.sharding.bound_from_duals`."""
        return {
            "bound": self.bound,
            "prices": {str(time): price for time, price in self.prices.items()},
            "steps": [step.to_json() for step in self.steps],
            "messages": [
                [message.source, message.target, message.to_source.tolist(), message.to_target.tolist()]
                for message in self.messages
            ],
        }


@dataclass(frozen=True)
class Infeasible:
    """Why no assignment is allowed."""

    reason: Literal["memory", "conflict", "search"]
    text: str  # in one line
    time: int | None = None  # at which memory is short
    demand: float = 0.0  # least usage at that time
    limit: float = 0.0
    largest: tuple[tuple[int, float], ...] = ()  # nodes with their least usages at that time
    nodes: tuple[int, ...] = ()  # that no strategies suit

    @property
    def shortfall(self) -> float:
        """Usage by which the least demand exceeds the limit."""
        return max(self.demand - self.limit, 0.0)


@dataclass(frozen=True, eq=False)
class Solution:
    """The best assignment found and the best bound proved, in the unit of the problem's costs."""

    status: Status
    assignment: tuple[int, ...]  # a strategy of each node; empty if there is none
    cost: float  # infinite if there is no assignment
    lower_bound: float  # infinite if there can be none
    seconds: float
    certificate: Certificate | None  # None if infeasible
    infeasible: Infeasible | None = None

    @property
    def gap(self) -> float:
        """How far the cost may be from the best possible, relative to it; 0 if proven, infinite if nothing is known."""
        if self.status in ("optimal", "infeasible") or self.cost == self.lower_bound:
            return 0.0
        if not np.isfinite(self.cost) or not np.isfinite(self.lower_bound):
            return float("inf")
        return (self.cost - self.lower_bound) / max(abs(self.cost), 1e-300)
