"""The Graph: what a traced function computes, as plain data.

Comes in: from `trace.py`, operation by operation in the order of execution. Goes out: to every later stage, to
networkx, to text and to JSON. A loop or a branch is one operation that owns the graphs of its bodies; a named op is
one operation without a body. Invariant, checked by `verify.graph.verify_graph`: a value's id is its position in
`values`; it is an input, a constant, or the output of exactly one operation, and is never used before that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

import jax
import jax.numpy as jnp
import pydantic

from ..errors import ConfigurationError

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["KEY_IMPLEMENTATIONS", "Graph", "Operation", "Option", "Value", "ValueKind", "item_bytes"]

# JAX's random generators by the type of their keys; a key is one element.
KEY_IMPLEMENTATIONS: Mapping[str, str] = MappingProxyType(
    {"key<fry>": "threefry2x32", "key<rbg>": "rbg", "key<urbg>": "unsafe_rbg"}
)

ValueKind: TypeAlias = Literal["parameter", "state", "input", "cache", "constant", "intermediate"]
Node: TypeAlias = tuple[Literal["value", "operation"], int]  # of the networkx view
Option: TypeAlias = float | int | str | bool

_STRICT = pydantic.ConfigDict(extra="forbid")


@functools.cache
def item_bytes(dtype: str) -> int:
    """Returns the size of an element, of a random key that of its words."""
    if dtype not in KEY_IMPLEMENTATIONS:
        return jnp.dtype(dtype).itemsize
    return jax.random.key(0, impl=KEY_IMPLEMENTATIONS[dtype]).dtype.itemsize


@dataclass(frozen=True)
class Value:
    """An array that an operation reads or writes, or that the graph is given."""

    __pydantic_config__ = _STRICT

    id: int  # position in `Graph.values`
    shape: tuple[int, ...]
    dtype: str  # name, e.g. "float32" or "bfloat16"; of random keys one of `KEY_IMPLEMENTATIONS`
    kind: ValueKind
    name: str = ""  # of a parameter, its dotted Flax path; of an input or cache, its argument; else empty

    @property
    def num_elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in bytes, without padding."""
        return self.num_elements * item_bytes(self.dtype)


@dataclass(frozen=True)
class Operation:
    """One step of the graph: a primitive, a named op, or a loop with its bodies."""

    __pydantic_config__ = _STRICT

    id: int  # position in `Graph.operations`
    name: str  # of the primitive, e.g. "dot_general", or of the named op, e.g. "linear"
    inputs: tuple[int, ...]  # value ids in operand order; literals are left out
    outputs: tuple[int, ...]  # value ids
    flops: int  # floating-point operations of all trips
    bytes_read: int  # of all trips
    bytes_written: int  # of all trips
    product_flops: int = 0  # of the FLOPs, those in matrix products and convolutions
    options: dict[str, Option] = field(default_factory=dict[str, Option])  # static options of a named op
    path: str = ""  # Flax path, e.g. "layers.3/mlp"
    source: str = ""  # file and line of the user's code, e.g. "llama.py:88"
    trip_count: int | None = None  # of a loop; 1 if it is unknown
    is_estimate: bool = False  # FLOPs or bytes depend on data, or on an algorithm that XLA chooses
    is_view: bool = False  # the output is the first input's buffer under another shape or type
    updates: tuple[tuple[int, int], ...] = ()  # (output, input): may be written into that input's buffer
    body: tuple[Graph, ...] = ()  # of a loop or shard_map its body (while: condition, body); of a cond its branches


