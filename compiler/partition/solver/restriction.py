"""A part of a core: some nodes and some of their labels, while the other nodes keep the labels that they have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .core import Core, flatten
from .memory import Rows
from .network import Conflict, Network
from .presolve import reduce

__all__ = ["Restriction", "restrict"]


@dataclass(frozen=True, eq=False)
class Restriction:
    """A part of a core, reduced."""

    nodes: np.ndarray  # of the core that may change, ascending
    places: np.ndarray  # [nodes of the core], of those that may not
    network: Network
    core: Core

    def expand(self, places: np.ndarray) -> np.ndarray:
        """Returns labels of the whole core from those of the part."""
        numbers = self.core.numbers[self.core.first[:-1] + places].tolist()
        decoded = self.network.decode(dict(zip(self.core.nodes.tolist(), numbers, strict=True)))
        result = self.places.copy()
        result[self.nodes] = decoded
        return result


def restrict(
    core: Core, near: list[list[int]], nodes: np.ndarray, places: np.ndarray, allowed: np.ndarray, deadline: float
) -> Restriction | None:
    """Returns what is to be decided about some nodes, or None if nothing is.

    Args:
        core: The core.
        near: Edges of each node.
        nodes: That may change, ascending.
        places: [nodes of the core], labels that the others keep.
        allowed: [labels], whether a label may be chosen.
        deadline: Monotonic time after which nothing more is reduced.
    """
    place_of = {node: place for place, node in enumerate(nodes.tolist())}
    network = Network([core.costs[core.first[node] : core.first[node + 1]] for node in place_of])
    _add_edges(network, core, near, place_of, places)
    rows = _add_loads(network, core, nodes, place_of, places)
    try:
        for node, place in place_of.items():
            kept = allowed[core.first[node] : core.first[node + 1]].copy()
            kept[places[node]] = True
            network.keep(place, kept)
        network.prune(range(len(nodes)))
        reduce(network, rows, deadline)
    except Conflict:
        return None
    np.maximum(rows.room, 0.0, out=rows.room)
    return Restriction(nodes, places, network, flatten(network, rows))


def _add_edges(
    network: Network, core: Core, near: list[list[int]], place_of: dict[int, int], places: np.ndarray
) -> None:
    for node, place in place_of.items():
        for edge in near[node]:
            source, target = int(core.source[edge]), int(core.target[edge])
            other = target if source == node else source
            costs = core.edge_costs(edge)
            if other not in place_of:
                fixed = costs[:, places[target]] if source == node else costs[places[source]]
                network.costs[place] = network.costs[place] + fixed
            elif source == node:
                network.add_edge(place, place_of[target], costs)


def _add_loads(network: Network, core: Core, nodes: np.ndarray, place_of: dict[int, int], places: np.ndarray) -> Rows:
    used = core.sizes[core.load_first[:-1] + places[core.load_node]]
    is_free = np.isin(core.load_node, nodes)
    room = core.room - core.level(np.where(is_free, 0.0, used))
    for load in np.flatnonzero(is_free).tolist():
        span = int(core.load_begin[load]), int(core.load_end[load])
        sizes = core.sizes[core.load_first[load] : core.load_first[load + 1]]
        network.loads[place_of[int(core.load_node[load])]][span] = sizes
    empty = np.empty(0, np.int64)
    return Rows(core.times, room, empty, empty, core.slack)
