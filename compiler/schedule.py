"""Schedule: the launches, transfers and collectives of one step on a target, timed; latency, energy, bottleneck.

Comes in: a partitioned graph and its sections. Goes out: a `Schedule`. Sections run one after the other on the devices
of their pipeline stage, all devices of a stage alike; in a section compute, SRAM and HBM overlap, then its collectives
follow. Between pipeline stages values are handed over. `verify.schedule.verify_schedule` checks that pieces make the
whole.

Energy: each device draws its idle power at all times, and the rest of its peak power for the share of a step in which
compute or memory, whichever is busier, is at its limit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

from .configuration import Configuration
from .cost import peak_flops_per_s
from .fuse import Section, Sections
from .fuse.sections import BOUNDS, Bound
from .fuse.work import Work
from .memory.tiers import TierPlan
from .partition.caches import cache_results, num_appended
from .partition.network import collective_seconds
from .partition.result import Partition
from .partition.stages import handed_over_bytes
from .target import Target
from .trace import Traced

__all__ = ["Schedule", "Step", "StepKind", "schedule"]

StepKind: TypeAlias = Literal["launch", "kernel", "collective", "handover", "append", "host"]


@dataclass(frozen=True)
class Step:
    """A stretch of time on the devices of one pipeline stage."""

    kind: StepKind
    begin_seconds: float
    seconds: float
    stage: int  # pipeline stage; of a handover the one that receives
    section: int | None  # id; None of what is not launched
    operation: int | None  # first of the launch


@dataclass(frozen=True)
class Schedule:
    """One step of a configuration on a target."""

    configuration: str
    target: str
    num_devices: int
    num_stages: int  # pipeline stages
    mesh: str  # of one stage
    seconds: float  # of the whole batch
    joules: float | None  # of all devices; None if the target says nothing of power
    num_launches: int
    network_seconds: float
    handover_seconds: float
    host_seconds: float  # that every sequence of the batch beyond the first adds
    append_seconds: float  # of keys and values that join caches, of all sequences but one
    hbm_bytes: float  # read and written by one device
    flops: float  # of one device
    busy_compute: float  # share of the step in which compute is at its peak
    busy_memory: float  # share of the step in which HBM is at what kernels sustain
    bound_seconds: Mapping[Bound, float]  # of the step, by what bounds the section
    steps: tuple[Step, ...]

    @property
    def bound(self) -> Bound:
        """What most of the time is bound by."""
        return max(BOUNDS, key=lambda bound: self.bound_seconds[bound])

    def as_text(self) -> str:
        """Returns where the time goes, a line a bound."""
        lines = [f"{self.configuration} on {self.target}: {self.seconds:.3e} s, {self.num_launches} launches"]
        lines += [f"  {bound:<8} {seconds:.3e} s" for bound, seconds in self.bound_seconds.items() if seconds]
        return "\n".join(lines) + "\n"

    def to_dict(self, *, has_steps: bool = False) -> dict[str, object]:
        """Returns it as JSON has it, by default without the single steps."""
        data = asdict(self)
        if not has_steps:
            del data["steps"]
        return {**data, "bound": self.bound}

    def to_json(self) -> str:
        """Returns it as JSON text, steps included."""
        return json.dumps(self.to_dict(has_steps=True))


def schedule(
    traced: Traced,
    plan: Partition,
    sections: Sections,
    target: Target,
    dtype: str,
    *,
    configuration: Configuration,
    works: Sequence[Work] = (),
    tiers: TierPlan | None = None,
) -> Schedule:
    """Returns what one step takes, and when.

    Args:
        traced: The step.
        plan: How it is divided.
        sections: Its kernels.
        target: The machine.
        dtype: That it is computed in.
        configuration: Its shapes.
        works: What one device does of each operation; wanted with `tiers`.
        tiers: Where buffers are; without it none is in DDR.
    """
    ddr = _ddr_seconds(sections, works, tiers, target) if tiers else [0.0] * len(sections.launches)
    host = target.compute.sequence_seconds * (configuration.batch - 1)
    appending = target.compute.append_seconds * _num_appended(traced, plan)
    ends: tuple[tuple[StepKind, float], ...] = (("append", appending), ("host", host))
    steps = tuple(_steps(traced, plan, sections, target, ends, ddr))
    seconds = sum(step.seconds for step in steps)
    compute = sections.total("flops") / peak_flops_per_s(target, dtype) / len(plan.stages)
    moved = sections.total("read_bytes") + sections.total("written_bytes")
    memory = moved / target.tiers["hbm"].sustained_bytes_per_s / len(plan.stages)
    return Schedule(
        configuration=configuration.id,
        target=target.name,
        num_devices=plan.num_devices,
        num_stages=len(plan.stages),
        mesh=str(plan.mesh),
        seconds=seconds,
        joules=_joules(sections, target, dtype, plan, seconds),
        num_launches=sections.num_kernels,
        network_seconds=sections.total("network_seconds"),
        handover_seconds=sum(step.seconds for step in steps if step.kind == "handover"),
        host_seconds=host,
        append_seconds=appending,
        hbm_bytes=moved,
        flops=sections.total("flops"),
        busy_compute=min(1.0, compute / seconds) if seconds else 0.0,
        busy_memory=min(1.0, memory / seconds) if seconds else 0.0,
        bound_seconds=_bound_seconds(sections, ddr),
        steps=steps,
    )


def _num_appended(traced: Traced, plan: Partition) -> float:
    """Returns how many keys and values of a head one device adds to its caches, of all sequences but one."""
    divided = zip(traced.graph.operations, plan.sharding.operations, strict=True)
    return sum(num_appended(cache_results(traced.graph, each), division, plan.mesh) for each, division in divided)


def _ddr_seconds(sections: Sections, works: Sequence[Work], tiers: TierPlan, target: Target) -> list[float]:
    """Returns of each launch the time of what it reads and writes in DDR, which overlaps with all else in a kernel."""
    spilled = {buffer.value for stage in tiers.stages for buffer in stage.buffers if buffer.tier == "ddr"}
    if not spilled:
        return [0.0] * len(sections.launches)
    rate = target.tiers["ddr"].sustained_bytes_per_s
    times: list[float] = []
    for launch in sections.launches:
        section = sections.sections[launch.section]
        inside = works[launch.begin : launch.begin + section.end - section.begin]
        touches = {(touch.buffer, touch.bytes) for work in inside for touch in (*work.reads, *work.writes)}
        times.append(sum(size for buffer, size in touches if buffer in spilled) / rate)
    return times


def _bound_seconds(sections: Sections, ddr: Sequence[float]) -> dict[Bound, float]:
    seconds = dict.fromkeys(BOUNDS, 0.0)
    for launch, spilled in zip(sections.launches, ddr, strict=True):
        section = sections.sections[launch.section]
        more = max(0.0, spilled - _kernel_seconds(section))
        bound = "ddr" if spilled > max(section.terms.values()) else section.bound
        seconds[bound] += section.seconds + more
    return seconds


def _kernel_seconds(section: Section) -> float:
    return section.seconds - section.launch_seconds - section.network_seconds


def _steps(
    traced: Traced,
    plan: Partition,
    sections: Sections,
    target: Target,
    ends: Sequence[tuple[StepKind, float]],
    ddr: Sequence[float],
) -> Iterator[Step]:
    cuts = [stage.begin for stage in plan.stages[1:]]
    handed = handed_over_bytes(traced.graph, plan.sharding, cuts) if cuts else []
    now, stage = 0.0, 0
    for launch, spilled in zip(sections.launches, ddr, strict=True):
        while stage < len(cuts) and launch.begin >= cuts[stage]:
            seconds = collective_seconds("permute", handed[stage], 2, target.network)
            stage += 1
            yield Step("handover", now, seconds, stage, None, None)
            now += seconds
        section = sections.sections[launch.section]
        kernel = max(_kernel_seconds(section), spilled)
        parts: tuple[tuple[StepKind, float], ...] = (
            ("launch", section.launch_seconds),
            ("kernel", kernel),
            ("collective", section.network_seconds),
        )
        for kind, seconds in parts:
            if seconds:
                yield Step(kind, now, seconds, stage, section.id, launch.begin)
                now += seconds
    for kind, seconds in ends:
        if seconds:
            yield Step(kind, now, seconds, stage, None, None)
            now += seconds


def _joules(sections: Sections, target: Target, dtype: str, plan: Partition, seconds: float) -> float | None:
    power = target.power
    if power is None:
        return None
    peak, bandwidth = peak_flops_per_s(target, dtype), target.tiers["hbm"].sustained_bytes_per_s

    def busy(section: Section) -> float:
        compute = section.flops / peak
        memory = (section.read_bytes + section.written_bytes) / bandwidth
        return min(max(compute, memory), section.seconds)

    at_limit = sum(busy(sections.sections[launch.section]) for launch in sections.launches) / len(plan.stages)
    one = power.idle_watts * seconds + (power.peak_watts - power.idle_watts) * at_limit
    return plan.num_devices * one
