"""What a sharding problem is made of before a mesh is known: groups, who reads what how often, and live intervals.

Comes in: a `Traced`. Goes out: a `Skeleton`, from which `formulate.py` makes the problem of each mesh that is tried.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from jax.extend.core import JaxprEqn, Literal

from ..graph import Graph, Operation, Value
from ..jaxpr_reader import FlatEquation
from ..ops.sharding.rule import Rule
from ..ops.sharding.rules import derive
from ..trace import Traced
from .caches import CacheResults, cache_results
from .merge import Merged, merge

__all__ = ["Made", "OperationGroup", "Read", "Skeleton", "buffer_roots", "skeleton", "tied_outputs"]

_STORED = ("parameter", "cache", "state")


@dataclass(frozen=True)
class OperationGroup:
    """Operations that are given one decision."""

    members: tuple[int, ...]
    representative: Operation
    equation: JaxprEqn
    rule: Rule
    operand_bytes: tuple[int, ...]  # undivided; of a literal 0
    stored_operands: tuple[int, ...]  # positions of operands that are read from memory: weights, caches, state
    caches: CacheResults  # what the representative adds to


@dataclass(frozen=True, order=True)
class Made:
    """A kind of value: result `result` of an operation group, or input group `group` if `result` is None."""

    group: int
    result: int | None

    @property
    def is_input(self) -> bool:
        """Whether the graph is given it."""
        return self.result is None


@dataclass(frozen=True)
class Read:
    """Operation group `group` reads a kind of value as operand `operand`, `count` times."""

    made: Made
    group: int
    operand: int
    count: int


@dataclass(frozen=True)
class Skeleton:
    """A sharding problem without a mesh."""

    traced: Traced
    merged: Merged
    groups: tuple[OperationGroup, ...]
    input_groups: tuple[tuple[int, ...], ...]  # value ids
    values: dict[Made, Value]  # one of each kind
    members: dict[Made, tuple[int, ...]]  # all value ids of each kind
    reads: tuple[Read, ...]
    shared: tuple[Made, ...]  # results that several operations or outputs read
    free_outputs: dict[Made, int]  # kinds of values that are outputs, and how often
    tied_outputs: dict[int, int]  # by position, the input in whose buffer it is written: its value id
    tied: dict[tuple[Made, Made], int]  # (result, input): kinds of such pairs, and how many
    intervals: dict[Made, tuple[int, int, int]]  # (begin, end, live at once), in groups, of results that need memory

    @functools.cached_property
    def shared_set(self) -> frozenset[Made]:
        """The values that several operations read."""
        return frozenset(self.shared)

    @functools.cached_property
    def has_training_state(self) -> bool:
        """Whether the graph updates its parameters."""
        kinds = {self.traced.graph.values[value].kind for value in self.tied_outputs.values()}
        return not kinds.isdisjoint({"parameter", "state"})


def skeleton(traced: Traced) -> Skeleton:
    """Returns the skeleton of a traced graph."""
    merged, graph = merge(traced), traced.graph
    groups = tuple(_operation_group(traced, members) for members in merged.members)
    made = _kinds(traced, merged)
    members: dict[Made, list[int]] = defaultdict(list)
    for value, kind in made.items():
        members[kind].append(value)
    counts: Counter[tuple[Made, int, int]] = Counter()
    readers: Counter[int] = Counter()
    for operation, flat in enumerate(traced.equations):
        for position, operand in enumerate(flat.operands):
            if isinstance(operand, int) and operand in made:
                counts[made[operand], merged.group_of_operation[operation], position] += 1
        readers.update({operand for operand in flat.operands if isinstance(operand, int)})
    tied = tied_outputs(graph)
    readers.update(graph.outputs)
    free = Counter(made[value] for i, value in enumerate(graph.outputs) if i not in tied and value in made)
    ties = Counter((made[graph.outputs[i]], made[value]) for i, value in tied.items())
    return Skeleton(
        traced=traced,
        merged=merged,
        groups=groups,
        input_groups=merged.inputs,
        values={kind: graph.values[ids[0]] for kind, ids in members.items()},
        members={kind: tuple(ids) for kind, ids in members.items()},
        reads=tuple(Read(kind, group, position, count) for (kind, group, position), count in counts.items()),
        shared=tuple(sorted({made[v] for v, n in readers.items() if n > 1 and v in made and not made[v].is_input})),
        free_outputs=dict(free),
        tied_outputs=tied,
        tied={pair: count for pair, count in ties.items() if pair[0] != pair[1]},
        intervals=_intervals(traced, merged, made),
    )


def tied_outputs(graph: Graph) -> dict[int, int]:
    """Returns, by position, the outputs that are written into the buffer of an input, and that input's value id."""
    roots = buffer_roots(graph)
    inputs = set(graph.inputs)
    tied: dict[int, int] = {}
    for position, value in enumerate(graph.outputs):
        root = roots.get(value, value)
        old, new = graph.values[root], graph.values[value]
        if root in inputs and root != value and (old.shape, old.dtype) == (new.shape, new.dtype):
            tied[position] = root
    return tied


