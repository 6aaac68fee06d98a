"""From a jaxpr to a Graph.

Jitted calls, custom derivatives and remat are inlined; a named op becomes one operation; a loop, a branch or a
shard_map becomes one operation that owns the graphs of its bodies. Beside the graph, a `Reading` says what it does to
its inputs: a named op keeps its internals on chip, so its traffic is what its body reads of the operands and writes
of the results. An operand that the body only gathers from or writes into in place is not charged in full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from jax.extend.core import JaxprEqn, Literal, Var

from ..errors import ConfigurationError
from ..models.named_ops import parse_op_name
from .graph import KEY_IMPLEMENTATIONS, Graph, Operation, Option, Value, ValueKind
from .ops.arrays import AnyJaxpr, Atom, called_jaxpr, closed_over, dtype_of, is_key, open_jaxpr, shape_of
from .ops.flops import CONVERSIONS, PRODUCTS, equation_flops
from .ops.loops import fold, known_integer, scan_layout, trip_count
from .ops.traffic import equation_traffic, is_view, updates_operand
from .source import source_line

__all__ = ["Argument", "FlatEquation", "Reading", "read_jaxpr"]


@dataclass(frozen=True)
class Argument:
    """What is known of an input of a jaxpr."""

    kind: ValueKind = "input"
    name: str = ""
    number: int | None = None  # its value, if it is a known integer


@dataclass(frozen=True)
class FlatEquation:
    """The equation that an operation of the graph was read from, and what it is applied to there.

    JAX traces equal calls of a jitted function once, so one equation may be that of several operations.
    """

    equation: JaxprEqn
    operands: tuple[int | Literal, ...]  # value ids or scalar literals
    results: tuple[int, ...]  # value ids


@dataclass(frozen=True)
class Reading:
    """A graph, and what it does to its inputs."""

    graph: Graph
    equations: tuple[FlatEquation, ...]  # of each operation
    constants: dict[int, object]  # values of the graph's constants, by id
    reads: tuple[int, ...]  # bytes read of each input
    writes: tuple[int, ...]  # bytes written of each output
    updates: tuple[tuple[int, int], ...]  # (output, input) positions: the output is the input's buffer, updated


@dataclass(frozen=True)
class _Operand:
    value: int | None  # id; None for a literal
    number: int | None = None  # its value, if it is a known integer
    literal: Literal | None = None


@dataclass(frozen=True)
class _Where:
    path: str = ""
    source: str = ""


@dataclass(frozen=True)
class _Cost:
    """Cost of one operation; the totals may exceed what its operands and results explain, as in a loop."""

    flops: int
    product_flops: int
    reads: Sequence[int]  # bytes read of each operand
    writes: Sequence[int]  # bytes written of each result
    bytes_read: int
    bytes_written: int
    is_estimate: bool = False


def read_jaxpr(jaxpr: AnyJaxpr, name: str, arguments: Sequence[Argument]) -> Reading:
    """Returns the graph of a jaxpr, closed or not.

    Args:
        jaxpr: What to read.
        name: Name of the graph.
        arguments: What is known of each input, in order.
    """
    return _read(jaxpr, name, arguments, _Where(), {})


def _read(
    jaxpr: AnyJaxpr, name: str, arguments: Sequence[Argument], where: _Where, named_ops: dict[int, Reading]
) -> Reading:
    reader = _Reader(named_ops)
    inner = open_jaxpr(jaxpr)
    inputs = [reader.declare(var, argument) for var, argument in zip(inner.invars, arguments, strict=True)]
    outputs = reader.inline(jaxpr, inputs, where)
    return reader.finish(name, inputs, list(zip(inner.outvars, outputs, strict=True)))


@dataclass
class _Reader:
    """Reads one jaxpr; bodies get readers of their own."""

    named_ops: dict[int, Reading]  # by identity of the jaxpr: JAX traces equal calls of a jitted function once
    values: list[Value] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)  # by value id: the value whose buffer it is
    equations: list[FlatEquation] = field(default_factory=list)
    constants: dict[int, object] = field(default_factory=dict)
    root_reads: dict[int, int] = field(default_factory=dict)
    root_writes: dict[int, int] = field(default_factory=dict)

    def declare(self, atom: Atom, argument: Argument) -> _Operand:
        """Adds a value."""
        value = Value(len(self.values), shape_of(atom), _dtype_name(atom), argument.kind, argument.name)
        self.values.append(value)
        self.roots.append(value.id)
        return _Operand(value.id, argument.number)

    def inline(self, jaxpr: AnyJaxpr, operands: Sequence[_Operand], where: _Where) -> list[_Operand]:
        """Adds the operations of a jaxpr called with these operands; returns its results."""
        inner = open_jaxpr(jaxpr)
        env: dict[Var, _Operand] = dict(zip(inner.invars, operands, strict=True))
        for var, const in zip(inner.constvars, closed_over(jaxpr), strict=True):
            env[var] = self.constant(var, const)
        for equation in inner.eqns:
            arguments = [self.resolve(atom, env) for atom in equation.invars]
            results = self.equation(equation, arguments, _inside(where, equation))
            env.update(zip(equation.outvars, results, strict=True))
        return [self.resolve(atom, env) for atom in inner.outvars]

    def resolve(self, atom: Atom, env: dict[Var, _Operand]) -> _Operand:
        if not isinstance(atom, Literal):
            return env[atom]
        if shape_of(atom) != ():
            return self.constant(atom, atom.val)
        return _Operand(None, known_integer(atom.val), atom)

    def constant(self, atom: Atom, content: object) -> _Operand:
        """Adds a value that the jaxpr closes over."""
        operand = self.declare(atom, Argument("constant", number=known_integer(content)))
        assert operand.value is not None
        self.constants[operand.value] = content
        return operand

    def equation(self, equation: JaxprEqn, operands: Sequence[_Operand], where: _Where) -> list[_Operand]:
        if (called := called_jaxpr(equation)) is not None:
            if equation.primitive.name in ("jit", "pjit") and (op := parse_op_name(equation.params["name"])):
                return self.named_op(equation, called, op, operands, where)
            return self.inline(called, operands, where)
        if (structure := _STRUCTURES.get(equation.primitive.name)) is not None:
            return structure(self, equation, operands, where)
        return self.primitive(equation, operands, where)

    def primitive(self, equation: JaxprEqn, operands: Sequence[_Operand], where: _Where) -> list[_Operand]:
        flops, is_estimate = equation_flops(equation)
        reads, writes = equation_traffic(equation)
        reads = _once(reads, operands)
        product_flops = flops if equation.primitive.name in PRODUCTS else 0
        cost = _Cost(flops, product_flops, reads, writes, sum(reads), sum(writes), is_estimate)
        updates = ((0, 0),) if updates_operand(equation) else ()
        view = is_view(equation) and operands[0].value is not None  # a broadcast literal is a buffer of its own
        results = self.emit(equation, operands, where, cost, updates=updates, view=view)
        number = fold(equation, [operand.number for operand in operands])
        return [_Operand(results[0].value, number)] if number is not None else results

    def named_op(
        self,
        equation: JaxprEqn,
        body: AnyJaxpr,
        op: tuple[str, dict[str, Option]],
        operands: Sequence[_Operand],
        where: _Where,
    ) -> list[_Operand]:
        name, options = op
        if id(body) not in self.named_ops:
            arguments = [Argument()] * len(operands)
            self.named_ops[id(body)] = _read(body, name, arguments, _Where(), self.named_ops)
        reading = self.named_ops[id(body)]
        reads = _once(reading.reads, operands)
        graph = reading.graph
        flops = 0 if name in CONVERSIONS else graph.flops
        written = sum(reading.writes)
        cost = _Cost(flops, graph.product_flops, reads, reading.writes, sum(reads), written, graph.is_estimate)
        return self.emit(equation, operands, where, cost, name=name, options=options, updates=reading.updates)

    def body(
        self, jaxpr: AnyJaxpr, name: str, numbers: Sequence[int | None], where: _Where, carries: Sequence[int] = ()
    ) -> Reading:
        """Reads the body of a loop or branch.

        Args:
            jaxpr: The body.
            name: Of its graph.
            numbers: Known values of its inputs.
            where: Of the loop.
            carries: Positions of the inputs that the loop owns and may overwrite; they are "intermediate".
        """
        kinds: list[ValueKind] = ["intermediate" if i in carries else "input" for i in range(len(numbers))]
        arguments = [Argument(kind, number=number) for kind, number in zip(kinds, numbers, strict=True)]
        return _read(jaxpr, name, arguments, where, self.named_ops)

    def emit(
        self,
        equation: JaxprEqn,
        operands: Sequence[_Operand],
        where: _Where,
        cost: _Cost,
        *,
        name: str | None = None,
        options: dict[str, Option] | None = None,
        updates: Sequence[tuple[int, int]] = (),
        view: bool = False,
        trips: int | None = None,
        body: tuple[Graph, ...] = (),
    ) -> list[_Operand]:
        """Adds one operation; `updates` are (result, operand) positions."""
        results = [self.declare(var, Argument("intermediate")) for var in equation.outvars]
        inputs = [operand.value for operand in operands if operand.value is not None]
        outputs = tuple(result.value for result in results if result.value is not None)
        shared = self._share(results, operands, [(0, 0)] if view else updates)
        for operand, num_bytes in zip(operands, cost.reads, strict=True):
            self._charge(self.root_reads, operand, num_bytes)
        for result, num_bytes in zip(results, cost.writes, strict=True):
            self._charge(self.root_writes, result, num_bytes)
        self.equations.append(FlatEquation(equation, tuple(map(_flat, operands)), outputs))
        self.operations.append(
            Operation(
                id=len(self.operations),
                name=name or equation.primitive.name,
                inputs=tuple(inputs),
                outputs=outputs,
                flops=cost.flops,
                product_flops=cost.product_flops,
                bytes_read=cost.bytes_read,
                bytes_written=cost.bytes_written,
                options=options or {},
                path=where.path or self._parameter_name(inputs),
                source=where.source,
                trip_count=trips,
                is_estimate=cost.is_estimate,
                is_view=view,
                updates=() if view else shared,
                body=body,
            )
        )
        return results

    def _share(
        self, results: Sequence[_Operand], operands: Sequence[_Operand], pairs: Sequence[tuple[int, int]]
    ) -> tuple[tuple[int, int], ...]:
        """Records that results live in operands' buffers; returns the pairs as value ids."""
        shared: list[tuple[int, int]] = []
        for result_position, operand_position in pairs:
            result, operand = results[result_position].value, operands[operand_position].value
            if result is not None and operand is not None:
                self.roots[result] = self.roots[operand]
                shared.append((result, operand))
        return tuple(shared)

    def _charge(self, account: dict[int, int], operand: _Operand, num_bytes: int) -> None:
        if operand.value is not None:
            root = self.roots[operand.value]
            account[root] = account.get(root, 0) + num_bytes

    def _parameter_name(self, inputs: Sequence[int]) -> str:
        return next((self.values[value].name for value in inputs if self.values[value].kind == "parameter"), "")

    def finish(self, name: str, inputs: list[_Operand], outputs: list[tuple[Atom, _Operand]]) -> Reading:
        """Returns the graph of all that was added, and what it does to its inputs."""
        input_ids = [operand.value for operand in inputs if operand.value is not None]
        output_ids = [
            self.constant(atom, operand.literal.val).value if operand.literal is not None else operand.value
            for atom, operand in outputs
        ]
        results = [value for value in output_ids if value is not None]
        positions = {value: position for position, value in enumerate(input_ids)}
        updates = [
            (output, positions[self.roots[value]])
            for output, value in enumerate(results)
            if self.roots[value] in positions
        ]
        in_place = {output for output, _ in updates}
        writes = [
            min(self.values[value].bytes, self.root_writes.get(self.roots[value], 0))
            if output in in_place
            else self.values[value].bytes
            for output, value in enumerate(results)
        ]
        reads = tuple(min(self.values[value].bytes, self.root_reads.get(value, 0)) for value in input_ids)
        values, operations = tuple(self.values), tuple(self.operations)
        graph = Graph(name, values, operations, tuple(input_ids), tuple(results), input_bytes_read=reads)
        return Reading(graph, tuple(self.equations), self.constants, reads, tuple(writes), tuple(updates))