@dataclass(frozen=True)
class Graph:
    """A dataflow graph in order of execution."""

    __pydantic_config__ = _STRICT

    name: str
    values: tuple[Value, ...]
    operations: tuple[Operation, ...]
    inputs: tuple[int, ...]  # value ids in argument order
    outputs: tuple[int, ...]  # value ids in result order
    input_bytes_read: tuple[int, ...]  # of each input: at most all of it, less if only parts of it are looked up

    @property
    def flops(self) -> int:
        """Floating-point operations of one execution."""
        return sum(operation.flops for operation in self.operations)

    @property
    def product_flops(self) -> int:
        """Floating-point operations in matrix products and convolutions."""
        return sum(operation.product_flops for operation in self.operations)

    @property
    def parameter_bytes(self) -> int:
        """Bytes of all parameters."""
        return sum(value.bytes for value in self.values if value.kind == "parameter")

    @property
    def parameter_bytes_read(self) -> int:
        """Bytes of parameters that one execution looks at: of an embedding its rows, of experts those chosen."""
        pairs = zip(self.inputs, self.input_bytes_read, strict=True)
        return sum(num_bytes for value, num_bytes in pairs if self.values[value].kind == "parameter")

    @property
    def bytes_read(self) -> int:
        """Bytes that all operations read, nothing fused."""
        return sum(operation.bytes_read for operation in self.operations)

    @property
    def bytes_written(self) -> int:
        """Bytes that all operations write, nothing fused."""
        return sum(operation.bytes_written for operation in self.operations)

    @property
    def bytes_accessed(self) -> int:
        """Bytes read and written."""
        return self.bytes_read + self.bytes_written

    @property
    def is_estimate(self) -> bool:
        """Whether any operation's cost is an estimate."""
        return any(operation.is_estimate for operation in self.operations)

    def to_networkx(self) -> nx.DiGraph[Node]:
        """Returns a bipartite view: nodes ("value", id) and ("operation", id), edges along the flow of data."""
        import networkx as nx  # here, for whoever runs a bundle does without it

        view: nx.DiGraph[Node] = nx.DiGraph(name=self.name)
        for value in self.values:
            attributes = {"name": value.name, "kind": value.kind, "shape": value.shape, "dtype": value.dtype}
            view.add_node(("value", value.id), bytes=value.bytes, **attributes)
        for operation in self.operations:
            node = ("operation", operation.id)
            attributes = {"name": operation.name, "path": operation.path, "source": operation.source}
            view.add_node(node, flops=operation.flops, **attributes)
            view.add_edges_from((("value", value), node) for value in operation.inputs)
            view.add_edges_from((node, ("value", value)) for value in operation.outputs)
        return view

    def as_text(self) -> str:
        """Returns a table, one operation a line, bodies indented under theirs, and the totals."""
        rows = [("id", "op", "output", "FLOPs", "bytes", "path", "source"), *_rows(self, "")]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [_line(row, widths) for row in rows]
        estimate = " (estimate)" if self.is_estimate else ""
        lines.append(
            f"{self.name}: {len(self.operations)} operations, {self.flops:,} FLOPs{estimate}, "
            f"{self.bytes_accessed:,} bytes accessed, {self.parameter_bytes:,} bytes of parameters"
        )
        return "\n".join(lines) + "\n"

    def to_json(self) -> str:
        """Returns the graph as JSON text."""
        return _adapter().dump_json(self).decode()

    @staticmethod
    def from_json(text: str | bytes) -> Graph:
        """Reads what `to_json` wrote.

        Raises:
            ConfigurationError: if it is no graph; the message says where it departs from one.
        """
        try:
            return _adapter().validate_json(text)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "top level"
            raise ConfigurationError(f"not a plait graph: {where}: {first['msg']}") from None


@functools.cache
def _adapter() -> pydantic.TypeAdapter[Graph]:
    return pydantic.TypeAdapter(Graph)


_Row: TypeAlias = tuple[str, str, str, str, str, str, str]


def _rows(graph: Graph, indent: str) -> list[_Row]:
    rows: list[_Row] = []
    for operation in graph.operations:
        outputs = " ".join(_shape(graph.values[value]) for value in operation.outputs)
        flops = f"{'~' if operation.is_estimate else ''}{operation.flops:,}"
        num_bytes = f"{operation.bytes_read + operation.bytes_written:,}"
        where = (operation.path, operation.source)
        rows.append((f"{indent}{operation.id}", _label(operation), outputs, flops, num_bytes, *where))
        for body in operation.body:
            rows.extend(_rows(body, indent + "  "))
    return rows


def _label(operation: Operation) -> str:
    options = ",".join(f"{name}={value!r}" for name, value in operation.options.items())
    trips = "" if operation.trip_count is None else f" x{operation.trip_count}"
    return f"{operation.name}[{options}]{trips}" if options else f"{operation.name}{trips}"


def _shape(value: Value) -> str:
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.rjust(width) if i in (3, 4) else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()
