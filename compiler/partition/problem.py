"""The sharding problem: one strategy for each node, at the least cost, within a memory limit at every time.

The problem is the one that XLA, Alpa and the ASPLOS/EuroSys 2025 contest on intra-operator parallelism share: a node
is a value or operation, a strategy a way to divide it. Choosing a strategy costs, the pair of strategies of an edge
costs (a reshard), and each node uses memory while it lives. The cost of an assignment is the sum over nodes and edges
(parallel edges and edges of a node with itself count each on their own); it is allowed if no cost is infinite and, at
every time, the usages of the live nodes stay within the limit.

`read_problem` and `write_problem` read and write the contest's JSON, in which 1e18 stands for infinite. What an
assignment really costs is said by `verify/sharding.py`, which shares no code with this file.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from ...errors import ConfigurationError

__all__ = ["INFINITE_COST", "Edge", "Problem", "load_document", "parse_problem", "read_problem", "write_problem"]

INFINITE_COST = 1e18  # in files, and from there on anywhere


@dataclass(frozen=True, eq=False)
class Edge:
    """What a pair of strategies of two nodes costs."""

    source: int  # node
    target: int  # node; may be the source, then the diagonal counts
    costs: np.ndarray  # [strategies of source, strategies of target]


@dataclass(frozen=True, eq=False)
class Problem:
    """A sharding problem; costs are in any unit, usages in the unit of the limit.

    Raises:
        ConfigurationError: if lengths disagree, an id is of no node, or a number is not one.
    """

    costs: Sequence[np.ndarray]  # of each node: [strategies]; INFINITE_COST or more is forbidden
    usages: Sequence[np.ndarray]  # of each node: [strategies], not negative
    intervals: Sequence[tuple[int, int]]  # of each node: live at begin <= time < end
    edges: Sequence[Edge]
    usage_limit: float | None  # at every time; None for none
    names: tuple[str, ...] = ()  # of the nodes, or none at all
    strategy_names: tuple[tuple[str, ...], ...] = ()  # of the strategies of each node, or none at all

    def __post_init__(self) -> None:
        if not len(self.costs) == len(self.usages) == len(self.intervals):
            counts = f"{len(self.costs)} costs, {len(self.usages)} usages and {len(self.intervals)} intervals"
            raise ConfigurationError(f"the problem has {counts}; every node needs one of each")
        if self.names and len(self.names) != len(self.costs):
            raise ConfigurationError(f"the problem has {len(self.costs)} nodes and {len(self.names)} names; give all")
        for node in range(len(self.costs)):
            self._check_node(node)
        for number, edge in enumerate(self.edges):
            self._check_edge(number, edge)
        if self.usage_limit is not None and not np.isfinite(self.usage_limit):
            raise ConfigurationError(f"the usage limit is {self.usage_limit}; give a finite number or none")

    def _check_node(self, node: int) -> None:
        costs, usages, (begin, end) = self.costs[node], self.usages[node], self.intervals[node]
        if costs.ndim != 1 or costs.shape != usages.shape or not costs.size:
            shapes = f"costs of shape {list(costs.shape)} and usages of shape {list(usages.shape)}"
            raise ConfigurationError(f"{self.name(node)} has {shapes}; both need one number for each strategy, of 1 up")
        if np.isnan(costs).any() or np.isneginf(costs).any():
            raise ConfigurationError(f"{self.name(node)} has a cost that is no number; forbid by {INFINITE_COST:g}")
        if not (np.isfinite(usages).all() and usages.min() >= 0):
            raise ConfigurationError(f"{self.name(node)} has a usage that is not a number of 0 or more")
        if begin > end:
            raise ConfigurationError(f"{self.name(node)} lives from {begin} to {end}; an interval ends after it begins")

    def _check_edge(self, number: int, edge: Edge) -> None:
        if not (0 <= edge.source < self.num_nodes and 0 <= edge.target < self.num_nodes):
            pair = f"[{edge.source}, {edge.target}]"
            raise ConfigurationError(f"edge {number} joins nodes {pair}; nodes are numbered 0 to {self.num_nodes - 1}")
        expected = (self.costs[edge.source].size, self.costs[edge.target].size)
        if edge.costs.shape != expected:
            raise ConfigurationError(
                f"edge {number} has costs {list(edge.costs.shape)}; its nodes' strategies need {list(expected)}"
            )
        if np.isnan(edge.costs).any() or np.isneginf(edge.costs).any():
            raise ConfigurationError(f"edge {number} has a cost that is no number; forbid by {INFINITE_COST:g}")

    @property
    def num_nodes(self) -> int:
        """Nodes of the problem."""
        return len(self.costs)

    def name(self, node: int) -> str:
        """Returns what to call a node in a message."""
        return f"node {node} ({self.names[node]})" if self.names else f"node {node}"

    def cost(self, assignment: Sequence[int]) -> float:
        """Returns the cost of one strategy for each node; infinite if a node or pair is forbidden."""
        total = sum(float(costs[strategy]) for costs, strategy in zip(self.costs, assignment, strict=True))
        total += sum(float(edge.costs[assignment[edge.source], assignment[edge.target]]) for edge in self.edges)
        return float("inf") if total >= INFINITE_COST else total


def read_problem(path: Path) -> Problem:
    """Returns the problem in a file of the contest's JSON, which may be compressed (`.gz`).

    Raises:
        ConfigurationError: if the file cannot be read or says something else than a problem.
    """
    return parse_problem(load_document(path), path)


def parse_problem(document: object, path: Path) -> Problem:
    """Returns the problem in a document that `load_document` got from a file.

    Raises:
        ConfigurationError: if it says something else than a problem; the message begins with the path.
    """
    try:
        return _parse(document)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def write_problem(problem: Problem, path: Path) -> None:
    """Writes a problem as the contest's JSON, compressed if the path ends in `.gz`; names under a key of their own."""
    body: dict[str, object] = {
        "name": path.name.split(".")[0],
        "nodes": {
            "intervals": [[int(begin), int(end)] for begin, end in problem.intervals],
            "costs": [_numbers(costs) for costs in problem.costs],
            "usages": [_numbers(usages) for usages in problem.usages],
        },
        "edges": {
            "nodes": [[edge.source, edge.target] for edge in problem.edges],
            "costs": [_numbers(edge.costs.ravel()) for edge in problem.edges],
        },
        "usage_limit": problem.usage_limit,
    }
    if problem.names:
        body["names"] = {"nodes": problem.names, "strategies": problem.strategy_names}
    data = json.dumps({"problem": body}, allow_nan=False).encode()
    _write(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigurationError(f"cannot write {path}: {error.strerror or error}") from None


def _numbers(values: np.ndarray) -> list[float]:
    """As numbers of a file: what is forbidden by its finite stand-in, integers without a point."""
    finite = np.minimum(values, INFINITE_COST)
    is_integral = (finite == np.floor(finite)).all()
    return finite.astype(np.int64).tolist() if is_integral else finite.astype(np.float64).tolist()


def load_document(path: Path) -> object:
    """Returns what a JSON file says, which may be compressed.

    Raises:
        ConfigurationError: if the file cannot be read, is damaged, or is not JSON.
    """
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return json.loads(data)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror or error}; give a problem's file") from None
    except (EOFError, zlib.error) as error:
        raise ConfigurationError(f"cannot read {path}: the compressed file is damaged ({error})") from None
    except RecursionError:
        raise ConfigurationError(f"cannot read {path}: its JSON is nested too deep to be a problem") from None
    except ValueError as error:
        raise ConfigurationError(f"cannot read {path}: it is not JSON ({error})") from None


