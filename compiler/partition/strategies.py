"""Strategies: all ways in which a rule, or an input, can be divided over a mesh.

Each mesh axis divides one factor of the operation, or passes partial sums on, or leaves the operation to be computed
on every device alike. All axes are decided together, so that a strategy may divide rows over one axis, columns over the
next, and one of them over both.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TypeAlias

from ..mesh import Layout, Mesh
from ..ops.sharding.rule import Rule
from .plan import OperationSharding

__all__ = ["divided_factors", "input_layouts", "operation_strategies"]

_MAX_FACTORS = 6  # that are looked at: strategies grow as a power of them

# Of an axis: a factor, two that it exchanges, the operands whose partial sums pass, or none of these.
_Choice: TypeAlias = int | tuple[int, int] | frozenset[int] | None


def operation_strategies(rule: Rule, mesh: Mesh) -> tuple[OperationSharding, ...]:
    """Returns every way to divide an operation, whole first.

    An axis is given to a factor only if the factor's size divides; a factor's axes are in the order of the mesh.
    """
    factors = divided_factors(rule)
    choices: list[_Choice] = [None, *factors, *rule.exchanges, *rule.linear]
    found: dict[OperationSharding, None] = {}
    for choice in itertools.product(choices, repeat=len(mesh.axes)):
        strategy = _strategy(rule, mesh, choice)
        if strategy is not None:
            found[strategy] = None
    return tuple(found)


def divided_factors(rule: Rule) -> list[int]:
    """Returns the factors to divide: of many, those of which most elements depend."""
    free = [factor for factor, size in enumerate(rule.sizes) if factor not in rule.blocked and size > 1]
    if len(free) <= _MAX_FACTORS:
        return free
    elements = dict.fromkeys(free, 0)
    for access in (*rule.operands, *rule.results):
        held = [factor for dim in access.dims for factor in dim]
        for factor in elements.keys() & set(held):
            elements[factor] += math.prod(rule.sizes[each] for each in held)
    return sorted(sorted(free, key=lambda factor: -elements[factor])[:_MAX_FACTORS])


def _strategy(rule: Rule, mesh: Mesh, choice: tuple[_Choice, ...]) -> OperationSharding | None:
    axes: list[tuple[str, ...]] = [()] * len(rule.sizes)
    passed: list[tuple[str, frozenset[int]]] = []
    for axis, chosen in zip(mesh.axes, choice, strict=True):
        if isinstance(chosen, int | tuple):
            for factor in (chosen,) if isinstance(chosen, int) else chosen:
                axes[factor] = (*axes[factor], axis)
        elif chosen is not None:
            passed.append((axis, chosen))
    if any(size % mesh.num_shards(own) for size, own in zip(rule.sizes, axes, strict=True) if own):
        return None
    assigned = tuple(axes)
    operands = tuple(
        _passing(rule.layout(access, assigned), [axis for axis, operands in passed if position in operands])
        for position, access in enumerate(rule.operands)
    )
    passed_axes = [axis for axis, _ in passed]
    results = tuple(_passing(rule.layout(access, assigned), passed_axes) for access in rule.results)
    if passed and any(how != "sum" for access in rule.results for _, how in access.partial):
        return None
    return OperationSharding(assigned, tuple(sorted(passed_axes)), operands, results)


def _passing(layout: Layout, axes: list[str]) -> Layout:
    if not axes:
        return layout
    partial = [*layout.partial, *((axis, "sum") for axis in axes)]
    return Layout(layout.dims, tuple(sorted(partial, key=str)))  # type: ignore[arg-type]


def input_layouts(shape: tuple[int, ...], mesh: Mesh) -> tuple[Layout, ...]:
    """Returns every layout of an array in which its dims divide, whole first; a dim's axes are in mesh order."""
    return tuple(_input_layouts(shape, mesh))


def _input_layouts(shape: tuple[int, ...], mesh: Mesh) -> Iterator[Layout]:
    for choice in itertools.product((None, *range(len(shape))), repeat=len(mesh.axes)):
        dims: list[tuple[str, ...]] = [()] * len(shape)
        for axis, dim in zip(mesh.axes, choice, strict=True):
            if dim is not None:
                dims[dim] = (*dims[dim], axis)
        layout = Layout(tuple(dims))
        if layout.fits(shape, mesh):
            yield layout
