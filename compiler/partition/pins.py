"""Pins: layouts that a user gives, as PATTERN=AXES.

PATTERN is a glob over the names of inputs (`layers.*.mlp.up.weight`) and of operations: their path (`layers.*/mlp`),
their path and name (`layers.*/mlp/linear`), and, where several have the same, their number among these
(`layers.*/mlp/linear#2`); an operation is pinned at its first result. A name that is an
input's means the input only. AXES has an entry for each dim, with
commas between: `-` for a dim that stays whole, or mesh axes joined by `*`; `whole` leaves all dims whole.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase

from ...errors import ConfigurationError
from ..graph import Graph, Operation, Value
from ..mesh import Layout, Mesh, whole
from ..trace import Traced
from .result import Partition

__all__ = ["layouts_of", "matching_values", "operation_names", "parse_mesh", "resolve_pins"]

_AXES = ("x", "y", "z", "w")


def parse_mesh(text: str) -> Mesh:
    """Returns the mesh that `2x4` or `data=2,tensor=4` stands for.

    Raises:
        ConfigurationError: if it stands for none.
    """
    named = [part.partition("=") for part in text.split(",")] if "=" in text else []
    names = [name for name, _, _ in named] or list(_AXES)
    sizes = [size for _, _, size in named] or text.split("x")
    good = all(size.isascii() and size.isdigit() and 1 < int(size) <= 1 << 16 for size in sizes)
    if not good or len(sizes) > len(names) or len(set(names)) < len(names) or not all(map(str.isidentifier, names)):
        raise ConfigurationError(
            f"mesh {text!r} is none: write sizes of 2 and more, as 2x4 (up to four), or named, as data=2,tensor=4"
        )
    return Mesh(tuple(names[: len(sizes)]), tuple(map(int, sizes)))


def resolve_pins(graph: Graph, pins: Sequence[tuple[str, str]], mesh: Mesh | None) -> dict[int, tuple[Layout, ...]]:
    """Returns the layout of each value that a pin names, by value id.

    Args:
        graph: The graph.
        pins: Patterns and axes.
        mesh: What the axes are of; None allows `whole` only.

    Raises:
        ConfigurationError: if a pattern names nothing, or axes don't fit the mesh or the value.
    """
    names = _names(graph) if pins else {}
    resolved: dict[int, tuple[Layout, ...]] = {}
    for pattern, axes in pins:
        for value in _matching(names, pattern, "pin"):
            resolved[value] = (_layout(graph.values[value], pattern, axes, mesh),)
    return resolved


def matching_values(graph: Graph, pattern: str) -> tuple[int, ...]:
    """Returns the inputs, and the first results of the operations, that a pattern names.

    Args:
        graph: The graph.
        pattern: As of a pin.

    Raises:
        ConfigurationError: if it names nothing; the message has the closest names.
    """
    return tuple(dict.fromkeys(_matching(_names(graph), pattern, "pattern")))


def _matching(names: dict[str, list[int]], pattern: str, what: str) -> list[int]:
    matching = [values for name, values in names.items() if fnmatchcase(name, pattern)]
    if not matching:
        close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
        hint = f"; close: {', '.join(close)}" if close else ""
        raise ConfigurationError(f"{what} {pattern!r} names no input and no operation{hint}")
    return [value for values in matching for value in values]


def operation_names(graph: Graph) -> tuple[str, ...]:
    """Returns a name for each operation that no other has: path, name and, where that is not enough, a number."""
    names = [_name(operation) for operation in graph.operations]
    total, seen = Counter(names), Counter[str]()
    unique: list[str] = []
    for name in names:
        seen[name] += 1
        unique.append(f"{name}#{seen[name]}" if total[name] > 1 else name)
    return tuple(unique)


def _name(operation: Operation) -> str:
    return f"{operation.path}/{operation.name}" if operation.path else operation.name


def _names(graph: Graph) -> dict[str, list[int]]:
    names: dict[str, list[int]] = {}
    for value in graph.inputs:
        names.setdefault(graph.values[value].name, []).append(value)
    inputs = frozenset(names)
    for operation, unique in zip(graph.operations, operation_names(graph), strict=True):
        for name in dict.fromkeys((operation.path, _name(operation), unique)):
            if name and name not in inputs:
                names.setdefault(name, []).extend(operation.outputs[:1])
    return names


def _layout(value: Value, pattern: str, axes: str, mesh: Mesh | None) -> Layout:
    if axes == "whole":
        return whole(len(value.shape))
    if mesh is None:
        raise ConfigurationError(f"pin {pattern}={axes} names axes, so the mesh must be given (--mesh)")
    dims = tuple(() if dim == "-" else tuple(dim.split("*")) for dim in axes.split(","))
    used = [axis for dim in dims for axis in dim]
    if len(dims) != len(value.shape):
        raise ConfigurationError(
            f"pin {pattern}={axes} has {len(dims)} dims; {value.name or 'the result'} has {list(value.shape)}"
        )
    if unknown := sorted(set(used) - set(mesh.axes)) or len(set(used)) < len(used):
        what = f"axis {unknown[0]!r} is none of the mesh" if isinstance(unknown, list) else "an axis is used twice"
        raise ConfigurationError(f"pin {pattern}={axes}: {what}; it has {', '.join(mesh.axes)}")
    layout = Layout(tuple(tuple(axis for axis in mesh.axes if axis in dim) for dim in dims))
    if not layout.fits(value.shape, mesh):
        raise ConfigurationError(f"pin {pattern}={axes} does not divide {list(value.shape)} evenly over {mesh}")
    return layout


def layouts_of(traced: Traced, other: Traced, plan: Partition) -> dict[int, tuple[Layout, ...]]:
    """Returns pins that give a step's parameters and caches, before and after it, the layouts of another step's.

    Args:
        traced: The step.
        other: Another step of the same model.
        plan: How that one is divided.
    """
    graph, theirs = traced.graph, other.graph
    layouts = {
        theirs.values[value].name: layout
        for value, layout in zip(theirs.inputs, plan.sharding.inputs, strict=True)
        if theirs.values[value].kind in ("parameter", "cache")
    }
    pins = {
        value: (layouts[about.name],)
        for value in graph.inputs
        if (about := graph.values[value]).name in layouts and layouts[about.name].fits(about.shape, plan.mesh)
    }
    caches = [value for value in graph.inputs if graph.values[value].kind == "cache"]
    after = zip(caches, graph.outputs[1:], strict=True) if caches else ()
    pins.update((result, pins[value]) for value, result in after if value in pins)
    return pins
