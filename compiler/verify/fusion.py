"""Checks sections and schedules against their definition, sharing no code with the search that makes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...errors import VerificationError
from ..fuse.sections import Section, Sections
from ..fuse.work import Work
from ..graph import Graph
from ..schedule import Schedule
from ..target import Target

__all__ = ["verify_schedule", "verify_sections"]

_ROUNDING = 1e-9


def verify_sections(sections: Sections, works: Sequence[Work], graph: Graph, target: Target) -> None:
    """Checks that sections are a legal way to run a graph.

    Every operation that does something runs exactly once, in order; the launches of a section do the same; units and
    SRAM are not given out twice; what is waited for is there; the traffic is at least what has to move.

    Args:
        sections: To be checked.
        works: What one device does of each operation.
        graph: That they are of.
        target: The machine.

    Raises:
        VerificationError: if they are not; the message says where.
    """
    _check_cover(sections, works)
    _check_repetitions(sections, works)
    for section in sections.sections:
        _check_units(section, target)
        _check_phases(section, works)
        _check_traffic(section, works, graph, sections.mode, target)


def _check_cover(sections: Sections, works: Sequence[Work]) -> None:
    seen: list[int] = []
    for launch in sections.launches:
        section = sections.sections[launch.section]
        length = section.end - section.begin
        seen += [place for place in range(launch.begin, launch.begin + length) if works[place].kernels]
    wanted = [place for place, work in enumerate(works) if work.kernels]
    if seen != wanted:
        wrong = next((a for a, b in zip(seen, wanted, strict=False) if a != b), len(seen))
        raise VerificationError(f"{sections.name}: operation {wrong} is not run exactly once, in its turn")


def _check_repetitions(sections: Sections, works: Sequence[Work]) -> None:
    for launch in sections.launches:
        section = sections.sections[launch.section]
        for offset in range(section.end - section.begin):
            shown, other = works[section.begin + offset], works[launch.begin + offset]
            if (shown.name, shown.flops) != (other.name, other.flops):
                raise VerificationError(
                    f"{sections.name}: section {section.id} runs {shown.name} at {section.begin + offset}, but its "
                    f"launch at {launch.begin} would run {other.name}"
                )


def _check_units(section: Section, target: Target) -> None:
    chip = target.chip
    if not section.stages:
        return
    if chip is None:
        raise VerificationError(f"section {section.id} has stages, and {target.name} no chip for them")
    for what, given, have in (
        ("compute", [stage.num_pcus for stage in section.stages], chip.num_pcus),
        ("memory", [stage.num_pmus for stage in section.stages], chip.num_pmus),
    ):
        if min(given) < 1 or sum(given) > have:
            raise VerificationError(
                f"section {section.id} gives out {sum(given)} {what} units of {have}, the least to a stage {min(given)}"
            )
    for stage in section.stages:
        room = stage.num_pmus * chip.pmu_bytes
        if stage.sram_bytes > room and len(section.stages) > 1:
            raise VerificationError(
                f"section {section.id}: {stage.name} at {stage.operation} needs {stage.sram_bytes} bytes of SRAM, its "
                f"{stage.num_pmus} memory units hold {room}"
            )


def _check_phases(section: Section, works: Sequence[Work]) -> None:
    makers: dict[int, int] = {}
    phases = {stage.operation: stage.phase for stage in section.stages}
    for place in sorted(phases):
        work = works[place]
        for touch in work.reads:
            maker = makers.get(touch.buffer)
            if maker is None:
                continue
            wait = touch.buffer in work.waits_for or works[maker].is_accumulated
            if phases[place] < phases[maker] + wait:
                raise VerificationError(
                    f"section {section.id}: {work.name} at {place} runs in phase {phases[place]} and needs what "
                    f"{works[maker].name} at {maker} makes in phase {phases[maker]}"
                )
        for touch in work.writes:
            makers[touch.buffer] = place


def _check_traffic(section: Section, works: Sequence[Work], graph: Graph, mode: str, target: Target) -> None:
    inside = range(section.begin, section.end)
    first = {touch.buffer for place in inside for touch in works[place].writes}
    kept = {
        touch.buffer: touch.bytes
        for place in inside
        for touch in works[place].reads
        if graph.values[touch.buffer].kind in ("parameter", "state", "input", "cache")
    }
    least = sum(size for buffer, size in kept.items() if buffer not in first)
    if section.read_bytes < least * (1 - _ROUNDING) and mode != "o0":
        raise VerificationError(
            f"section {section.id} reads {section.read_bytes:.0f} bytes, at least {least:.0f} are due"
        )
    moved = section.read_bytes + section.written_bytes
    fastest = moved / target.tiers["hbm"].bandwidth_bytes_per_s
    if section.hbm_seconds < fastest * (1 - _ROUNDING):
        raise VerificationError(
            f"section {section.id} moves {moved:.0f} bytes in {section.hbm_seconds:.3e} s, too fast"
        )
    peak = max(target.compute.flops_per_s.values())
    if section.compute_seconds < section.flops / peak * (1 - _ROUNDING):
        raise VerificationError(f"section {section.id} computes {section.flops:.3e} FLOPs above the peak")


def verify_schedule(schedule: Schedule, sections: Sections) -> None:
    """Checks that a schedule's steps follow each other without gaps, and are those of the sections' launches.

    Raises:
        VerificationError: if they do not.
    """
    now = 0.0
    for number, step in enumerate(schedule.steps):
        if not math.isclose(step.begin_seconds, now, rel_tol=1e-6, abs_tol=1e-15):
            raise VerificationError(
                f"{schedule.configuration}: step {number} begins at {step.begin_seconds}, not {now}"
            )
        now += step.seconds
    if not math.isclose(now, schedule.seconds, rel_tol=1e-6, abs_tol=1e-15):
        raise VerificationError(f"{schedule.configuration}: steps take {now} s, the schedule {schedule.seconds} s")
    kernels = [(step.section, step.operation) for step in schedule.steps if step.kind == "kernel"]
    wanted = [
        (launch.section, launch.begin)
        for launch in sections.launches
        if _kernel_seconds(sections.sections[launch.section]) > 0
    ]
    if kernels != wanted:
        raise VerificationError(f"{schedule.configuration}: the kernels are not those of the sections, in their order")


def _kernel_seconds(section: Section) -> float:
    return max(section.compute_seconds, section.sram_seconds, section.hbm_seconds)
