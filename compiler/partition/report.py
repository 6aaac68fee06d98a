"""`report`: what a plan decided, as tables: by component, by kind of memory, and what else was tried.

A component is a module of the model, of all layers together, with its weights below it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from ..ops.sharding.rules import derive
from ..text import Table, format_bytes, format_seconds
from .difference import Component, Planned, components
from .names import component_of
from .result import Partition

__all__ = ["replicated_operations", "report"]


def report(plan: Planned) -> list[Table]:
    """Returns a plan's tables."""
    found = [_component_table(plan), _memory_table(plan.partition), _tried_table(plan.partition)]
    replicated = replicated_operations(plan)
    if replicated:
        rows = tuple((name, str(count), reason) for (name, reason), count in replicated.items())
        found.append(Table("computed on every device alike", ("operation ", "times", "why "), rows))
    return found


def replicated_operations(plan: Planned) -> Mapping[tuple[str, str], int]:
    """Returns how many operations have no sharding rule, by component with name, and reason."""
    found: Counter[tuple[str, str]] = Counter()
    for operation, flat in zip(plan.traced.graph.operations, plan.traced.equations, strict=True):
        if reason := derive(flat.equation).note:
            found[component_of(f"{operation.path}/{operation.name}".lstrip("/")), reason] += 1
    return found


def _component_table(plan: Planned) -> Table:
    """Returns the table of the modules in the order in which they run; what has no module of its own is last."""
    found = components(plan)
    paths: dict[str, set[str]] = defaultdict(set)
    for operation in plan.traced.graph.operations:
        paths[component_of(operation.path)].add(operation.path)
    inputs = [name for name in found if name not in paths]
    homes = {name: max((path for path in paths if path and _is_of(name, path)), key=len, default="") for name in inputs}
    rows: list[tuple[str, ...]] = []
    for path, of_path in paths.items():
        rows.append(
            (path or "(no path)", "", "", _sent(found[path], len(of_path)), format_seconds(found[path].seconds))
        )
        rows += _input_rows(found, [name for name in inputs if path and homes[name] == path])
    rows += _input_rows(found, [name for name in inputs if not homes[name]], indent="")
    heads = ("component ", "layout ", "on a device", "sends, each time ", "seconds")
    return Table("components", heads, tuple(rows))


def _is_of(name: str, path: str) -> bool:
    return name.startswith(path.replace("/", "."))


def _input_rows(found: Mapping[str, Component], names: list[str], indent: str = "  ") -> Iterator[tuple[str, ...]]:
    for name in names:
        component = found[name]
        yield f"{indent}{name}", component.layouts.get("", ""), format_bytes(component.bytes), "", ""


def _sent(component: Component, repetitions: int) -> str:
    """Returns what one repetition of a module sends; the first and the last may differ from the others."""
    return ", ".join(f"{sent.count / repetitions:.3g} {kind}" for kind, sent in component.sent.items())


def _memory_table(plan: Partition) -> Table:
    """Returns what the fullest device holds."""
    fullest = max(plan.stages, key=lambda stage: stage.footprint.total).footprint
    kinds = {
        "parameters": fullest.parameters,
        "optimizer state": fullest.state,
        "caches": fullest.cache,
        "inputs, constants": fullest.inputs,
        "temporaries": fullest.temporaries,
        "in all": fullest.total,
    }
    limit = plan.budget_bytes
    rows = tuple(
        (name, format_bytes(size), "" if limit is None else f"{size / max(limit, 1):.1%}")
        for name, size in kinds.items()
        if size
    )
    title = "the fullest device holds" + ("" if limit is None else f", of {format_bytes(limit)}")
    return Table(title, ("what ", "bytes", "" if limit is None else "share"), rows)


def _tried_table(plan: Partition) -> Table:
    rows = tuple(
        (
            f"{each.num_stages} x ({each.mesh})",
            each.status,
            _time(each.cost),
            _time(each.lower_bound),
            _time(each.slowest_stage_seconds),
            "-" if each.device_bytes is None else format_bytes(each.device_bytes),
            format_seconds(each.seconds),
            each.note,
        )
        for each in plan.tried
    )
    heads = ("stages x mesh ", "status ", "step", "lower bound", "slowest stage", "on a device", "search", "note ")
    return Table("tried", heads, rows)


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else format_seconds(seconds)