def _flat(operand: _Operand) -> int | Literal:
    flat = operand.literal if operand.value is None else operand.value
    assert flat is not None
    return flat


def _dtype_name(atom: Atom) -> str:
    name = str(dtype_of(atom))
    if is_key(atom) and name not in KEY_IMPLEMENTATIONS:
        known = ", ".join(KEY_IMPLEMENTATIONS.values())
        raise ConfigurationError(f"random keys of type {name} are of no generator of JAX's own; use {known}")
    return name


def _inside(where: _Where, equation: JaxprEqn) -> _Where:
    scope = str(equation.source_info.name_stack)
    path = f"{where.path}/{scope}" if where.path and scope else where.path or scope
    return _Where(path, source_line(equation) or where.source)


def _once(reads: Sequence[int], operands: Sequence[_Operand]) -> tuple[int, ...]:
    """Charges an operand that occurs twice once."""
    seen: set[int] = set()
    charged: list[int] = []
    for num_bytes, operand in zip(reads, operands, strict=True):
        charged.append(0 if operand.value is None or operand.value in seen else num_bytes)
        if operand.value is not None:
            seen.add(operand.value)
    return tuple(charged)


def _result_bytes(equation: JaxprEqn) -> tuple[int, ...]:
    return equation_traffic(equation)[1]


