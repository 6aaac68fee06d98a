"""`difference`: two plans side by side, in all and by component.

A component is a module of the model, or an input, of all layers together: the paths of operations and the names of
inputs with `*` for the number of a layer. Plans of different models are compared by these names too; what only one of
them has is said to be so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

from ..apply import PlannedCollective, predicted_collectives
from ..mesh import Layout
from ..target import Target
from ..text import Table, format_bytes, format_seconds
from ..trace import Traced
from .names import component_of
from .network import collective_seconds
from .pins import operation_names
from .result import Partition
from .skeleton import skeleton
from .stages import handed_over
from .timeline import timeline

__all__ = ["Change", "Component", "Difference", "Planned", "Sent", "components", "difference"]

_TIMES = 3.0  # from which on a ratio is told, not a share
_EQUAL = 1e-9  # times that differ by less, relative to them, are the same


@dataclass(frozen=True)
class Planned:
    """A plan with what it is of."""

    name: str
    traced: Traced
    partition: Partition
    target: Target
    dtype: str  # that products are computed in


@dataclass(frozen=True)
class Sent:
    """Collectives of one kind."""

    count: int
    bytes: int  # of all: the larger of one device's operand and result
    seconds: float  # of all


@dataclass
class Component:
    """A module or an input of all layers."""

    count: int = 0  # operations, or inputs
    seconds: float = 0.0  # of all, what is sent included
    bytes: int = 0  # of inputs, on each device
    layouts: dict[str, str] = field(default_factory=dict[str, str])  # of each operation's results; of inputs under ""
    sent: dict[str, Sent] = field(default_factory=dict[str, Sent])  # by kind


@dataclass(frozen=True)
class Change:
    """A component that is not the same in both plans."""

    name: str
    before: Component | None  # None if only the second plan has it
    after: Component | None


@dataclass(frozen=True)
class _Side:
    plan: Planned
    components: Mapping[str, Component]
    sent: Mapping[str, Sent]


@dataclass(frozen=True)
class Difference:
    """Two plans, and the components in which they differ, those with the largest change of time first."""

    before: Planned
    after: Planned
    sent: tuple[Mapping[str, Sent], Mapping[str, Sent]]  # by kind, of either plan; stages hand over by permute
    changes: tuple[Change, ...]

    def to_dict(self) -> dict[str, object]:
        """Returns the difference as JSON has it."""
        plans = [_totals(plan, sent) for plan, sent in zip((self.before, self.after), self.sent, strict=True)]
        changes = [
            {
                "name": change.name,
                "before": asdict(change.before) if change.before else None,
                "after": asdict(change.after) if change.after else None,
            }
            for change in self.changes
        ]
        return {"before": plans[0], "after": plans[1], "components": changes}

    def tables(self) -> list[Table]:
        """Returns the tables: totals, then components."""
        heads = (f"{self.before.name} ", f"{self.after.name} ", "change ")
        totals = Table("in all", (" ", *heads), tuple(_total_rows(self)))
        rows = tuple(
            ("" if number else row[0], *row[1:])  # the name of a component stands at its first row
            for change in self.changes
            for number, row in enumerate(_change_rows(change))
        )
        title = "by component" if rows else "all components are the same"
        return [totals, Table(title, ("component ", "what ", *heads), rows)]

    def __str__(self) -> str:
        return "\n\n".join(table.as_text() for table in self.tables())


def difference(before: Planned, after: Planned) -> Difference:
    """Returns in what two plans differ.

    Args:
        before: One plan.
        after: The other; changes are from the first to this one.
    """
    first, second = _side(before), _side(after)
    changes = [
        Change(name, first.components.get(name), second.components.get(name))
        for name in dict.fromkeys((*first.components, *second.components))
        if not _is_same(first.components.get(name), second.components.get(name))
    ]
    changes.sort(key=lambda change: -abs(_seconds(change.after) - _seconds(change.before)))
    return Difference(before, after, (first.sent, second.sent), tuple(changes))


def _seconds(component: Component | None) -> float:
    return component.seconds if component else 0.0


def _is_same(one: Component | None, other: Component | None) -> bool:
    if one is None or other is None:
        return False
    least = _EQUAL * max(one.seconds, other.seconds)
    is_as_long = abs(one.seconds - other.seconds) <= least
    rest = [(each.count, each.bytes, each.layouts, {k: s.count for k, s in each.sent.items()}) for each in (one, other)]
    return is_as_long and rest[0] == rest[1]


def components(plan: Planned) -> dict[str, Component]:
    """Returns a plan by component: the modules of operations, by their paths, and the inputs, by their names."""
    found: dict[str, Component] = defaultdict(Component)
    _add_inputs(plan, found)
    _add_operations(plan, found)
    of_component: dict[str, list[PlannedCollective]] = defaultdict(list)
    for each in predicted_collectives(plan.traced, plan.partition.sharding, plan.target.network):
        of_component[component_of(each.path)].append(each)
    for name, collectives in of_component.items():
        found[name].sent = _sent(collectives)
    return found


def _side(plan: Planned) -> _Side:
    planned = predicted_collectives(plan.traced, plan.partition.sharding, plan.target.network)
    return _Side(plan, components(plan), _with_handovers(plan, _sent(planned)))


def _add_inputs(plan: Planned, components: dict[str, Component]) -> None:
    graph, sharding = plan.traced.graph, plan.partition.sharding
    layouts: dict[str, dict[Layout, None]] = defaultdict(dict)
    for value, layout in zip(graph.inputs, sharding.inputs, strict=True):
        about = graph.values[value]
        name = component_of(about.name or f"input {value}")
        component = components[name]
        component.count += 1
        component.bytes += about.bytes // sharding.mesh.num_shards(layout.axes)
        layouts[name][layout] = None
    for name, found in layouts.items():
        components[name].layouts[""] = " | ".join(map(str, found))


def _add_operations(plan: Planned, components: dict[str, Component]) -> None:
    graph, sharding = plan.traced.graph, plan.partition.sharding
    times = timeline(skeleton(plan.traced), sharding, plan.target, plan.dtype)
    layouts: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for operation, unique, division, time in zip(
        graph.operations, operation_names(graph), sharding.operations, times, strict=True
    ):
        name = component_of(operation.path)
        component = components[name]
        component.count += 1
        component.seconds += time.seconds
        own = unique[len(operation.path) :].lstrip("/")
        layouts[name, own][", ".join(map(str, division.results))] = None
    for (name, own), found in layouts.items():
        components[name].layouts[own] = " | ".join(found)


def _sent(planned: list[PlannedCollective] | tuple[PlannedCollective, ...]) -> dict[str, Sent]:
    kinds: dict[str, list[PlannedCollective]] = defaultdict(list)
    for each in planned:
        kinds[each.collective.kind].append(each)
    return {
        kind: Sent(len(found), sum(each.collective.bytes for each in found), sum(each.seconds for each in found))
        for kind, found in sorted(kinds.items())
    }


def _with_handovers(plan: Planned, sent: dict[str, Sent]) -> dict[str, Sent]:
    """Adds what stages hand to the next ones, one message for each cut."""
    graph, sharding = plan.traced.graph, plan.partition.sharding
    cuts = [handed_over(graph, sharding, stage.begin) for stage in plan.partition.stages[1:]]
    if not cuts:
        return sent
    size = sum(sum(cut.values()) for cut in cuts)
    seconds = sum(collective_seconds("permute", sum(cut.values()), 2, plan.target.network) for cut in cuts if cut)
    old = sent.get("permute", Sent(0, 0, 0.0))
    return {**sent, "permute": Sent(old.count + len(cuts), old.bytes + size, old.seconds + seconds)}


def _totals(plan: Planned, sent: Mapping[str, Sent]) -> dict[str, object]:
    partition = plan.partition
    return {
        "name": plan.name,
        "graph": plan.traced.graph.name,
        "target": plan.target.name,
        "dtype": plan.dtype,
        "mesh": partition.mesh.shape,
        "num_stages": len(partition.stages),
        "cost": partition.cost,
        "lower_bound": partition.lower_bound,
        "status": partition.status,
        "slowest_stage_seconds": partition.slowest_stage_seconds,
        "device_bytes": partition.device_bytes,
        "sent": {kind: asdict(of_kind) for kind, of_kind in sent.items()},
    }


def _total_rows(found: Difference) -> Iterator[tuple[str, str, str, str]]:
    one, other = found.before, found.after
    plans = one.partition, other.partition
    yield ("graph", one.traced.graph.name, other.traced.graph.name, "")
    yield ("target", f"{one.target.name}, {one.dtype}", f"{other.target.name}, {other.dtype}", "")
    meshes = [f"{len(plan.stages)} stages of {plan.mesh}" if len(plan.stages) > 1 else str(plan.mesh) for plan in plans]
    yield ("mesh", meshes[0], meshes[1], "")
    yield _times("step", plans[0].cost, plans[1].cost)
    yield _times("lower bound", plans[0].lower_bound, plans[1].lower_bound)
    yield _times("slowest stage", plans[0].slowest_stage_seconds, plans[1].slowest_stage_seconds)
    held = [plan.device_bytes for plan in plans]
    yield ("fullest device", format_bytes(held[0]), format_bytes(held[1]), _bytes_change(held[0], held[1]))
    for kind in sorted({*found.sent[0], *found.sent[1]}):
        yield (kind, *_sent_cells(found.sent[0].get(kind), found.sent[1].get(kind)))


def _times(name: str, before: float, after: float) -> tuple[str, str, str, str]:
    return name, format_seconds(before), format_seconds(after), _seconds_change(before, after)


def _seconds_change(before: float, after: float) -> str:
    change = after - before
    if abs(change) <= _EQUAL * max(before, after):
        return ""
    ratio = after / before if before else 0.0
    share = f" (x{ratio:.3g})" if ratio > _TIMES else f" ({ratio - 1:+.1%})" if before else ""
    return f"{'+' if change > 0 else '-'}{format_seconds(abs(change))}{share}"


def _bytes_change(before: int, after: int) -> str:
    change = after - before
    return f"{'+' if change > 0 else '-'}{format_bytes(abs(change))}" if change else ""


def _sent_cells(before: Sent | None, after: Sent | None) -> tuple[str, str, str]:
    cells = [
        "-" if sent is None else f"{sent.count} x, {format_bytes(sent.bytes)} in {format_seconds(sent.seconds)}"
        for sent in (before, after)
    ]
    change = _seconds_change(before.seconds if before else 0.0, after.seconds if after else 0.0)
    return cells[0], cells[1], change


def _change_rows(change: Change) -> Iterator[tuple[str, str, str, str, str]]:
    """Yields a row for each thing in which a component differs, under the name of the component."""
    before, after, name = change.before or Component(), change.after or Component(), change.name or "(no path)"
    if before.count != after.count:
        counts = ["-" if it is None else str(it.count) for it in (change.before, change.after)]
        yield (name, "count", counts[0], counts[1], "")
    if before.seconds or after.seconds:
        yield (name, *_times("time", before.seconds, after.seconds))
    if before.bytes != after.bytes:
        sizes = _bytes_change(before.bytes, after.bytes)
        yield (name, "on a device", format_bytes(before.bytes), format_bytes(after.bytes), sizes)
    for own in dict.fromkeys((*before.layouts, *after.layouts)):
        one, other = before.layouts.get(own, "-"), after.layouts.get(own, "-")
        if one != other:
            yield (name, own or "layout", one, other, "")
    for kind in sorted({*before.sent, *after.sent}):
        if before.sent.get(kind) != after.sent.get(kind):
            yield (name, kind, *_sent_cells(before.sent.get(kind), after.sent.get(kind)))
