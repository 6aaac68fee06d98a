"""Inner loops over a core's arrays, compiled by numba when first called (and kept on disk, if that can be written).

Only large cores come here: what is small never pays for the compiler.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...compiled import compiled

__all__ = ["Memory", "Pairs", "improve", "improve_pairs", "pass_messages", "round_messages"]


class Pairs(NamedTuple):
    """Nodes and edges."""

    first: np.ndarray  # [nodes + 1], first label of each node
    source: np.ndarray  # [edges], node
    target: np.ndarray  # [edges], node
    entry: np.ndarray  # [edges + 1], first entry of each edge
    entries: np.ndarray  # [entries], costs of pairs
    message: np.ndarray  # [edges + 1], first message of each edge: those to its source, then those to its target
    near_first: np.ndarray  # [nodes + 1], first of each node's edges in `near`
    near: np.ndarray  # [2 * edges], edges of each node


class Memory(NamedTuple):
    """What labels use, and of what."""

    of: np.ndarray  # [nodes + 1], first load of each node
    begin: np.ndarray  # [loads], row
    end: np.ndarray  # [loads], row behind the last
    first: np.ndarray  # [loads + 1], first size of each load
    sizes: np.ndarray  # of each label of each load
    room: np.ndarray  # [rows]; infinite where memory does not count
    usage: np.ndarray  # [rows]


@compiled
def pass_messages(
    pairs: Pairs, costs: np.ndarray, messages: np.ndarray, beliefs: np.ndarray, is_forward: bool, is_last: bool
) -> float:
    """One pass of sequential tree-reweighted message passing (TRW-S) over all nodes; returns the sum of the minima.

    Args:
        pairs: Nodes and edges.
        costs: [labels], with prices.
        messages: Changed.
        beliefs: [labels], overwritten by costs with all messages, as each node had them when it was its turn.
        is_forward: Whether nodes come in ascending order.
        is_last: Whether what a node gives to edges is to be taken off its messages: then the messages prove the
            returned sum. Otherwise they can be passed on.
    """
    num_nodes = len(pairs.first) - 1
    total = 0.0
    for step in range(num_nodes):
        node = step if is_forward else num_nodes - 1 - step
        base, count = int(pairs.first[node]), int(pairs.first[node + 1] - pairs.first[node])
        belief = beliefs[base : base + count]
        belief[:] = costs[base : base + count]
        num_ahead = _receive(pairs, node, messages, belief, is_forward)
        num_near = int(pairs.near_first[node + 1] - pairs.near_first[node])
        share = 1.0 / max(num_ahead, num_near - num_ahead, 1)
        if num_ahead * share < 1.0:
            total += (1.0 - num_ahead * share) * belief.min()
        for place in range(pairs.near_first[node], pairs.near_first[node + 1]):
            edge = int(pairs.near[place])
            if (_other(pairs, edge, node) > node) == is_forward:
                _send(pairs, edge, node, share, messages, belief, is_last)
    return total


@compiled
def _other(pairs: Pairs, edge: int, node: int) -> int:
    return int(pairs.source[edge] + pairs.target[edge]) - node


@compiled
def _own_message(pairs: Pairs, edge: int, node: int) -> int:
    """Where the messages to one of an edge's nodes begin."""
    count = int(pairs.first[node + 1] - pairs.first[node])
    return int(pairs.message[edge]) if pairs.source[edge] == node else int(pairs.message[edge + 1]) - count


@compiled
def _receive(pairs: Pairs, node: int, messages: np.ndarray, belief: np.ndarray, is_forward: bool) -> int:
    """Adds a node's messages to its belief and returns the number of edges to nodes that come later."""
    num_ahead = 0
    for place in range(pairs.near_first[node], pairs.near_first[node + 1]):
        edge = int(pairs.near[place])
        start = _own_message(pairs, edge, node)
        for label in range(len(belief)):
            belief[label] += messages[start + label]
        if (_other(pairs, edge, node) > node) == is_forward:
            num_ahead += 1
    return num_ahead


@compiled
def _send(
    pairs: Pairs, edge: int, node: int, share: float, messages: np.ndarray, belief: np.ndarray, is_last: bool
) -> None:
    """Gives a share of a node's belief to an edge, and what it makes of it to the other node."""
    other = _other(pairs, edge, node)
    count, num_other = len(belief), int(pairs.first[other + 1] - pairs.first[other])
    own, to, base = _own_message(pairs, edge, node), _own_message(pairs, edge, other), int(pairs.entry[edge])
    given = np.empty(count)
    for label in range(count):
        given[label] = share * belief[label] - messages[own + label]
        if is_last:
            messages[own + label] = -given[label]
    if pairs.source[edge] == node:
        for far in range(num_other):
            messages[to + far] = np.inf
        for label in range(count):
            row = base + label * num_other
            for far in range(num_other):
                value = pairs.entries[row + far] + given[label]
                if value < messages[to + far]:
                    messages[to + far] = value
        return
    for far in range(num_other):
        row = base + far * count
        least = np.inf
        for label in range(count):
            value = pairs.entries[row + label] + given[label]
            if value < least:
                least = value
        messages[to + far] = least


