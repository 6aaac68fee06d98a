"""A partitioned step mapped onto a target: fuse, place, schedule, each verified before the next.

    fuse -> place -> plan_tiers -> schedule

Comes in: a step as traced and partitioned. Goes out: a `Mapped`, which holds the nouns. The same step always maps
in the same way, so a plan file keeps the partition only, and what it was fused by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from .configuration import Configuration
from .fuse import Mode, Sections
from .fuse.rules import FusionRule
from .fuse.search import cut_into_sections
from .fuse.sections import Orchestration
from .fuse.work import Work, works_of
from .memory.tiers import TierPlan, plan_tiers
from .partition.result import Partition
from .partition.skeleton import skeleton
from .place import Placement, place
from .schedule import Schedule, schedule
from .target import Target
from .trace import Traced
from .verify.fusion import verify_schedule, verify_sections
from .verify.placement import verify_placement
from .verify.tiers import verify_tier_plan

__all__ = ["MAPPING_STAGES", "Fusion", "Mapped", "MappingStage", "map_step"]

MappingStage: TypeAlias = Literal["fuse", "place", "plan_tiers", "schedule"]
MAPPING_STAGES: tuple[MappingStage, ...] = get_args(MappingStage)


@dataclass(frozen=True)
class Fusion:
    """How operations become kernels."""

    mode: Mode = "o3"
    orchestration: Orchestration = "hardware"  # who launches them
    rules: tuple[FusionRule, ...] = field(default=())  # of mode o1


@dataclass(frozen=True)
class Mapped:
    """What the devices of a target run, where, and when."""

    works: tuple[Work, ...]  # of one device, an operation each
    sections: Sections
    placement: Placement | None
    tiers: TierPlan | None
    schedule: Schedule | None


def map_step(
    traced: Traced,
    plan: Partition,
    target: Target,
    dtype: str,
    *,
    configuration: Configuration,
    fusion: Fusion | None = None,
    stop_after: MappingStage = "schedule",
    progress: Callable[[MappingStage], None] = lambda stage: None,
) -> Mapped:
    """Maps a partitioned step onto a target.

    Args:
        traced: The step.
        plan: How it is divided over devices.
        target: The machine.
        dtype: That it is computed in.
        configuration: Its shapes.
        fusion: How it is fused; by search by default.
        stop_after: The last stage to run.
        progress: Told each stage before it runs.
    """
    wanted = MAPPING_STAGES[: MAPPING_STAGES.index(stop_after) + 1]
    how = fusion or Fusion()
    progress("fuse")
    bones = skeleton(traced)
    works = works_of(bones, plan.sharding, target, dtype)
    sections = cut_into_sections(
        bones, works, target, dtype, mode=how.mode, orchestration=how.orchestration, rules=how.rules
    )
    verify_sections(sections, works, traced.graph, target)
    placement = tiers = timed = None
    if "place" in wanted:
        progress("place")
        placement = place(sections, plan, target)
        verify_placement(placement, sections, plan, target)
    if "plan_tiers" in wanted:
        progress("plan_tiers")
        tiers = plan_tiers(traced, plan, works, sections, target)
        verify_tier_plan(tiers, traced.graph, plan, works, sections)
    if "schedule" in wanted:
        progress("schedule")
        timed = schedule(traced, plan, sections, target, dtype, configuration=configuration, works=works, tiers=tiers)
        verify_schedule(timed, sections)
    return Mapped(works, sections, placement, tiers, timed)
