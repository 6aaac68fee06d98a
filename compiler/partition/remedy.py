"""What would make a reshard go away, proven: with the pins of a remedy, `partition` finds the plan that is promised.

The problem is solved again with the reshard forbidden; what that plan decides nearby is then tried as pins, each alone,
until one makes the reshard vanish, or else all together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ...errors import ConfigurationError
from ..apply import predicted_collectives
from ..ops.sharding.division import Division
from ..ops.sharding.rules import internal_collectives
from .formulate import Node
from .links import Link, sends
from .plan import Sharding
from .restrict import assignment, restricted, without
from .search import Replanned
from .whatif import WhatIf

__all__ = ["Place", "Remedy", "find_remedy"]

_EQUAL = 1e-9  # costs that differ by less, relative to them, are the same
_Pin: TypeAlias = tuple[str, str]


@dataclass(frozen=True)
class Remedy:
    """What would make a reshard go away."""

    pins: tuple[_Pin, ...]  # (pattern, axes), as `--pin` takes them; none if no pins nearby do
    cost: float | None  # seconds of the step then; None if there is no plan without the reshard
    communication_seconds: float | None = None  # of the step then
    why: str = ""  # there is none


@dataclass(frozen=True)
class Place:
    """Where a reshard is in the problem: on links, or inside an operation."""

    links: tuple[Link, ...] = ()
    node: int | None = None  # that sends inside
    is_partial: bool = False  # what is sent is a partial result, which its maker is to combine first or not to make


def find_remedy(case: WhatIf, place: Place) -> Remedy:
    """Returns what would make a reshard go away, at the least cost that pins nearby allow."""
    least = _forbidden(case, place)
    if least is None or least.sharding is None or least.tried.cost is None:
        return Remedy((), None, why=_why(least))
    near = list(_near(case, place, least.sharding))
    best: Remedy | None = None
    for pin in near:
        found = _with(case, place, (pin,))
        if found is not None and (best is None or (found.cost or 0) < (best.cost or 0)):
            best = found
        if (found and found.cost and found.cost <= least.tried.cost * (1 + _EQUAL)) or case.left_seconds() <= 0:
            break
    return best or _together(case, place, near) or Remedy((), least.tried.cost, why="no pins nearby remove it")


def _forbidden(case: WhatIf, place: Place) -> Replanned | None:
    """Returns the best plan without a reshard; None if its operation sends however it is divided."""
    if place.node is not None:
        count = len(case.formulation.nodes[place.node].divisions)
        quiet = [strategy for strategy in range(count) if not _sends_inside(case, place.node, strategy)]
        return case.force(place.node, quiet) if quiet else None
    formulation = without(case.formulation, place.links, case.target.network)
    maker = case.maker(place.links[0].made)
    # A pin asks for complete results, so a plan whose maker leaves them is looked at first.
    complete = case.solve(restricted(formulation, {maker: _complete(case, place)}))
    return complete if place.is_partial or complete.sharding is not None else case.solve(formulation)


def _complete(case: WhatIf, place: Place) -> list[int]:
    """Returns the strategies in which a reshard's maker leaves no partial result."""
    made = place.links[0].made
    results = case.formulation.nodes[case.maker(made)].results(made.result)
    return [strategy for strategy, layout in enumerate(results) if not layout.partial]


def _sends_inside(case: WhatIf, node: int, strategy: int) -> bool:
    about = case.formulation.nodes[node]
    group = case.formulation.skeleton.groups[about.made.group]
    division = Division(group.rule, case.mesh, about.divisions[strategy].axes)
    return bool(internal_collectives(group.equation, division))


def _why(answer: Replanned | None) -> str:
    if answer is None:
        return "the operation sends inside however it is divided"
    if answer.short_bytes > 0:
        return f"without it a device lacks {answer.short_bytes:,} bytes"
    return answer.tried.note or "no plan without it was found in time"


def _with(case: WhatIf, place: Place, pins: Sequence[_Pin]) -> Remedy | None:
    """Returns what pins do to the plan, or None if it sends the same still, or there is none."""
    answer = case.pin(pins)
    if answer is None or answer.sharding is None or not _is_gone(case, place, answer.sharding):
        return None
    sent = predicted_collectives(case.traced, answer.sharding, case.target.network)
    return Remedy(tuple(pins), answer.tried.cost, sum(each.seconds for each in sent))


def _is_gone(case: WhatIf, place: Place, sharding: Sharding) -> bool:
    try:
        numbers = assignment(case.formulation, sharding)
    except ConfigurationError:  # the pins give an output a layout that it cannot have without them
        return False
    if place.node is not None:
        return not _sends_inside(case, place.node, numbers[place.node])
    if place.is_partial and numbers[case.maker(place.links[0].made)] not in _complete(case, place):
        return False
    network = case.target.network
    return not any(
        sends(case.formulation, link, network)[numbers[link.source], numbers[link.target]] for link in place.links
    )


def _together(case: WhatIf, place: Place, near: Sequence[_Pin]) -> Remedy | None:
    """Returns the remedy of all pins at once, without those that it does not need."""
    best = _with(case, place, near) if len(near) > 1 else None
    if best is None:
        return None
    for pin in near:
        fewer = [other for other in best.pins if other != pin]
        found = _with(case, place, fewer) if fewer and case.left_seconds() > 0 else None
        if found and (found.cost or 0) <= (best.cost or 0) * (1 + _EQUAL):
            best = found
    return best


def _near(case: WhatIf, place: Place, sharding: Sharding) -> Iterator[_Pin]:
    """Yields as pins what a plan decides differently about a reshard's operations and what these read."""
    nodes = case.formulation.nodes
    numbers = assignment(case.formulation, sharding)
    ends = [] if place.node is None else [place.node]
    ends += [case.maker(link.made) for link in place.links]
    ends += [link.target for link in place.links]
    operations = [i for i in dict.fromkeys(ends) if nodes[i].kind == "operation"]
    inputs = [i for i in dict.fromkeys(ends) if nodes[i].kind == "input"]
    for maker in operations:
        inputs += [i for i in _inputs_of(case, nodes[maker]) if i not in inputs]
    for number in dict.fromkeys((*inputs, *operations)):
        layout, before = (nodes[number].results(0)[chosen[number]] for chosen in (numbers, case.chosen))
        if layout != before and layout.dims and not layout.partial:
            yield case.node_name(nodes[number]), layout.as_text()


def _inputs_of(case: WhatIf, operation: Node) -> list[int]:
    skeleton = case.formulation.skeleton
    index = {node.made: i for i, node in enumerate(case.formulation.nodes) if node.kind == "input"}
    reads = [read.made for read in skeleton.reads if read.group == operation.made.group and read.made.is_input]
    return [index[made] for made in reads]
