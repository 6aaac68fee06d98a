"""Checks a plan of the three tiers against its definition, sharing no code with its planner."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...errors import VerificationError
from ..fuse.sections import Sections
from ..fuse.work import Work
from ..graph import Graph
from ..memory.tiers import SectionSram, StageTiers, TierPlan
from ..partition.result import Partition

__all__ = ["verify_tier_plan"]


def verify_tier_plan(tiers: TierPlan, graph: Graph, plan: Partition, works: Sequence[Work], sections: Sections) -> None:
    """Checks that no two buffers that are live at once share an address, and that all that is used has one.

    Args:
        tiers: To be checked.
        graph: The step.
        plan: How the step is divided.
        works: What one device does of each operation.
        sections: The step's kernels.

    Raises:
        VerificationError: if not; the message says which buffers.
    """
    made = {touch.buffer for work in works for touch in work.writes}
    indices = {value.id for value in graph.values if value.kind == "intermediate"} - made  # made where they are read
    for stage, held in zip(plan.stages, tiers.stages, strict=True):
        for tier in ("hbm", "ddr"):
            _check_addresses(held, tier)
        _check_totals(held)
        _check_presence(held, range(stage.begin, stage.end), works, sections, indices)
    for sram in tiers.sections:
        _check_sram(sram)


def _check_addresses(stage: StageTiers, tier: str) -> None:
    buffers = [buffer for buffer in stage.buffers if buffer.tier == tier and buffer.bytes]
    if not buffers:
        return
    rows = np.array([(b.begin, b.end, b.offset_bytes, b.offset_bytes + b.bytes) for b in buffers], np.int64)
    clash = _first_clash(rows)
    if clash is not None:
        first, second = (buffers[i] for i in clash)
        raise VerificationError(f"{first.name} and {second.name} are live at once and share addresses in {tier}")


def _first_clash(rows: np.ndarray) -> tuple[int, int] | None:
    """Returns two rows (begin, end, low, high) that overlap in both senses, if there are any."""
    order = np.argsort(rows[:, 2], kind="stable")
    rows = rows[order]
    for i, (begin, end, _, high) in enumerate(rows[:-1]):
        above = rows[i + 1 :]
        near = above[: int(np.searchsorted(above[:, 2], high))]
        hit = np.flatnonzero((near[:, 0] < end) & (near[:, 1] > begin))
        if hit.size:
            return int(order[i]), int(order[i + 1 + hit[0]])
    return None


def _check_totals(stage: StageTiers) -> None:
    for tier, height in (("hbm", stage.hbm_bytes), ("ddr", stage.ddr_bytes)):
        top = max((b.offset_bytes + b.bytes for b in stage.buffers if b.tier == tier), default=0)
        if top != height:
            raise VerificationError(f"{tier} is used up to {top} bytes, the plan says {height}")
    loads = np.zeros(stage.num_launches + 1, np.int64)
    for buffer in stage.buffers:
        if buffer.tier == "hbm":
            loads[buffer.begin] += buffer.bytes
            loads[buffer.end] -= buffer.bytes
    peak = int(np.cumsum(loads)[:-1].max(initial=0))
    if not peak <= stage.hbm_lower_bound_bytes <= stage.hbm_bytes:
        raise VerificationError(
            f"{peak} bytes are live in hbm at once, the plan bounds it by {stage.hbm_lower_bound_bytes} and uses "
            f"{stage.hbm_bytes}"
        )
    moved = sum(buffer.moved_bytes for buffer in stage.buffers if buffer.tier == "ddr")
    if not stage.spill_lower_bound_bytes <= moved == stage.spill_bytes_moved:
        raise VerificationError(
            f"spilled buffers move {moved} bytes, the plan says {stage.spill_bytes_moved} and at least "
            f"{stage.spill_lower_bound_bytes}"
        )


def _check_presence(
    stage: StageTiers, operations: range, works: Sequence[Work], sections: Sections, indices: set[int]
) -> None:
    """Whatever one launch writes and a later one reads is held for as long, and so is all that was given."""
    held = {buffer.value: buffer for buffer in stage.buffers}
    written: dict[int, int] = {}
    number = -1
    for launch in sections.launches:
        if launch.begin not in operations:
            continue
        number += 1
        section = sections.sections[launch.section]
        for place in range(launch.begin, launch.begin + section.end - section.begin):
            for touch in works[place].reads:
                is_inside = written.get(touch.buffer) == number or touch.buffer in indices
                buffer = held.get(touch.buffer)
                if not is_inside and (buffer is None or not buffer.begin <= number < buffer.end):
                    raise VerificationError(f"launch {number} reads value {touch.buffer}, which is not held then")
            for touch in works[place].writes:
                written.setdefault(touch.buffer, number)


def _check_sram(sram: SectionSram) -> None:
    rows = np.array(
        [
            (*phase, offset, offset + size)
            for phase, offset, size in zip(sram.phases, sram.offsets_bytes, sram.bytes, strict=True)
        ],
        np.int64,
    ).reshape(-1, 4)
    busy = rows[rows[:, 3] > rows[:, 2]]
    if len(busy) > 1 and _first_clash(busy) is not None:
        raise VerificationError(f"section {sram.section}: two stages that run at once share SRAM")
    top = int(rows[:, 3].max(initial=0))
    if top != sram.height_bytes or top > sram.capacity_bytes:
        raise VerificationError(
            f"section {sram.section} uses {top} bytes of SRAM, the plan says {sram.height_bytes}, there are "
            f"{sram.capacity_bytes}"
        )