def _scan(reader: _Reader, equation: JaxprEqn, operands: Sequence[_Operand], where: _Where) -> list[_Operand]:
    params = equation.params
    trips, (num_consts, num_carry) = params["length"], scan_layout(equation)
    numbers = [operand.number if i < num_consts else None for i, operand in enumerate(operands)]
    carries = range(num_consts, num_consts + num_carry)
    body = reader.body(params["jaxpr"], "body", numbers, where, carries)
    reads = [num_bytes * (1 if i in carries else trips) for i, num_bytes in enumerate(body.reads)]
    cost = _repeated([(body.graph, trips)], reads, _result_bytes(equation), is_known=True)
    updates = [(carry, num_consts + carry) for carry in range(num_carry)]
    return reader.emit(equation, operands, where, cost, updates=updates, trips=trips, body=(body.graph,))


def _while(reader: _Reader, equation: JaxprEqn, operands: Sequence[_Operand], where: _Where) -> list[_Operand]:
    params = equation.params
    num_cond, num_body = params["cond_nconsts"], params["body_nconsts"]
    consts = num_cond + num_body
    numbers = [operand.number for operand in operands]
    unknown: list[int | None] = [None] * (len(operands) - consts)
    condition = reader.body(params["cond_jaxpr"], "condition", [*numbers[:num_cond], *unknown], where)
    carries = range(num_body, num_body + len(unknown))
    body = reader.body(params["body_jaxpr"], "body", [*numbers[num_cond:consts], *unknown], where, carries)
    known_trips = trip_count(equation, numbers)
    trips = 1 if known_trips is None else known_trips
    reads = [
        *(num_bytes * (trips + 1) for num_bytes in condition.reads[:num_cond]),
        *(num_bytes * trips for num_bytes in body.reads[:num_body]),
        *body.reads[num_body:],
    ]
    runs = [(condition.graph, trips + 1), (body.graph, trips)]  # the last test is the one that fails
    cost = _repeated(runs, reads, _result_bytes(equation), is_known=known_trips is not None)
    updates = [(carry, consts + carry) for carry in range(len(equation.outvars))]
    bodies = (condition.graph, body.graph)
    return reader.emit(equation, operands, where, cost, updates=updates, trips=trips, body=bodies)