def _parse(document: object) -> Problem:
    body = _mapping(document, "the file")
    body = _mapping(body["problem"], "'problem'") if "problem" in body else body
    nodes, edges = _mapping(_get(body, "nodes"), "'nodes'"), _mapping(_get(body, "edges"), "'edges'")
    costs = [_vector(row, f"the costs of node {number}") for number, row in enumerate(_list(nodes, "costs"))]
    names, strategy_names = _names(body, len(costs))
    return Problem(
        costs=costs,
        usages=[_vector(row, f"the usages of node {number}") for number, row in enumerate(_list(nodes, "usages"))],
        intervals=[
            _pair(row, f"the interval of node {number}") for number, row in enumerate(_list(nodes, "intervals"))
        ],
        edges=_edges(edges, [row.size for row in costs]),
        usage_limit=_limit(_get(body, "usage_limit")),
        names=names,
        strategy_names=strategy_names,
    )


def _edges(edges: Mapping[str, object], num_strategies: list[int]) -> list[Edge]:
    pairs, costs = _list(edges, "nodes"), _list(edges, "costs")
    if len(pairs) != len(costs):
        raise ConfigurationError(f"'edges' has {len(pairs)} nodes and {len(costs)} costs; every edge needs one of each")
    return [_edge(number, *row, num_strategies) for number, row in enumerate(zip(pairs, costs, strict=True))]


