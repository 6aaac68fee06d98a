"""The sharding of one graph over one mesh: what is decided, and what follows from it.

Decided are the layout of every input, the mesh axes of every operation's factors, a layout for each value that several
operations read, and the layouts of the outputs. The reshards between them, and so all collectives, follow
(`reshard.py`): a value is brought from the layout it is made in to its shared layout, if it has one, and from there to
the layout that each of its readers wants, once for each such layout.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..graph import Graph
from ..mesh import Layout, Mesh

__all__ = ["OperationSharding", "Sharding"]


@dataclass(frozen=True)
class OperationSharding:
    """How one operation is divided."""

    axes: tuple[tuple[str, ...], ...]  # of each factor of its rule, major to minor
    passed: tuple[str, ...]  # axes over which it passes partial sums on, sorted
    operands: tuple[Layout, ...]  # of each operand of its equation, literals too
    results: tuple[Layout, ...]

    def as_text(self) -> str:
        """Returns it as files have it: `axes of factors / passed / operands -> results`, layouts apart by spaces."""
        passed = "*".join(self.passed) or "-"
        operands, results = (" ".join(map(Layout.as_text, held)) for held in (self.operands, self.results))
        return f"{Layout(self.axes).as_text()} / {passed} / {operands} -> {results}"

    @staticmethod
    def from_text(text: str) -> OperationSharding:
        """Reads what `as_text` returns.

        Raises:
            ValueError: if it is no division.
        """
        try:
            axes, passed, rest = text.split(" / ")
            operands, results = rest.split(" -> ")
        except ValueError:
            raise ValueError(f"{text!r} is no division: AXES / PASSED / OPERANDS -> RESULTS") from None
        held = [tuple(map(Layout.from_text, each.split(" "))) if each else () for each in (operands, results)]
        shared = () if passed == "-" else tuple(passed.split("*"))
        return OperationSharding(Layout.from_text(axes).dims, shared, held[0], held[1])


@dataclass(frozen=True)
class Sharding:
    """How a graph is laid over a mesh."""

    mesh: Mesh
    inputs: tuple[Layout, ...]  # of each input of the graph
    constants: dict[int, Layout]  # of each constant, by value id; every device has all of them and takes its part
    operations: tuple[OperationSharding, ...]  # of each operation of the graph
    shared: dict[int, Layout]  # of values that several operations read, by value id: brought there once
    outputs: tuple[Layout, ...]  # of each output of the graph

    def layouts(self, graph: Graph) -> dict[int, Layout]:
        """Returns the layout in which each value is kept, by value id: the shared one where there is one."""
        layouts = dict(zip(graph.inputs, self.inputs, strict=True)) | self.constants
        for operation, division in zip(graph.operations, self.operations, strict=True):
            layouts.update(zip(operation.outputs, division.results, strict=True))
        return layouts | self.shared
