"""Which operations make one kernel: the search over where to cut a graph into sections.

Sections are stretches of consecutive operations. A repeated stretch of the graph, such as a decoder layer, is cut once:
one program then serves all repetitions, and no section reaches across them. Within it, and in what does not repeat,
every cut is tried (dynamic programming), and the sections that take the least time together are kept. So a whole layer
becomes one kernel where units and SRAM allow it and its traffic is worth saving, and is cut where they do not. A target
without a dataflow chip runs every operation, named ops whole, as a kernel of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...errors import ConfigurationError
from ..partition.plan import Sharding
from ..partition.skeleton import Skeleton, buffer_roots
from ..target import Target
from .pipeline import Fuser
from .rules import FusionRule, ruled_cuts
from .sections import Launch, Mode, Orchestration, Section, Sections
from .work import Work, works_of

__all__ = ["cheapest", "cut_into_sections", "fuse"]

_MAX_OPERATIONS = 160  # of one section


def fuse(
    skeleton: Skeleton,
    sharding: Sharding,
    target: Target,
    dtype: str,
    *,
    mode: Mode = "o3",
    orchestration: Orchestration = "hardware",
    rules: Sequence[FusionRule] = (),
) -> Sections:
    """Returns the sections of a partitioned graph.

    Args:
        skeleton: The graph's groups and repetitions.
        sharding: How it is divided over devices.
        target: The machine.
        dtype: That the model is computed in.
        mode: "o3" searches over the whole graph, "o1" fuses by rules, "o0" makes one section an operation.
        orchestration: Who launches kernels: the chip by a schedule it was given before, or the host.
        rules: Of mode o1.
    """
    works = works_of(skeleton, sharding, target, dtype)
    return cut_into_sections(skeleton, works, target, dtype, mode=mode, orchestration=orchestration, rules=rules)


def cut_into_sections(
    skeleton: Skeleton,
    works: Sequence[Work],
    target: Target,
    dtype: str,
    *,
    mode: Mode = "o3",
    orchestration: Orchestration = "hardware",
    rules: Sequence[FusionRule] = (),
) -> Sections:
    """Returns the sections of a partitioned graph of which the work of each operation is known; else as `fuse`."""
    graph = skeleton.traced.graph
    roots = buffer_roots(graph)
    outputs = frozenset(roots.get(value, value) for value in graph.outputs)
    fuser = Fuser(works, outputs, target, dtype, orchestration, remakes=mode == "o3")
    sections: list[Section] = []
    launches: list[Launch] = []
    for begin, period, repetitions in _stretches(skeleton):
        # The first repetition may read what was made otherwise; the last hands on to what does not repeat.
        shown = begin + period * (repetitions // 2)
        for section in _cut(fuser, works, shown, shown + period, mode, rules, len(sections)):
            offset = section.begin - shown
            sections.append(section)
            launches += [Launch(section.id, begin + period * i + offset) for i in range(repetitions)]
    ordered = tuple(sorted(launches, key=lambda launch: launch.begin))
    return Sections(graph.name, target.name, mode, orchestration, tuple(sections), ordered)


def _stretches(skeleton: Skeleton) -> Iterator[tuple[int, int, int]]:
    """Yields (begin, period, repetitions) of all stretches of a graph in order."""
    place = 0
    num_operations = len(skeleton.traced.graph.operations)
    for run in skeleton.merged.runs:
        if run.begin > place:
            yield place, run.begin - place, 1
        yield run.begin, run.period, run.repetitions
        place = run.end
    if place < num_operations:
        yield place, num_operations - place, 1


def _cut(
    fuser: Fuser, works: Sequence[Work], begin: int, end: int, mode: Mode, rules: Sequence[FusionRule], number: int
) -> list[Section]:
    if mode == "o0":
        made = [fuser.unfused(place) for place in range(begin, end) if not works[place].is_view]
    elif mode == "o1":
        cuts = ruled_cuts(works[begin:end], rules)
        made = [_whole(fuser, begin + first, begin + last) for first, last in cuts]
    elif fuser.target.chip is None:  # a kernel has the whole device: each operation is one
        made = [fuser.alone(place) for place in range(begin, end) if not works[place].is_view]
    else:
        made = cheapest(fuser, begin, end)
    kept = [section for section in made if section.num_kernels or section.network_seconds]
    return [_numbered(section, number + i) for i, section in enumerate(kept)]


def cheapest(fuser: Fuser, begin: int, end: int) -> list[Section]:
    """Returns the sections of [begin, end) that take the least time together."""
    best: list[float] = [0.0] + [float("inf")] * (end - begin)
    chosen: list[Section | None] = [None] * (end - begin + 1)
    for last in range(begin + 1, end + 1):
        for first in range(last - 1, max(begin, last - _MAX_OPERATIONS) - 1, -1):
            section = fuser.section(first, last)
            if section is None:
                break  # a longer one needs more units still
            seconds = best[first - begin] + section.seconds
            if seconds < best[last - begin]:
                best[last - begin], chosen[last - begin] = seconds, section
    found: list[Section] = []
    place = end
    while place > begin:
        section = chosen[place - begin]
        assert section is not None  # an operation alone always fits
        found.append(section)
        place = section.begin
    return found[::-1]


def _whole(fuser: Fuser, begin: int, end: int) -> Section:
    section = fuser.section(begin, end)
    if section is None:
        raise ConfigurationError(
            f"the rules fuse operations {begin} to {end - 1}, for which {fuser.target.name!r} has not the units; "
            "split the rule"
        )
    return section


def _numbered(section: Section, number: int) -> Section:
    return replace(section, id=number)