def _repeated(
    runs: Sequence[tuple[Graph, int]], reads: Sequence[int], writes: Sequence[int], *, is_known: bool
) -> _Cost:
    return _Cost(
        flops=sum(graph.flops * trips for graph, trips in runs),
        product_flops=sum(graph.product_flops * trips for graph, trips in runs),
        reads=reads,
        writes=writes,
        bytes_read=sum(graph.bytes_read * trips for graph, trips in runs),
        bytes_written=sum(graph.bytes_written * trips for graph, trips in runs),
        is_estimate=not is_known or any(graph.is_estimate for graph, _ in runs),
    )


def _cond(reader: _Reader, equation: JaxprEqn, operands: Sequence[_Operand], where: _Where) -> list[_Operand]:
    numbers = [operand.number for operand in operands[1:]]
    branches = [
        reader.body(branch, f"branch {index}", numbers, where)
        for index, branch in enumerate(equation.params["branches"])
    ]
    graphs = tuple(branch.graph for branch in branches)
    index_bytes = equation_traffic(equation)[0][0]
    costs = {(graph.flops, graph.bytes_read, graph.bytes_written) for graph in graphs}
    cost = _Cost(
        flops=max(graph.flops for graph in graphs),
        product_flops=max(graph.product_flops for graph in graphs),
        reads=[index_bytes, *(max(reads) for reads in zip(*(branch.reads for branch in branches), strict=True))],
        writes=_result_bytes(equation),
        bytes_read=index_bytes + max(graph.bytes_read for graph in graphs),
        bytes_written=max(graph.bytes_written for graph in graphs),
        is_estimate=len(costs) > 1 or any(graph.is_estimate for graph in graphs),
    )
    return reader.emit(equation, operands, where, cost, body=graphs)


