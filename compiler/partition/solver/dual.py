"""Dual values of a core and the bound that they prove.

Prices pay for memory row by row; messages move cost from edges to nodes. At given values nodes and edges are all
minimized on their own, and the sum of the minima, less the price of the room, is below every allowed cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .core import Core
from .solution import Message

__all__ = ["Dual", "bound_of", "messages_of"]


@dataclass(frozen=True, eq=False)
class Dual:
    """Dual values."""

    prices: np.ndarray  # [rows], not negative
    messages: np.ndarray  # for each edge one after another: to the labels of its source, to those of its target


def message_offsets(core: Core) -> np.ndarray:
    """Returns where the messages of each edge begin, [edges + 1]."""
    counts = core.num_labels
    return np.concatenate(([0], np.cumsum(counts[core.source] + counts[core.target]))).astype(np.int64)


def messages_of(core: Core, dual: Dual) -> tuple[Message, ...]:
    """Returns messages by the numbers that nodes have in the problem."""
    begin, counts = message_offsets(core), core.num_labels
    found: list[Message] = []
    for edge, (source, target) in enumerate(zip(core.source.tolist(), core.target.tolist(), strict=True)):
        middle = int(begin[edge] + counts[source])
        values = dual.messages[begin[edge] : middle], dual.messages[middle : begin[edge + 1]]
        found.append(Message(int(core.nodes[source]), int(core.nodes[target]), *values))
    return tuple(found)


def reparametrized(core: Core, dual: Dual) -> np.ndarray:
    """Returns what labels cost with prices and messages, [labels]."""
    costs, begin, counts = core.priced(dual.prices), message_offsets(core), core.num_labels
    for edge, (source, target) in enumerate(zip(core.source.tolist(), core.target.tolist(), strict=True)):
        middle = int(begin[edge] + counts[source])
        costs[core.first[source] : core.first[source + 1]] += dual.messages[begin[edge] : middle]
        costs[core.first[target] : core.first[target + 1]] += dual.messages[middle : begin[edge + 1]]
    return costs


def bound_of(core: Core, dual: Dual) -> float:
    """Returns the cost that no allowed solution goes below."""
    costs, begin, counts = reparametrized(core, dual), message_offsets(core), core.num_labels
    total = core.constant - float(dual.prices @ core.room)
    if len(core.nodes):
        total += float(np.minimum.reduceat(costs, core.first[:-1]).sum())
    for edge, source in enumerate(core.source.tolist()):
        middle = int(begin[edge] + counts[source])
        to_source, to_target = dual.messages[begin[edge] : middle], dual.messages[middle : begin[edge + 1]]
        total += float((core.edge_costs(edge) - to_source[:, None] - to_target).min())
    return total
