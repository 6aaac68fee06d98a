"""Three tiers of one step: where every buffer of a device is while the step's sections run one after the other.

Comes in: a partitioned step and its sections. Goes out: a `TierPlan`. In HBM are parameters, caches, state and inputs
for the whole step, and what one section hands to a later one, from the launch that writes it up to, not including, the
one after the last that reads it. As nothing is allocated while a step runs, buffers that are never live at once share
addresses. Over budget, the buffers that the step moves least are put into DDR, those that are not weights first, as
SambaNova's compiler does (arXiv 2405.07518); a bound says how little DDR traffic any choice has. In SRAM is what the
stages of a section keep, at offsets from the exact packer. `verify.tiers.verify_tier_plan` checks a plan.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, TypeAlias

from ..fuse.sections import Launch, Section, Sections
from ..fuse.work import Work
from ..graph import ValueKind
from ..partition.result import Partition
from ..partition.skeleton import buffer_roots
from ..target import Target
from ..text import format_bytes, format_seconds
from ..trace import Traced
from .packing import Buffer, Packing, solve_packing

__all__ = ["PlannedBuffer", "SectionSram", "StageTiers", "TierPlan", "plan_tiers"]

Held: TypeAlias = Literal["hbm", "ddr"]
_PACKING_SECONDS = 1.0  # for the buffers of one stage, or of one section
_WEIGHTS: tuple[ValueKind, ...] = ("parameter",)


@dataclass(frozen=True)
class PlannedBuffer:
    """A buffer of one device."""

    value: int  # id of the value that owns it
    name: str  # of an input, or of the operation that makes it
    kind: ValueKind
    tier: Held
    bytes: int
    offset_bytes: int  # in its tier
    begin: int  # first launch of the stage at which it is live
    end: int  # launch behind the last
    moved_bytes: int  # that the step reads and writes of it


@dataclass(frozen=True)
class SectionSram:
    """SRAM of one section: offsets of what its stages keep."""

    section: int
    height_bytes: int
    lower_bound_bytes: int  # nothing is lower
    capacity_bytes: int
    offsets_bytes: tuple[int, ...]  # of each stage
    bytes: tuple[int, ...]  # of each stage
    phases: tuple[tuple[int, int], ...]  # in which each is live: half-open


@dataclass(frozen=True)
class StageTiers:
    """What one device of a pipeline stage holds."""

    first_device: int
    num_launches: int
    buffers: tuple[PlannedBuffer, ...]
    budget_bytes: int  # of HBM
    hbm_bytes: int  # highest address in use
    hbm_lower_bound_bytes: int  # most that is live in HBM at once
    ddr_bytes: int
    spill_bytes_moved: int  # between DDR and the chip, in one step
    spill_lower_bound_bytes: int  # that any choice of buffers moves
    spill_seconds: float  # of one step, at DDR's rate

    @property
    def fits(self) -> bool:
        """Whether HBM is enough for what is in it."""
        return self.hbm_bytes <= self.budget_bytes


@dataclass(frozen=True)
class TierPlan:
    """SRAM, HBM and DDR of one step, of one device of each pipeline stage."""

    name: str
    stages: tuple[StageTiers, ...]
    sections: tuple[SectionSram, ...]

    def as_text(self) -> str:
        """Returns a line a stage."""
        lines = [f"tiers of {self.name}"]
        for stage in self.stages:
            lines.append(
                f"  device {stage.first_device}: hbm {format_bytes(stage.hbm_bytes)} of "
                f"{format_bytes(stage.budget_bytes)} (at least {format_bytes(stage.hbm_lower_bound_bytes)}), ddr "
                f"{format_bytes(stage.ddr_bytes)}, {format_bytes(stage.spill_bytes_moved)} spilled a step "
                f"(at least {format_bytes(stage.spill_lower_bound_bytes)}, {format_seconds(stage.spill_seconds)})"
            )
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, object]:
        """Returns it as JSON has it."""
        return asdict(self)

    def to_json(self) -> str:
        """Returns it as JSON text."""
        return json.dumps(self.to_dict())


def plan_tiers(traced: Traced, plan: Partition, works: Sequence[Work], sections: Sections, target: Target) -> TierPlan:
    """Plans the three tiers of a step.

    Args:
        traced: The step.
        plan: How it is divided over devices.
        works: What one device does of each operation.
        sections: The step's kernels.
        target: The machine.
    """
    budget = plan.budget_bytes or target.tiers["hbm"].usable_bytes
    stages: list[StageTiers] = []
    for stage in plan.stages:
        launches = [launch for launch in sections.launches if stage.begin <= launch.begin < stage.end]
        buffers = list(_Buffers(traced, plan, works, sections, launches).all())
        stages.append(_stage(buffers, stage.first_device, len(launches), budget, target))
    return TierPlan(traced.graph.name, tuple(stages), tuple(_section_sram(each, target) for each in sections.sections))


class _Buffers:
    """The buffers of one device of one pipeline stage."""

    def __init__(
        self,
        traced: Traced,
        plan: Partition,
        works: Sequence[Work],
        sections: Sections,
        launches: Sequence[Launch],
    ) -> None:
        self.graph, self.works, self.num_launches = traced.graph, works, len(launches)
        self.roots: dict[int, int] = buffer_roots(traced.graph)
        self.kept = plan.sharding.layouts(traced.graph)
        self.mesh = plan.mesh
        self.reads: dict[int, list[int]] = defaultdict(list)  # launches, by buffer
        self.writes: dict[int, list[int]] = defaultdict(list)
        self.moved: Counter[int] = Counter()
        self.makers: dict[int, str] = {}
        self.made = {touch.buffer for work in works for touch in work.writes}  # in any stage
        for number, launch in enumerate(launches):
            section = sections.sections[launch.section]
            for place in range(launch.begin, launch.begin + section.end - section.begin):
                self._note(works[place], number)

    def _note(self, work: Work, number: int) -> None:
        for touch in work.reads:
            self.reads[touch.buffer].append(number)
            self.moved[touch.buffer] += int(touch.bytes)
        for touch in work.writes:
            self.writes[touch.buffer].append(number)
            self.moved[touch.buffer] += int(touch.bytes)
            self.makers.setdefault(touch.buffer, f"{work.path}/{work.name}".lstrip("/"))

    def all(self) -> Iterator[PlannedBuffer]:
        """Yields them, not yet placed."""
        given = {self.roots.get(value, value) for value in self.graph.inputs}
        results = {self.roots.get(value, value) for value in self.graph.outputs}
        for buffer in sorted({*self.reads, *self.writes}):
            value = self.graph.values[buffer]
            is_given = buffer in given or value.kind == "constant"
            if not is_given and buffer not in self.made:
                continue  # an index, made where it is read
            is_handed = not is_given and buffer not in self.writes  # by the stage before
            used = (*self.writes[buffer], *self.reads[buffer])
            if not (is_given or is_handed or buffer in results) and min(used) == max(used):
                continue  # stays on the chip
            begin = 0 if is_given or is_handed else min(used)
            end = self.num_launches if is_given or buffer in results else max(used) + 1
            yield PlannedBuffer(
                value=buffer,
                name=value.name or self.makers.get(buffer, f"value {buffer}"),
                kind=value.kind,
                tier="hbm",
                bytes=value.bytes // self.mesh.num_shards(self.kept[buffer].axes),
                offset_bytes=0,
                begin=begin,
                end=end,
                moved_bytes=self.moved[buffer],
            )


def _stage(
    buffers: Sequence[PlannedBuffer], first_device: int, num_launches: int, budget: int, target: Target
) -> StageTiers:
    spilled = _spilled(buffers, num_launches, budget) if "ddr" in target.tiers else set[int]()
    kept = [buffer for i, buffer in enumerate(buffers) if i not in spilled]
    away = [replace(buffer, tier="ddr") for i, buffer in enumerate(buffers) if i in spilled]
    placed, height, bound = _placed(kept, num_launches, budget)
    aside, depth, _ = _placed(away, num_launches, target.tiers["ddr"].capacity_bytes if away else 0)
    moved = sum(buffer.moved_bytes for buffer in away)
    short = max(0, max(_loads(buffers, num_launches), default=0) - budget)
    rate = target.tiers["ddr"].sustained_bytes_per_s if "ddr" in target.tiers else float("inf")
    return StageTiers(
        first_device=first_device,
        num_launches=num_launches,
        buffers=(*placed, *aside),
        budget_bytes=budget,
        hbm_bytes=height,
        hbm_lower_bound_bytes=bound,
        ddr_bytes=depth,
        spill_bytes_moved=moved,
        spill_lower_bound_bytes=_least_moved(buffers, short),
        spill_seconds=moved / rate,
    )


def _loads(buffers: Sequence[PlannedBuffer], num_launches: int) -> list[int]:
    changes = [0] * (num_launches + 1)
    for buffer in buffers:
        changes[buffer.begin] += buffer.bytes
        changes[buffer.end] -= buffer.bytes
    loads: list[int] = []
    total = 0
    for change in changes[:-1]:
        total += change
        loads.append(total)
    return loads


def _spilled(buffers: Sequence[PlannedBuffer], num_launches: int, budget: int) -> set[int]:
    """Returns which buffers go to DDR: the least moved first, weights last, until every moment keeps the budget."""
    loads = _loads(buffers, num_launches)
    order = sorted(range(len(buffers)), key=lambda i: (buffers[i].kind in _WEIGHTS, buffers[i].moved_bytes, i))
    spilled: set[int] = set()
    for i in order:
        live = range(buffers[i].begin, buffers[i].end)
        if buffers[i].bytes and any(loads[moment] > budget for moment in live):
            spilled.add(i)
            for moment in live:
                loads[moment] -= buffers[i].bytes
    return spilled


def _least_moved(buffers: Sequence[PlannedBuffer], short_bytes: int) -> int:
    """Returns a bound: the least traffic of parts of buffers that together are as large as what is short."""
    moved = 0.0
    left = float(short_bytes)
    for buffer in sorted((each for each in buffers if each.bytes), key=lambda each: each.moved_bytes / each.bytes):
        if left <= 0:
            break
        part = min(left, buffer.bytes)
        moved += buffer.moved_bytes * part / buffer.bytes
        left -= part
    return int(moved)


def _placed(buffers: Sequence[PlannedBuffer], num_launches: int, capacity: int) -> tuple[list[PlannedBuffer], int, int]:
    """Returns buffers with their offsets, the height, and the bound: those that stay below, the others packed above."""
    made: list[PlannedBuffer] = []
    base = 0
    passing: list[PlannedBuffer] = []
    for buffer in buffers:
        if (buffer.begin, buffer.end) == (0, num_launches):
            made.append(replace(buffer, offset_bytes=base))
            base += buffer.bytes
        else:
            passing.append(buffer)
    found = _packed([(buffer.begin, buffer.end, buffer.bytes) for buffer in passing], capacity - base)
    made += [replace(buffer, offset_bytes=base + found.offsets[str(i)]) for i, buffer in enumerate(passing)]
    return made, base + (found.height or 0), base + found.lower_bound


def _packed(ranges: Sequence[tuple[int, int, int]], capacity: int) -> Packing:
    """Returns the first packing that fits; if none can, one that is as low as greedy orders get."""
    buffers = [Buffer(str(i), begin, end, size) for i, (begin, end, size) in enumerate(ranges)]
    found = solve_packing(buffers, max(capacity, 0), _PACKING_SECONDS)
    return found if found.height is not None else solve_packing(buffers, sum(each.size for each in buffers))


def _section_sram(section: Section, target: Target) -> SectionSram:
    last: Mapping[int, int] = _last_phases(section)
    phases = tuple((stage.phase, max(stage.phase, last.get(i, 0)) + 1) for i, stage in enumerate(section.stages))
    room = target.chip.pmu_bytes if target.chip else 0
    sizes = tuple(min(stage.sram_bytes, stage.num_pmus * room) for stage in section.stages)  # alone, it streams
    capacity = target.chip.sram_bytes if target.chip else 0
    found = _packed([(begin, end, size) for (begin, end), size in zip(phases, sizes, strict=True)], capacity)
    return SectionSram(
        section=section.id,
        height_bytes=found.height or 0,
        lower_bound_bytes=found.lower_bound,
        capacity_bytes=capacity,
        offsets_bytes=tuple(found.offsets[str(i)] for i in range(len(sizes))),
        bytes=sizes,
        phases=phases,
    )


def _last_phases(section: Section) -> dict[int, int]:
    """Returns of each stage the last phase in which another one reads what it keeps."""
    last: dict[int, int] = {}
    for flow in section.flows:
        if flow.source is not None and flow.target is not None:
            last[flow.source] = max(last.get(flow.source, 0), section.stages[flow.target].phase)
    return last
