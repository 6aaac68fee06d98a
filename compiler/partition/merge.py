"""Repeated structure: which operations of a graph are alike and are given one decision.

A model of 126 layers has as many kinds of operations as one of 2. Operations are alike that stand at the same place of
consecutive repetitions of a stretch of the graph (`Run`), found from what the operations compute, not from names, so
that any JAX function profits; inputs are alike that alike operations read in the same way. A plan then costs the same
in the merged problem as it does in the whole one, and the search is over plans that treat all repetitions alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from jax.extend.core import Literal

from ..jaxpr_reader import FlatEquation
from ..ops.arrays import open_jaxpr
from ..trace import Traced

__all__ = ["Merged", "Run", "merge"]

_MIN_PERIOD = 4  # operations; shorter stretches repeat by chance
_MAX_PERIODS = 64  # that are tried at one place


@dataclass(frozen=True)
class Run:
    """A stretch of operations that repeats."""

    begin: int  # operation
    period: int  # operations of one repetition
    repetitions: int

    @property
    def end(self) -> int:
        """Operation behind the last repetition."""
        return self.begin + self.period * self.repetitions


@dataclass(frozen=True)
class Merged:
    """A graph's operations and inputs, grouped."""

    group_of_operation: tuple[int, ...]  # groups are numbered in the order of their first operations
    members: tuple[tuple[int, ...], ...]  # operations of each group, in order
    inputs: tuple[tuple[int, ...], ...]  # value ids of alike inputs
    runs: tuple[Run, ...]


def merge(traced: Traced) -> Merged:
    """Returns the groups of a traced graph's operations and inputs."""
    keys = _operation_keys(traced)
    runs = find_runs(keys)
    group_of_operation = _joined(traced, keys, _groups(keys, runs))
    members: list[list[int]] = [[] for _ in range(max(group_of_operation, default=-1) + 1)]
    for operation, group in enumerate(group_of_operation):
        members[group].append(operation)
    inputs = _input_groups(traced, group_of_operation)
    return Merged(tuple(group_of_operation), tuple(map(tuple, members)), inputs, runs)


def find_runs(keys: np.ndarray) -> tuple[Run, ...]:
    """Returns disjoint runs of a sequence of keys, from left to right, each the longest that begins at its place."""
    runs: list[Run] = []
    places: dict[int, np.ndarray] = {int(key): np.flatnonzero(keys == key) for key in np.unique(keys)}
    begin = 0
    while begin < len(keys):
        run = _longest_run(keys, places[int(keys[begin])], begin)
        if run is not None:
            runs.append(run)
        begin = run.end if run else begin + 1
    return tuple(runs)


def _longest_run(keys: np.ndarray, places: np.ndarray, begin: int) -> Run | None:
    best: Run | None = None
    later = places[np.searchsorted(places, begin, side="right") :][:_MAX_PERIODS]
    for period in (int(place) - begin for place in later):
        if period < _MIN_PERIOD:
            continue
        differs = np.flatnonzero(keys[begin : len(keys) - period] != keys[begin + period :])
        matches = int(differs[0]) if len(differs) else len(keys) - period - begin
        repetitions = matches // period + 1
        if repetitions > 1 and (best is None or period * repetitions > best.period * best.repetitions):
            best = Run(begin, period, repetitions)
    return best


def _groups(keys: np.ndarray, runs: tuple[Run, ...]) -> list[int]:
    """Returns the group of each operation; within a repetition, shorter runs are looked for in turn."""
    groups = [-1] * len(keys)
    number, operation = 0, 0
    starts = {run.begin: run for run in runs}
    while operation < len(keys):
        run = starts.get(operation, Run(operation, 1, 1))
        period = keys[operation : operation + run.period]
        inner = _groups(period, find_runs(period)) if run.period > 1 else [0]
        for place in range(run.period * run.repetitions):
            groups[run.begin + place] = number + inner[place % run.period]
        number += max(inner) + 1
        operation = run.end
    return groups


def _joined(traced: Traced, keys: np.ndarray, groups: list[int]) -> list[int]:
    """Joins groups that read inputs which one earlier group reads: an optimizer's updates, in whatever order."""
    producers = {value: groups[i] for i, flat in enumerate(traced.equations) for value in flat.results}
    first_reader: dict[int, int] = {}
    names: dict[Hashable, int] = {}
    renamed: dict[int, int] = {}
    for operation, flat in enumerate(traced.equations):
        if (group := groups[operation]) not in renamed:
            operands = [operand for operand in flat.operands if isinstance(operand, int)]
            readers = tuple(first_reader.get(value, -1) for value in operands)
            makers = tuple(renamed.get(producers.get(value, -1), -1) for value in operands)
            key: Hashable = (int(keys[operation]), readers, makers) if max(readers, default=-1) >= 0 else -1 - group
            renamed[group] = names.setdefault(key, len(names))
        for operand in flat.operands:
            if isinstance(operand, int) and operand not in producers:
                first_reader.setdefault(operand, renamed[group])
    return [renamed[group] for group in groups]


def _input_groups(traced: Traced, group_of_operation: list[int]) -> tuple[tuple[int, ...], ...]:
    """Groups inputs by who reads them, where, and by shape, type and kind; several uses must agree in all."""
    uses: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for operation, flat in enumerate(traced.equations):
        for position, operand in enumerate(flat.operands):
            if isinstance(operand, int):
                uses[operand].append((group_of_operation[operation], position))
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for value_id in traced.graph.inputs:
        value = traced.graph.values[value_id]
        readers = tuple(sorted(set(uses[value_id])))
        # An input that nobody reads, or that is not the same kind of thing, stands for itself.
        key: Hashable = (readers, value.shape, value.dtype, value.kind) if readers else value_id
        groups[key].append(value_id)
    return tuple(map(tuple, groups.values()))


def _operation_keys(traced: Traced) -> np.ndarray:
    """Returns a number for each operation; equal numbers compute the same from operands of the same shapes."""
    numbers: dict[Hashable, int] = {}
    bodies: dict[int, int] = {}
    values = traced.graph.values
    keys = np.empty(len(traced.equations), np.int64)
    for operation, flat in enumerate(traced.equations):
        avals = tuple((values[value].shape, values[value].dtype) for value in flat.results)
        key = (flat.equation.primitive.name, _params_key(flat, bodies), _operands_key(flat, traced), avals)
        keys[operation] = numbers.setdefault(key, len(numbers))
    return keys


def _operands_key(flat: FlatEquation, traced: Traced) -> Hashable:
    """Shape and type of each operand, and which operands are one value; literals by their value."""
    first: dict[int, int] = {}
    parts: list[Hashable] = []
    for position, operand in enumerate(flat.operands):
        if isinstance(operand, Literal):
            parts.append(repr(operand.val))
            continue
        value = traced.graph.values[operand]
        parts.append((value.shape, value.dtype, first.setdefault(operand, position), value.kind == "constant"))
    return tuple(parts)


def _params_key(flat: FlatEquation, bodies: dict[int, int]) -> Hashable:
    """Parameters of the equation; a jaxpr among them counts by its text, which is made once."""
    parts: list[Hashable] = []
    for name, param in flat.equation.params.items():
        if hasattr(open_jaxpr(param), "eqns"):
            if id(param) not in bodies:
                bodies[id(param)] = hash(str(open_jaxpr(param)))
            parts.append((name, bodies[id(param)]))
        elif name != "ctx_mesh" and not callable(param):
            parts.append((name, repr(param)))
    return tuple(parts)
