"""Why an operation or an input is divided as it is: the other ways, what each would cost, and those that there are not.

Of the other ways those that look best with all else as it is, and those that are cheaper than the chosen one if the
operation stood alone, are forced in turn, and the rest of the plan is decided again around them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..mesh import Layout
from ..ops.sharding.rule import Rule
from ..text import format_bytes, format_seconds
from .formulate import Node
from .plan import OperationSharding
from .problem import INFINITE_COST
from .skeleton import OperationGroup
from .strategies import divided_factors
from .whatif import WhatIf

__all__ = ["Alternative", "Decision", "Unavailable", "decide"]

_NO_WAY = "what it makes or reads cannot be brought to or from any layout that its neighbours have"


@dataclass(frozen=True)
class Alternative:
    """One way to divide an operation, or to lay out an input."""

    divided: str  # in words: what over which axes
    operands: tuple[str, ...]  # layouts wanted; of an input none
    results: tuple[str, ...]  # layouts made; of an input its own
    pin: str  # axes of its first result as `--pin` takes them; empty if no pin can ask for it
    is_chosen: bool
    own_seconds: float  # of all operations alike, in a step, without what is sent before and after
    device_bytes: int  # of one result, or input, on each device
    fixed_seconds: float | None  # of a step with all else as it is; None if there is no way
    cost: float | None = (
        None  # seconds of a step with the rest decided again; None if not asked, or if there is no plan
    )
    why: str = ""  # it loses, or is no plan


@dataclass(frozen=True)
class Unavailable:
    """What cannot be divided."""

    what: str  # a dim of results and operands, with its size; or all of an operation
    axes: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Decision:
    """What is decided about an operation or an input, for all that are alike in all layers."""

    name: str  # a pattern, as pins have it
    kind: str  # "operation", or of an input "parameter", "cache", ...
    source: str  # line of an operation
    shape: tuple[int, ...]  # of the input, or of the first result
    dtype: str
    count: int  # alike
    kept: str  # layout in which its first result is kept for those that read it, if there are several; or empty
    chosen: Alternative
    alternatives: tuple[Alternative, ...]  # those asked for, the best first, the chosen one among them
    num_strategies: int
    num_asked: int  # that were forced
    unavailable: tuple[Unavailable, ...]


def decide(case: WhatIf, node: int, *, limit: int | None, limit_seconds: float) -> Decision:
    """Returns what is decided at a node of the problem, an operation's or an input's, and why.

    Args:
        case: The plan.
        node: Its number.
        limit: Of alternatives; all there are by default.
        limit_seconds: In which to be back; what is not asked by then is left out.
    """
    end = time.monotonic() + limit_seconds
    about, skeleton = case.formulation.nodes[node], case.formulation.skeleton
    value = skeleton.values[about.made]
    case.progress(case.node_name(about))
    every = list(_alternatives(case, node))
    chosen = every[case.chosen[node]]
    found = [chosen]
    asked = 0
    for strategy in _worth_asking(case, node, every, limit):
        if time.monotonic() >= end:
            break
        found.append(_forced(case, node, strategy, every[strategy], chosen))
        asked += 1
    found.sort(key=lambda each: (math.inf if each.cost is None else each.cost, not each.is_chosen))
    shown = found if limit is None else _best(found, limit)
    operation = None if about.kind == "input" else skeleton.groups[about.made.group]
    return Decision(
        name=case.node_name(about),
        kind=value.kind if operation is None else "operation",
        source="" if operation is None else operation.representative.source,
        shape=value.shape,
        dtype=value.dtype,
        count=len(skeleton.members[about.made]),
        kept=_kept(case, about),
        chosen=chosen,
        alternatives=tuple(shown),
        num_strategies=len(every),
        num_asked=asked,
        unavailable=tuple(_unavailable(case, about)),
    )


def _best(found: list[Alternative], limit: int) -> list[Alternative]:
    """Returns the best, the chosen one in any case."""
    best = found[: limit + 1]
    return best if any(each.is_chosen for each in best) else [*best[:-1], *(e for e in found if e.is_chosen)]


def _kept(case: WhatIf, node: Node) -> str:
    layout = case.partition.sharding.shared.get(case.formulation.skeleton.members[node.made][0])
    return "" if layout is None else str(layout)


def _alternatives(case: WhatIf, node: int) -> Iterator[Alternative]:
    about, mesh = case.formulation.nodes[node], case.mesh
    value = case.formulation.skeleton.values[about.made]
    own = case.formulation.problem.costs[node]
    fixed = case.fixed_seconds(node)
    for strategy, result in enumerate(about.results(0)):
        division = about.divisions[strategy] if about.kind == "operation" else None
        is_chosen = strategy == case.chosen[node]
        can_pin = bool(result.dims) and not result.partial
        yield Alternative(
            divided=_divided(case, about, division) if division else _laid_out(value.shape, result),
            operands=tuple(map(str, division.operands)) if division else (),
            results=tuple(map(str, division.results)) if division else (str(result),),
            pin=result.as_text() if can_pin else "",
            is_chosen=is_chosen,
            own_seconds=float(own[strategy]),
            device_bytes=value.bytes // mesh.num_shards(result.axes),
            fixed_seconds=float(fixed[strategy]) if fixed[strategy] < INFINITE_COST else None,
            cost=case.partition.cost if is_chosen else None,
            why="chosen" if is_chosen else "",
        )


def _worth_asking(case: WhatIf, node: int, every: list[Alternative], limit: int | None) -> list[int]:
    """Returns the strategies to force, the most promising first."""
    others = [i for i, each in enumerate(every) if not each.is_chosen]
    fixed = np.array([math.inf if each.fixed_seconds is None else each.fixed_seconds for each in every])
    others.sort(key=lambda i: (fixed[i], every[i].own_seconds))
    if limit is None:
        return others
    chosen = every[case.chosen[node]]
    cheaper = [i for i in others if every[i].own_seconds < chosen.own_seconds]
    return list(dict.fromkeys((*others[:limit], *cheaper[:limit])))


def _forced(case: WhatIf, node: int, strategy: int, other: Alternative, chosen: Alternative) -> Alternative:
    answer = case.force(node, [strategy])
    cost = answer.tried.cost
    if cost is None:
        if answer.short_bytes > 0:
            return replace(other, why=f"memory: {format_bytes(answer.short_bytes)} over the budget")
        return replace(other, why=_NO_WAY if answer.is_conflict else answer.tried.note or "no plan found in time")
    return replace(other, cost=cost, why=_why(case.partition.cost, cost, other, chosen))


def _why(before: float, after: float, other: Alternative, chosen: Alternative) -> str:
    """Says where the time goes."""
    own, more = other.own_seconds - chosen.own_seconds, after - before
    least = 1e-9 * before
    if abs(more) <= least:
        return "as good"
    if more < 0:
        return "better: the plan is not optimal"
    if own < -least:
        return f"cheaper alone by {format_seconds(-own)}, elsewhere {format_seconds(more - own)} more"
    if own > more - least:
        return f"dearer alone by {format_seconds(own)}"
    alone = f"{format_seconds(own)} more alone, " if own > least else ""
    return f"{alone}{format_seconds(more - max(own, 0.0))} more elsewhere"


def _laid_out(shape: tuple[int, ...], layout: Layout) -> str:
    parts = [
        f"dim {i} ({size}) over {'*'.join(axes)}"
        for i, (size, axes) in enumerate(zip(shape, layout.dims, strict=True))
        if axes
    ]
    return ", ".join(parts) or "whole on every device"


def _divided(case: WhatIf, node: Node, division: OperationSharding) -> str:
    group = case.formulation.skeleton.groups[node.made.group]
    labels = _factor_labels(case, group)
    parts = [f"{labels[factor]} over {'*'.join(axes)}" for factor, axes in enumerate(division.axes) if axes]
    if division.passed:
        parts.append(f"partial sums over {'*'.join(division.passed)} passed on")
    return ", ".join(parts) or "whole on every device"


def _factor_labels(case: WhatIf, group: OperationGroup) -> list[str]:
    """Returns a name for each factor of a rule: a dim that it is of, of a result if there is one."""
    rule = group.rule
    is_one = len(rule.results) == 1
    summed = {factor for access in rule.results for factor, _ in access.partial}
    places = [("result" if is_one else f"result {i}", access) for i, access in enumerate(rule.results)]
    operands = [(_operand_label(case, group, i), access) for i, access in enumerate(rule.operands)]
    places += sorted(operands, key=lambda place: place[0].startswith("operand "))  # names say more than numbers
    labels: dict[int, str] = {}
    for is_inner in (False, True):
        for where, access in places:
            for dim, factors in enumerate(access.dims):
                size = " x ".join(str(rule.sizes[factor]) for factor in factors)
                for factor in factors[1:] if is_inner else factors[:1]:
                    end = ", summed" if factor in summed and not where.startswith("result") else ""
                    inner = "inner part of " if is_inner else ""
                    labels.setdefault(factor, f"{inner}{where} dim {dim} ({size}{end})")
    return [labels.get(factor, f"factor {factor}") for factor in range(len(rule.sizes))]


def _operand_label(case: WhatIf, group: OperationGroup, position: int) -> str:
    """Returns what to call an operand: a weight by the last two parts of its name."""
    operand = case.traced.equations[group.members[0]].operands[position]
    name = case.traced.graph.values[operand].name if isinstance(operand, int) else ""
    return ".".join(name.split(".")[-2:]) or f"operand {position}"


def _unavailable(case: WhatIf, node: Node) -> Iterator[Unavailable]:
    """Yields what cannot be divided, and over which axes."""
    mesh = case.mesh
    if node.kind == "input":
        value = case.formulation.skeleton.values[node.made]
        for dim, size in enumerate(value.shape):
            yield from _indivisible(case, f"dim {dim} ({size})", size)
        return
    group = case.formulation.skeleton.groups[node.made.group]
    rule = group.rule
    if rule.note:
        yield Unavailable("the operation", mesh.axes, rule.note)
        return
    labels, divided = _factor_labels(case, group), set(divided_factors(rule))
    for factor, size in enumerate(rule.sizes):
        if size <= 1:
            continue
        if factor in divided:
            yield from _indivisible(case, labels[factor], size)
        else:
            yield Unavailable(labels[factor], mesh.axes, _never(rule, factor))


def _never(rule: Rule, factor: int) -> str:
    """Says why a factor is never divided."""
    if factor not in rule.blocked:
        return "not among the factors that are looked at: others hold more elements"
    minor = {f for access in (*rule.operands, *rule.results) for dim in access.dims for f in dim[1:]}
    if factor in minor:
        return "the minor part of a dim: parts of it would not lie together"
    return "the operation mixes all of it"


def _indivisible(case: WhatIf, what: str, size: int) -> Iterator[Unavailable]:
    """Yields the axes that do not divide a size; and all together, if each alone does."""
    mesh = case.mesh
    bad = [axis for axis in mesh.axes if size % mesh.num_shards((axis,))]
    for axis in bad:
        yield Unavailable(what, (axis,), f"{size} does not divide by {mesh.num_shards((axis,))}")
    if not bad and size % mesh.num_devices:
        yield Unavailable(what, mesh.axes, f"{size} does not divide by {mesh.num_devices}, over all axes together")