def _edge(number: int, pair: object, costs: object, num_strategies: list[int]) -> Edge:
    source, target = _pair(pair, f"the nodes of edge {number}")
    if not (0 <= source < len(num_strategies) and 0 <= target < len(num_strategies)):
        limit = len(num_strategies) - 1
        raise ConfigurationError(f"edge {number} joins nodes [{source}, {target}]; nodes are numbered 0 to {limit}")
    flat = _vector(costs, f"the costs of edge {number}")
    shape = (num_strategies[source], num_strategies[target])
    if flat.size != shape[0] * shape[1]:
        raise ConfigurationError(
            f"edge {number} has {flat.size} costs; its nodes' strategies make {shape[0] * shape[1]}"
        )
    return Edge(source, target, flat.reshape(shape))


def _names(body: Mapping[str, object], num_nodes: int) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Names are ours, not the contest's: those that do not fit are left out."""
    names = body.get("names")
    nodes = names.get("nodes") if isinstance(names, dict) else None
    if not isinstance(names, dict) or not isinstance(nodes, list) or len(nodes) != num_nodes:
        return (), ()
    strategies = names.get("strategies")
    listed = strategies if isinstance(strategies, list) and all(isinstance(row, list) for row in strategies) else []
    return tuple(map(str, nodes)), tuple(tuple(map(str, row)) for row in listed)


def _mapping(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        _refuse(what, "an object", value)
    return value


def _get(mapping: Mapping[str, object], key: str) -> object:
    if key not in mapping:
        raise ConfigurationError(f"{key!r} is missing; a problem has nodes, edges and usage_limit")
    return mapping[key]


def _list(mapping: Mapping[str, object], key: str) -> list[object]:
    value = _get(mapping, key)
    if not isinstance(value, list):
        _refuse(repr(key), "a list", value)
    return value


def _vector(row: object, what: str) -> np.ndarray:
    if not isinstance(row, list):
        _refuse(what, "a list of numbers", row)
    try:
        values = np.asarray(row)
        if values.dtype.kind == "O" and all(isinstance(value, int) for value in row):
            values = np.array([float(value) for value in row])  # integers beyond 64 bits
    except (ValueError, OverflowError):
        _refuse(what, "a list of numbers", row)
    if values.ndim != 1 or (values.dtype.kind not in "iuf" and values.size):
        _refuse(what, "a list of numbers", row)
    return values.astype(np.float64)


def _pair(row: object, what: str) -> tuple[int, int]:
    if not isinstance(row, list) or len(row) != 2 or type(row[0]) is not int or type(row[1]) is not int:
        _refuse(what, "two integers", row)
    if not (abs(row[0]) < 2**62 and abs(row[1]) < 2**62):
        _refuse(what, "two integers of 64 bits", row)
    return row[0], row[1]


def _limit(value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        _refuse("the usage limit", "a number or null", value)
    return float(min(value, 1e300))


def _refuse(what: str, expected: str, value: object) -> NoReturn:
    text = repr(value)
    raise ConfigurationError(f"{what} is {text if len(text) < 40 else text[:37] + '...'}, not {expected}")