def buffer_roots(graph: Graph) -> dict[int, int]:
    """Returns of each result that lives in another value's buffer the value that made the buffer."""
    roots: dict[int, int] = {}
    for operation in graph.operations:
        pairs = [(operation.outputs[0], operation.inputs[0])] if operation.is_view else operation.updates
        for result, operand in pairs:
            roots[result] = roots.get(operand, operand)
    return roots


def _operation_group(traced: Traced, members: tuple[int, ...]) -> OperationGroup:
    flat = traced.equations[members[0]]
    values = traced.graph.values
    stored = [
        position
        for position, operand in enumerate(flat.operands)
        if isinstance(operand, int) and values[operand].kind in _STORED
    ]
    return OperationGroup(
        members=members,
        representative=traced.graph.operations[members[0]],
        equation=flat.equation,
        rule=_applied(derive(flat.equation), flat),
        operand_bytes=tuple(values[o].bytes if isinstance(o, int) else 0 for o in flat.operands),
        stored_operands=tuple(stored),
        caches=cache_results(traced.graph, traced.graph.operations[members[0]]),
    )


def _applied(rule: Rule, flat: FlatEquation) -> Rule:
    """Returns a rule as it is for the operands at hand: inside a call that was inlined, an operand may be a literal.

    Every device has all of a literal, so none is a partial sum but 0.
    """
    literals = {i: operand for i, operand in enumerate(flat.operands) if isinstance(operand, Literal)}
    zeros = {i for i, literal in literals.items() if not np.any(literal.val)}
    linear = [each - zeros for each in rule.linear]
    return replace(rule, linear=tuple(dict.fromkeys(each for each in linear if each.isdisjoint(literals))))


def _kinds(traced: Traced, merged: Merged) -> dict[int, Made]:
    """Returns the kind of each value but constants."""
    kinds: dict[int, Made] = {}
    for group, members in enumerate(merged.inputs):
        kinds.update((value, Made(group, None)) for value in members)
    for operation, flat in enumerate(traced.equations):
        group = merged.group_of_operation[operation]
        kinds.update((value, Made(group, result)) for result, value in enumerate(flat.results))
    return kinds


def _intervals(traced: Traced, merged: Merged, made: dict[int, Made]) -> dict[Made, tuple[int, int, int]]:
    """Returns when results need memory. Views and updates in place need none; they keep their buffer's root alive."""
    graph = traced.graph
    roots = buffer_roots(graph)
    groups = (*merged.group_of_operation, len(merged.members))  # who takes the outputs is behind the last group
    readers: dict[int, list[int]] = defaultdict(list)
    for operation in graph.operations:
        for value in operation.inputs:
            readers[roots.get(value, value)].append(operation.id)
    for value in graph.outputs:
        readers[roots.get(value, value)].append(len(graph.operations))
    spans: dict[Made, list[tuple[int, int]]] = defaultdict(list)
    ends: dict[Made, set[int]] = defaultdict(set)
    for operation in graph.operations:
        for value in operation.outputs:
            if value in roots:
                continue
            kind, last = made[value], max(readers[value], default=operation.id)
            spans[kind].append((operation.id, last + 1))
            ends[kind] |= {groups[reader] for reader in readers[value]}
    return {kind: _interval(kind.group, ends[kind], spans[kind]) for kind in spans}


def _interval(group: int, readers: set[int], spans: Iterable[tuple[int, int]]) -> tuple[int, int, int]:
    # A reader before its maker is one of the next repetition: the value lives across the end of its own.
    begin, end = min((group, *readers)), max((group, *readers)) + 1
    changes = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    live = most = 0
    for _, change in changes:
        live += change
        most = max(most, live)
    return begin, end, most