@compiled
def round_messages(pairs: Pairs, costs: np.ndarray, messages: np.ndarray, places: np.ndarray, is_forward: bool) -> None:
    """Chooses labels node by node: cheapest with the neighbours that have one already and the messages of the others.

    Args:
        pairs: Nodes and edges.
        costs: [labels], with prices.
        messages: After a pass in the other direction.
        places: [nodes], overwritten.
        is_forward: Whether nodes come in ascending order.
    """
    num_nodes = len(pairs.first) - 1
    for step in range(num_nodes):
        node = step if is_forward else num_nodes - 1 - step
        values = costs[pairs.first[node] : pairs.first[node + 1]].copy()
        for place in range(pairs.near_first[node], pairs.near_first[node + 1]):
            edge = int(pairs.near[place])
            other = _other(pairs, edge, node)
            if (other > node) == is_forward:
                start = _own_message(pairs, edge, node)
                values += messages[start : start + len(values)]
            else:
                _add_pair(pairs, values, edge, node, other, int(places[other]))
        places[node] = values.argmin()


@compiled
def _add_pair(pairs: Pairs, values: np.ndarray, edge: int, node: int, other: int, far: int) -> None:
    """Adds what an edge costs with the other node's label."""
    count, base = len(values), int(pairs.entry[edge])
    num_other = int(pairs.first[other + 1] - pairs.first[other])
    for label in range(count):
        place = label * num_other + far if pairs.source[edge] == node else far * count + label
        values[label] += pairs.entries[base + place]


@compiled
def _values(pairs: Pairs, costs: np.ndarray, places: np.ndarray, node: int) -> np.ndarray:
    """What each label of a node costs with its neighbours as they are."""
    values = costs[pairs.first[node] : pairs.first[node + 1]].copy()
    for place in range(pairs.near_first[node], pairs.near_first[node + 1]):
        edge = int(pairs.near[place])
        other = _other(pairs, edge, node)
        _add_pair(pairs, values, edge, node, other, int(places[other]))
    return values


@compiled
def _use(memory: Memory, node: int, old: int, new: int) -> None:
    """Changes the usage of rows from one label of a node to another."""
    for load in range(memory.of[node], memory.of[node + 1]):
        change = memory.sizes[memory.first[load] + new] - memory.sizes[memory.first[load] + old]
        if change != 0.0:
            for row in range(memory.begin[load], memory.end[load]):
                memory.usage[row] += change


@compiled
def _fits(memory: Memory, node: int, old: int, new: int) -> bool:
    """Whether the rows in which a change of label used more are within their room."""
    for load in range(memory.of[node], memory.of[node + 1]):
        if memory.sizes[memory.first[load] + new] > memory.sizes[memory.first[load] + old]:
            for row in range(memory.begin[load], memory.end[load]):
                if memory.usage[row] > memory.room[row]:
                    return False
    return True


@compiled
def improve(
    pairs: Pairs, costs: np.ndarray, memory: Memory, places: np.ndarray, order: np.ndarray, margin: float
) -> int:
    """Moves single nodes to cheaper labels that leave no row fuller than its room; returns the number of moves.

    Rows that are too full already do not hinder a move that uses no more of them.

    Args:
        pairs: Nodes and edges.
        costs: [labels], with or without prices.
        memory: Its usage is changed.
        places: [nodes], changed.
        order: Nodes to try.
        margin: Gain below which nothing moves.
    """
    num_moves = 0
    for turn in range(len(order)):
        node = int(order[turn])
        values = _values(pairs, costs, places, node)
        old = int(places[node])
        limit = values[old] - margin
        while True:
            new = int(values.argmin())
            if not values[new] < limit:
                break
            values[new] = np.inf
            _use(memory, node, old, new)
            if _fits(memory, node, old, new):
                places[node] = new
                num_moves += 1
                break
            _use(memory, node, new, old)
    return num_moves


@compiled
def improve_pairs(
    pairs: Pairs, costs: np.ndarray, memory: Memory, places: np.ndarray, order: np.ndarray, margin: float
) -> int:
    """Moves both nodes of an edge at once, as `improve` does single ones; `order` is of edges."""
    num_moves = 0
    for turn in range(len(order)):
        edge = int(order[turn])
        one, two = int(pairs.source[edge]), int(pairs.target[edge])
        old_one, old_two = int(places[one]), int(places[two])
        new_one, new_two = _best_pair(pairs, costs, places, edge, margin)
        if new_one < 0:
            continue
        _use(memory, one, old_one, new_one)
        _use(memory, two, old_two, new_two)
        if _fits(memory, one, old_one, new_one) and _fits(memory, two, old_two, new_two):
            places[one], places[two] = new_one, new_two
            num_moves += 1
        else:
            _use(memory, one, new_one, old_one)
            _use(memory, two, new_two, old_two)
    return num_moves


@compiled
def _best_pair(pairs: Pairs, costs: np.ndarray, places: np.ndarray, edge: int, margin: float) -> tuple[int, int]:
    """Cheapest new labels of an edge's nodes, both different from the old ones; -1 if none saves the margin."""
    one, two, base = int(pairs.source[edge]), int(pairs.target[edge]), int(pairs.entry[edge])
    ones, twos = _values(pairs, costs, places, one), _values(pairs, costs, places, two)
    old_one, old_two, width = int(places[one]), int(places[two]), len(twos)
    best = ones[old_one] + twos[old_two] - pairs.entries[base + old_one * width + old_two] - margin
    best_one, best_two = -1, -1
    for label in range(len(ones)):
        rest = ones[label] - pairs.entries[base + label * width + old_two]
        if label == old_one or not rest < np.inf:  # an infinite cost may come from the old label, which is to go
            continue
        for far in range(width):
            value = rest + twos[far] - pairs.entries[base + old_one * width + far]
            value += pairs.entries[base + label * width + far]
            if far != old_two and value < best:
                best, best_one, best_two = value, label, far
    return best_one, best_two
