"""Reshard blame: what a plan sends, which line asks for it, and what would make it go away at what cost.

Collectives that repeated layers have alike are one row. `remedy.py` finds what would remove the most expensive ones.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias

from ..apply import PlannedCollective, predicted_collectives
from ..mesh import Layout
from .links import Link, links, sends
from .names import pattern_of
from .network import collective_seconds
from .remedy import Place, Remedy, find_remedy
from .skeleton import Made
from .stages import handed_over
from .whatif import WhatIf

__all__ = ["Reshard", "blame"]


@dataclass(frozen=True)
class Reshard:
    """A value that is brought from one layout to another, or what an operation sends inside, in all layers alike."""

    value: str  # that is sent: an input, the operation that makes it, or the one that sends inside
    reader: str  # operation that asks for it, the input it is written into, or "output", "itself" or "stage N"
    path: str  # Flax path of the reader, or of the maker if it is an output
    source: str  # its line
    kinds: tuple[str, ...]  # of the collectives, one after the other
    made: str  # layout before; empty for what is sent inside
    wanted: str  # layout after
    shape: tuple[int, ...]  # of the whole value
    dtype: str
    count: int  # how often in a step
    bytes: int  # of each: the larger of a device's operand and result
    seconds: float  # of all
    remedy: Remedy | None = None  # None if it was not looked for


@dataclass(frozen=True)
class _Row:
    """A reshard with where it is in the problem; what stages hand over is nowhere in it."""

    reshard: Reshard
    place: Place | None = None


# What is sent, for which reader (None if for all, or for an output), from which layout to which.
_Key: TypeAlias = tuple[Made | None, int | None, Layout | None, Layout | None]


def blame(case: WhatIf, *, top: int) -> tuple[Reshard, ...]:
    """Returns all reshards of a plan, the most expensive first.

    Args:
        case: The plan.
        top: Of how many to look for a remedy.
    """
    rows = sorted([*_rows(case), *_handovers(case)], key=lambda row: -row.reshard.seconds)
    found: list[Reshard] = []
    for row in rows:
        reshard = row.reshard
        if row.place is not None and top > 0 and case.left_seconds() > 0:
            top -= 1
            case.progress(f"{reshard.value}: {' + '.join(reshard.kinds)}")
            reshard = replace(reshard, remedy=find_remedy(case, row.place))
        found.append(reshard)
    return tuple(found)


def _rows(case: WhatIf) -> Iterator[_Row]:
    grouped: dict[_Key, list[PlannedCollective]] = defaultdict(list)
    sharding, merged = case.partition.sharding, case.formulation.skeleton.merged
    kinds = {value: made for made, members in case.formulation.skeleton.members.items() for value in members}
    for planned in predicted_collectives(case.traced, sharding, case.target.network):
        made = None if planned.value is None else kinds.get(planned.value)
        if planned.value is not None and made is None:
            continue  # a constant: every device has it
        is_kept = planned.value is not None and planned.wanted == sharding.shared.get(planned.value)
        group = None if planned.operation is None or is_kept else merged.group_of_operation[planned.operation]
        grouped[made, group, planned.made, planned.wanted].append(planned)
    for key, planned in grouped.items():
        yield _row(case, key, planned)


def _row(case: WhatIf, key: _Key, planned: Sequence[PlannedCollective]) -> _Row:
    made, group, before, after = key
    places = [(each.operation, each.value) for each in planned]
    count = len(set(places))
    first = planned[: max(1, len(planned) // count)]
    operations = sorted({each.operation for each in planned if each.operation is not None})
    value = case.formulation.skeleton.values[made] if made is not None else None
    reader = pattern_of([case.names[operation] for operation in operations] or _outputs(case, planned))
    reshard = Reshard(
        value=reader if made is None else case.value_name(made),
        reader="itself" if made is None else reader,
        path=pattern_of(list(dict.fromkeys(each.path for each in planned))),
        source=Counter(each.source for each in planned).most_common(1)[0][0],
        kinds=tuple(each.collective.kind for each in first),
        made=str(before) if before else "",
        wanted=str(after) if after else "",
        shape=value.shape if value else (),
        dtype=value.dtype if value else planned[0].collective.dtype,
        count=count,
        bytes=sum(each.collective.bytes for each in first),
        seconds=sum(each.seconds for each in planned),
    )
    if made is not None:
        on = _links(case, made, group, is_output=not operations)
        return _Row(reshard, Place(on, is_partial=bool(before and before.partial)))
    return _Row(reshard, None if group is None else Place(node=case.maker(Made(group, 0))))


def _outputs(case: WhatIf, planned: Sequence[PlannedCollective]) -> list[str]:
    """Returns the names of the inputs that outputs are written into, or "output"."""
    graph, tied = case.traced.graph, case.formulation.skeleton.tied_outputs
    values = {each.value for each in planned}
    written = [tied.get(position) for position, value in enumerate(graph.outputs) if value in values]
    return ["output" if value is None else graph.values[value].name for value in written]


def _links(case: WhatIf, made: Made, group: int | None, *, is_output: bool) -> tuple[Link, ...]:
    """Returns on which links nothing may be sent if a reshard is to be gone: those of its reader, or all.

    It is not gone if it becomes one for all readers.
    """
    every = tuple(links(case.formulation, made))
    nodes = case.formulation.nodes
    if is_output:
        return tuple(link for link in every if nodes[link.target].kind in ("output", "input"))
    if group is None:
        return every
    own = [link for link in every if nodes[link.target].kind == "operation" and nodes[link.target].made.group == group]
    return (*own, *(link for link in every if nodes[link.target].kind == "shared" and not _is_used(case, link)))


def _is_used(case: WhatIf, link: Link) -> bool:
    """Whether the plan sends anything on a link."""
    strategies = case.chosen[link.source], case.chosen[link.target]
    return bool(sends(case.formulation, link, case.target.network)[strategies])


def _handovers(case: WhatIf) -> Iterator[_Row]:
    """Yields what each stage is handed by those before it."""
    graph, sharding = case.traced.graph, case.partition.sharding
    for number, (_, stage) in enumerate(pairwise(case.partition.stages), 2):
        crossing = handed_over(graph, sharding, stage.begin)
        if not crossing:
            continue
        operation = graph.operations[stage.begin]
        largest = max(crossing, key=lambda value: crossing[value])
        size = sum(crossing.values())
        yield _Row(
            Reshard(
                value=case.value_name(case.made(largest)) + (f" and {len(crossing) - 1} more" * (len(crossing) > 1)),
                reader=f"stage {number}",
                path=operation.path,
                source=operation.source,
                kinds=("permute",),
                made=str(sharding.layouts(graph)[largest]),
                wanted=str(sharding.layouts(graph)[largest]),
                shape=graph.values[largest].shape,
                dtype=graph.values[largest].dtype,
                count=1,
                bytes=size,
                seconds=collective_seconds("permute", size, 2, case.target.network),
            )
        )
