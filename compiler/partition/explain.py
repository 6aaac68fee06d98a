"""`explain`: what a plan sends and why, and why operations and inputs are divided as they are.

Comes in: a traced graph and its `Partition`. Goes out: an `Explanation`: facts and tables, as objects, as text, as
JSON. All costs in it are those of plans that were really made, on the mesh of the plan, under its budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from types import MappingProxyType

from ...errors import ConfigurationError
from ..target import Target
from ..text import Table, format_bytes, format_seconds
from ..trace import Traced
from .blame import Remedy, Reshard, blame
from .decisions import Alternative, Decision, decide
from .formulate import Pins
from .pins import matching_values
from .result import Partition
from .whatif import WhatIf, what_if

__all__ = ["Explanation", "explain"]


_SAME = 1e-6  # times that differ by less, relative to them, are said to be the same


@dataclass(frozen=True)
class Explanation:
    """Why a plan is as it is: all that it sends, or, for a pattern, each decision that the pattern names."""

    name: str  # of the graph
    partition: Partition
    pattern: str | None
    reshards: tuple[Reshard, ...]  # most expensive first; without a pattern
    decisions: tuple[Decision, ...]  # of a pattern

    @property
    def communication_seconds(self) -> float:
        """Time of all reshards."""
        return sum(reshard.seconds for reshard in self.reshards)

    def to_dict(self) -> dict[str, object]:
        """Returns the explanation as JSON has it."""
        plan = self.partition
        return {
            "name": self.name,
            "pattern": self.pattern,
            "mesh": plan.mesh.shape,
            "num_stages": len(plan.stages),
            "objective": plan.objective,
            "budget_bytes": plan.budget_bytes,
            "device_bytes": plan.device_bytes,
            "cost": plan.cost,
            "lower_bound": plan.lower_bound,
            "gap": plan.gap,
            "status": plan.status,
            "tried": [{**asdict(tried), "mesh": tried.mesh.shape} for tried in plan.tried],
            "communication_seconds": self.communication_seconds if self.pattern is None else None,
            "reshards": [asdict(reshard) for reshard in self.reshards],
            "decisions": [asdict(decision) for decision in self.decisions],
        }

    def facts(self) -> list[tuple[str, str]]:
        """Returns what is said before the tables: names and values."""
        plan = self.partition
        stages = f"{len(plan.stages)} stages of " if len(plan.stages) > 1 else ""
        budget = "" if plan.budget_bytes is None else f" of {format_bytes(plan.budget_bytes)}"
        bound = f"lower bound {format_seconds(plan.lower_bound)}, gap {plan.gap:.1%}"
        facts = [
            ("plan", self.name),
            ("mesh", f"{stages}{plan.mesh}"),
            ("step", f"{format_seconds(plan.cost)}, {plan.status} on this mesh ({bound})"),
            ("fullest device", f"{format_bytes(plan.device_bytes)}{budget}"),
        ]
        if self.pattern is None:
            share = self.communication_seconds / plan.cost if plan.cost else 0.0
            facts.append(("communication", f"{format_seconds(self.communication_seconds)}, {share:.1%} of the step"))
        return facts

    def tables(self) -> list[Table]:
        """Returns the tables."""
        if self.pattern is None:
            return [_tried(self.partition), *_blame(self.reshards, self.partition)]
        return [table for decision in self.decisions for table in _decision(decision, self.partition)]

    def __str__(self) -> str:
        facts = self.facts()
        width = max(len(name) for name, _ in facts)
        lines = [f"{name:<{width}}  {text}" for name, text in facts]
        return "\n\n".join(["\n".join(lines), *(table.as_text() for table in self.tables())])


def explain(
    traced: Traced,
    partition: Partition,
    target: Target,
    *,
    dtype: str,
    pins: Pins = MappingProxyType({}),
    pattern: str | None = None,
    top: int = 5,
    limit: int | None = 10,
    time_limit_seconds: float = 30.0,
    progress: Callable[[str], None] | None = None,
) -> Explanation:
    """Explains a plan.

    Args:
        traced: The graph.
        partition: Its plan.
        target: That the plan was made for.
        dtype: That products are computed in.
        pins: That the plan was made with.
        pattern: Names operations and inputs, as a pin does, or is a part of their names; by default what the plan
            sends is explained.
        top: Of how many reshards to look for what would remove them.
        limit: Of how many alternatives of each decision to say what they cost; None for all.
        time_limit_seconds: In which to be back; what is not known by then is left out.
        progress: Told each question that is looked into.

    Raises:
        ConfigurationError: if the plan is not of this graph, or the pattern names nothing.
    """
    nodes = None if pattern is None else _matching(traced, pattern)
    case = what_if(
        traced,
        partition,
        target,
        dtype=dtype,
        pins=pins,
        time_limit_seconds=time_limit_seconds,
        progress=progress,
    )
    reshards = blame(case, top=top) if nodes is None else ()
    decisions = tuple(_decisions(case, nodes, limit)) if nodes is not None else ()
    return Explanation(traced.graph.name, partition, pattern, reshards, decisions)


def _matching(traced: Traced, pattern: str) -> frozenset[int]:
    try:
        return frozenset(matching_values(traced.graph, pattern))
    except ConfigurationError:
        if any(special in pattern for special in "*?["):
            raise
        try:
            return frozenset(matching_values(traced.graph, f"*{pattern}*"))
        except ConfigurationError:
            pass
        raise


def _decisions(case: WhatIf, values: frozenset[int], limit: int | None) -> Iterator[Decision]:
    members = case.formulation.skeleton.members
    nodes = [
        i
        for i, node in enumerate(case.formulation.nodes)
        if node.kind in ("input", "operation") and not values.isdisjoint(members[node.made])
    ]
    for done, node in enumerate(nodes):
        share = max(case.left_seconds(), 0.0) / (len(nodes) - done)
        yield decide(case, node, limit=limit, limit_seconds=share)


def _tried(partition: Partition) -> Table:
    rows = [
        (
            f"{tried.num_stages} x ({tried.mesh})" if tried.num_stages > 1 else str(tried.mesh),
            _seconds(tried.cost),
            _seconds(tried.lower_bound),
            "-" if tried.device_bytes is None else format_bytes(tried.device_bytes),
            format_seconds(tried.seconds),
            tried.note or tried.status,
        )
        for tried in partition.tried
    ]
    return Table("what was tried", ("mesh ", "step", "lower bound", "device", "took", "status "), tuple(rows))


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else format_seconds(seconds)


def _blame(reshards: tuple[Reshard, ...], partition: Partition) -> Iterator[Table]:
    columns = ("#", "times", "sent ", "what ", "for ", "from ", "to ", "bytes", "in all", "line ")
    rows = [
        (
            str(number),
            str(reshard.count),
            ", ".join(reshard.kinds),
            reshard.value,
            reshard.reader,
            reshard.made or "-",
            reshard.wanted or "-",
            format_bytes(reshard.bytes),
            format_seconds(reshard.seconds),
            reshard.source,
        )
        for number, reshard in enumerate(reshards, 1)
    ]
    yield Table("what is sent" if rows else "nothing is sent", columns, tuple(rows))
    remedies = [(n, reshard.remedy) for n, reshard in enumerate(reshards, 1) if reshard.remedy is not None]
    if remedies:
        sent = sum(reshard.seconds for reshard in reshards)
        told = [
            (str(number), _remedy(remedy, partition.cost, sent, reshards[number - 1])) for number, remedy in remedies
        ]
        yield Table("what would remove it", ("#", "constraint "), tuple(told))


def _remedy(remedy: Remedy, before: float, sent: float, reshard: Reshard) -> str:
    if remedy.cost is None:
        return f"needed: no plan without it; {remedy.why}"
    total = f"total {format_seconds(remedy.cost)} ({_more(remedy.cost, before)})"
    if not remedy.pins:
        return f"{remedy.why}; a plan without it: {total}"
    pins = " and ".join(f"'{pattern}={axes}'" for pattern, axes in remedy.pins)
    less = sent - (remedy.communication_seconds or 0.0)
    does = "removes it" if less > reshard.seconds / 2 else "removes it, others come in its place"
    return f"pin {pins} {does}: {total}, {format_seconds(remedy.communication_seconds or 0.0)} of it communication"


def _more(after: float, before: float) -> str:
    change = after - before
    if abs(change) <= _SAME * before:
        return "the same"
    return f"{'+' if change > 0 else '-'}{format_seconds(abs(change))}"


def _decision(decision: Decision, partition: Partition) -> Iterator[Table]:
    shape = f"{decision.dtype}[{','.join(map(str, decision.shape))}]"
    times = f" x{decision.count}" if decision.count > 1 else ""
    kept = f", kept as {decision.kept}" if decision.kept else ""
    title = f"{decision.name}{times}: {decision.kind} {shape}{kept}  {decision.source}".rstrip()
    columns = ("", "divided ", "made ", "on a device", "alone", "all else fixed", "solved again", "change", "why ")
    rows = [_alternative(other, partition.cost) for other in decision.alternatives]
    left = decision.num_strategies - 1 - decision.num_asked
    note = f"{left} more strategies of {decision.num_strategies} look worse, or time was up" if left else ""
    yield Table(title, columns, tuple(rows), note)
    if decision.unavailable:
        cannot = [(each.what, ", ".join(each.axes), each.why) for each in decision.unavailable]
        yield Table(f"{decision.name}: not available", ("what ", "axes ", "why "), tuple(cannot))


def _alternative(other: Alternative, before: float) -> tuple[str, ...]:
    return (
        ">" if other.is_chosen else "",
        other.divided,
        ", ".join(other.results),
        format_bytes(other.device_bytes),
        format_seconds(other.own_seconds),
        _seconds(other.fixed_seconds),
        _seconds(other.cost),
        "" if other.cost is None or other.is_chosen else _more(other.cost, before),
        other.why,
    )