def _shard_map(reader: _Reader, equation: JaxprEqn, operands: Sequence[_Operand], where: _Where) -> list[_Operand]:
    mesh = equation.params["mesh"]
    axes = equation.params.get("newly_manual_axes", equation.params.get("manual_axes", mesh.axis_names))
    num_shards = 1
    for axis in axes:
        num_shards *= mesh.shape[axis]
    body = reader.body(equation.params["jaxpr"], "shard", [operand.number for operand in operands], where)
    reads = [num_bytes * num_shards for num_bytes in body.reads]
    cost = _repeated([(body.graph, num_shards)], reads, _result_bytes(equation), is_known=True)
    options: dict[str, Option] = {"shards": num_shards}
    return reader.emit(equation, operands, where, cost, options=options, body=(body.graph,))


def _linear_solve(reader: _Reader, equation: JaxprEqn, operands: Sequence[_Operand], where: _Where) -> list[_Operand]:
    """A custom linear solve runs its `solve`; the other jaxprs are for its derivatives."""
    lengths = equation.params["const_lengths"]
    start = lengths.matvec + lengths.vecmat
    right_sides = operands[sum(lengths) :]
    arguments = [*operands[start : start + lengths.solve], *right_sides]
    return reader.inline(equation.params["jaxprs"].solve, arguments, where)


_Structure: TypeAlias = Callable[[_Reader, JaxprEqn, Sequence[_Operand], _Where], list[_Operand]]

_STRUCTURES: dict[str, _Structure] = {
    "cond": _cond,
    "custom_linear_solve": _linear_solve,
    "scan": _scan,
    "shard_map": _shard_map,
    "while": _while,
}
