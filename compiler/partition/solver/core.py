"""What presolve leaves, as flat arrays: the form that the bound, the search and the programs work on.

Strategies ("labels") of all nodes stand one after another, and so do the entries of all edges' matrices, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .memory import Rows
from .network import Network

__all__ = ["Core", "flatten", "ranges"]


@dataclass(frozen=True, eq=False)
class Core:
    """A problem of nodes, pairwise costs and memory rows."""

    nodes: np.ndarray  # [nodes], number in the problem
    first: np.ndarray  # [nodes + 1], first label of each node
    costs: np.ndarray  # [labels]
    numbers: np.ndarray  # [labels], strategy in the problem
    source: np.ndarray  # [edges], node
    target: np.ndarray  # [edges], node
    entry: np.ndarray  # [edges + 1], first entry of each edge
    entries: np.ndarray  # [entries], [source label, target label] of each edge
    load_node: np.ndarray  # [loads], node
    load_begin: np.ndarray  # [loads], row
    load_end: np.ndarray  # [loads], row behind the last
    load_first: np.ndarray  # [loads + 1], place of the first size
    sizes: np.ndarray  # [sum of labels of loads' nodes]
    room: np.ndarray  # [rows]
    times: np.ndarray  # [rows]
    slack: float  # by which a sum of sizes may exceed the room
    constant: float  # cost of what is not in the core

    @cached_property
    def load_label(self) -> np.ndarray:
        """Label that each size is of, [sum of labels of loads' nodes]."""
        return ranges(self.first[self.load_node], np.diff(self.load_first))

    @cached_property
    def num_labels(self) -> np.ndarray:
        """Labels of each node, [nodes]."""
        return np.diff(self.first)

    def edge_costs(self, edge: int) -> np.ndarray:
        """Returns the matrix of an edge, [labels of source, labels of target]."""
        shape = (int(self.num_labels[self.source[edge]]), int(self.num_labels[self.target[edge]]))
        return self.entries[self.entry[edge] : self.entry[edge + 1]].reshape(shape)

    def cost(self, places: np.ndarray) -> float:
        """Returns the cost of one label for each node, by its place among the node's labels."""
        width = self.num_labels[self.target]
        pairs = self.entry[:-1] + places[self.source] * width + places[self.target]
        return self.constant + float(self.costs[self.first[:-1] + places].sum() + self.entries[pairs].sum())

    def fits(self, places: np.ndarray) -> bool:
        """Whether one label for each node keeps within the room."""
        return bool((self.usage(places) <= self.room + self.slack).all())

    def usage(self, places: np.ndarray) -> np.ndarray:
        """Returns what one label for each node uses of the room, [rows]."""
        return self.level(self.sizes[self.load_first[:-1] + places[self.load_node]])

    def level(self, sizes: np.ndarray) -> np.ndarray:
        """Returns the sum of one size for each load over the rows in which it is live, [rows]."""
        num = len(self.room) + 1
        steps = np.bincount(self.load_begin, sizes, minlength=num) - np.bincount(self.load_end, sizes, minlength=num)
        return np.cumsum(steps)[:-1]

    def priced(self, prices: np.ndarray) -> np.ndarray:
        """Returns the cost of each label with what it uses at a price for each row, [labels]."""
        total = np.concatenate(([0.0], np.cumsum(prices)))
        price = total[self.load_end] - total[self.load_begin]
        counts = np.diff(self.load_first)
        paid = np.bincount(self.load_label, self.sizes * np.repeat(price, counts), minlength=len(self.costs))
        return self.costs + paid


def flatten(network: Network, rows: Rows) -> Core:
    """Returns a network as arrays, with the rows that its loads can exceed."""
    nodes = network.nodes()
    place = {node: number for number, node in enumerate(nodes)}
    pairs = [(node, other) for node in nodes for other in network.edges[node] if node < other]
    matrices = [network.edges[node][other].ravel() for node, other in pairs]
    loads = [(place[node], *span, sizes) for node in nodes for span, sizes in network.loads[node].items()]
    kept = _binding(loads, rows)
    renumbered = np.concatenate(([0], np.cumsum(kept)))
    spans = [(node, int(renumbered[begin]), int(renumbered[end]), sizes) for node, begin, end, sizes in loads]
    spans = _merged([span for span in spans if span[1] < span[2]])
    return Core(
        nodes=np.array(nodes, np.int64),
        first=_offsets([len(network.labels[node]) for node in nodes]),
        costs=_joined([network.costs[node] for node in nodes]),
        numbers=np.concatenate([network.labels[node] for node in nodes]) if nodes else np.empty(0, np.int64),
        source=np.array([place[node] for node, _ in pairs], np.int64),
        target=np.array([place[other] for _, other in pairs], np.int64),
        entry=_offsets([matrix.size for matrix in matrices]),
        entries=_joined(matrices),
        load_node=np.array([span[0] for span in spans], np.int64),
        load_begin=np.array([span[1] for span in spans], np.int64),
        load_end=np.array([span[2] for span in spans], np.int64),
        load_first=_offsets([span[3].size for span in spans]),
        sizes=_joined([span[3] for span in spans]),
        room=rows.room[kept],
        times=rows.times[kept],
        slack=rows.slack,
        constant=network.constant,
    )


def _binding(loads: list[tuple[int, int, int, np.ndarray]], rows: Rows) -> np.ndarray:
    """Rows that the loads can exceed and that are no other's part."""
    room = rows.room
    most = np.zeros(len(room) + 1)
    begins, ends = np.zeros(len(room) + 1, np.int64), np.zeros(len(room) + 1, np.int64)
    for _, begin, end, sizes in loads:
        most[begin] += sizes.max()
        most[end] -= sizes.max()
        begins[begin] += 1
        ends[end] += 1
    kept = np.cumsum(most)[:-1] > room + rows.slack
    begins, ends = np.cumsum(begins), np.cumsum(ends)
    last: list[int] = []
    for row in np.flatnonzero(kept).tolist():
        while last and ends[row] == ends[last[-1]] and room[row] <= room[last[-1]]:
            kept[last.pop()] = False
        if last and begins[row] == begins[last[-1]] and room[last[-1]] <= room[row]:
            kept[row] = False
        else:
            last.append(row)
    return kept


def _merged(spans: list[tuple[int, int, int, np.ndarray]]) -> list[tuple[int, int, int, np.ndarray]]:
    merged: dict[tuple[int, int, int], np.ndarray] = {}
    for node, begin, end, sizes in spans:
        merged[node, begin, end] = merged.get((node, begin, end), 0.0) + sizes
    return [(*span, sizes) for span, sizes in merged.items()]


def ranges(begin: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns `counts[i]` numbers from `begin[i]` on, for each i, one after another."""
    total = np.concatenate(([0], np.cumsum(counts)))
    return np.arange(int(total[-1])) + np.repeat(begin - total[:-1], counts)


def _offsets(counts: list[int]) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(np.array(counts, np.int64)))).astype(np.int64)


def _joined(pieces: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(pieces).astype(np.float64) if pieces else np.empty(0)
