"""Other plans of the same model, made to hold a plan against: launches by the host, no fusion, devices, batch.

Each is really planned; the cheapest to make come first, and none is begun once the time is up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from ...errors import DoesNotFitError, PlaitError
from ..configuration import Configuration
from ..fuse.search import cut_into_sections
from ..fuse.sections import Sections
from ..fuse.work import works_of
from ..mapping import Fusion, Mapped
from ..mesh import Mesh
from ..partition.result import Partition
from ..partition.search import partition
from ..partition.skeleton import skeleton
from ..pipeline import Compilation
from ..schedule import Schedule, schedule
from ..text import format_bytes
from ..trace import Traced, trace_model

__all__ = ["Variant", "VariantKind", "plan_variant", "variants_of"]

VariantKind: TypeAlias = Literal["launches", "unfused", "devices", "batch"]
_BATCH_TIMES = 16


@dataclass(frozen=True)
class Variant:
    """A plan that differs from another one in one thing."""

    kind: VariantKind
    what: str  # that differs, e.g. "8 devices"
    num_devices: int
    batch: int
    schedule: Schedule | None  # None if there is no such plan
    why: str = ""  # there is none

    @property
    def tokens_per_s(self) -> float | None:
        """New tokens of all sequences a second, of a decode step."""
        return None if self.schedule is None else self.batch / self.schedule.seconds


@dataclass(frozen=True)
class _Asked:
    kind: VariantKind
    what: str
    num_devices: int
    batch: int
    make: Callable[[], Schedule]


def variants_of(
    compilation: Compilation,
    plan: Partition,
    mapped: Mapped,
    *,
    end: float,
    progress: Callable[[str], None],
) -> tuple[Variant, ...]:
    """Returns other plans of a model.

    Args:
        compilation: The plan that they differ from.
        plan: Its partition.
        mapped: Its kernels.
        end: When to begin no more, on the monotonic clock.
        progress: Told each one before it is made.
    """
    found: list[Variant] = []
    for asked in _asked(compilation, plan, mapped):
        if time.monotonic() >= end:
            break
        progress(f"what if: {asked.what}")
        made, why = None, ""
        try:
            made = asked.make()
        except DoesNotFitError as error:
            need, limit = format_bytes(error.demand_bytes), format_bytes(error.limit_bytes)
            why = f"each device would need {need} of {error.tier} and has {limit}"
        except PlaitError as error:
            why = str(error)
        found.append(Variant(asked.kind, asked.what, asked.num_devices, asked.batch, made, why))
    return tuple(found)


def _asked(compilation: Compilation, plan: Partition, mapped: Mapped) -> Iterator[_Asked]:
    target, shapes = compilation.target, compilation.configuration
    if compilation.fusion.orchestration == "hardware" and target.compute.software_launch_seconds is not None:
        by_host = replace(compilation.fusion, orchestration="software")
        yield _Asked(
            "launches",
            "launches by the host",
            plan.num_devices,
            shapes.batch,
            lambda: _fused_again(compilation, plan, mapped, by_host),
        )
    if compilation.fusion.mode != "o0":
        apart = replace(compilation.fusion, mode="o0", rules=())
        yield _Asked(
            "unfused",
            "nothing fused",
            plan.num_devices,
            shapes.batch,
            lambda: _fused_again(compilation, plan, mapped, apart),
        )
    for count in (plan.num_devices // 2, plan.num_devices * 2):
        if 1 <= count <= target.num_devices and count != plan.num_devices:
            yield _Asked(
                "devices",
                f"{count} devices",
                count,
                shapes.batch,
                lambda count=count: plan_variant(compilation, compilation.traced, shapes, num_devices=count),
            )
    if shapes.phase == "decode":
        larger = replace(shapes, batch=shapes.batch * _BATCH_TIMES)
        yield _Asked(
            "batch", f"batch {larger.batch}", plan.num_devices, larger.batch, lambda: _batch(compilation, plan, larger)
        )


def _fused_again(compilation: Compilation, plan: Partition, mapped: Mapped, fusion: Fusion) -> Schedule:
    """Returns the schedule of the same partition, fused in another way."""
    bones = skeleton(compilation.traced)
    sections = cut_into_sections(
        bones,
        mapped.works,
        compilation.target,
        compilation.dtype,
        mode=fusion.mode,
        orchestration=fusion.orchestration,
        rules=fusion.rules,
    )
    return _timed(compilation, compilation.traced, plan, sections, compilation.configuration)


def _batch(compilation: Compilation, plan: Partition, shapes: Configuration) -> Schedule:
    traced = trace_model(compilation.model, shapes, compilation.dtype)
    return plan_variant(
        compilation, traced, shapes, num_devices=plan.num_devices, mesh=plan.mesh, num_stages=len(plan.stages)
    )


def plan_variant(
    compilation: Compilation,
    traced: Traced,
    shapes: Configuration,
    *,
    num_devices: int,
    mesh: Mesh | None = None,
    num_stages: int | None = None,
) -> Schedule:
    """Returns the schedule of a step that is divided anew.

    Args:
        compilation: Gives model, target, dtype and fusion.
        traced: The step.
        shapes: Its configuration.
        num_devices: Over which it is divided.
        mesh: Of one stage; by default several are tried.
        num_stages: Pipeline stages; by default as many as are best.

    Raises:
        DoesNotFitError: if no plan fits.
    """
    target = compilation.target
    asked = compilation.parallelism
    plan = partition(
        traced,
        target,
        dtype=compilation.dtype,
        num_devices=num_devices,
        mesh=mesh,
        num_stages=num_stages,
        budget_bytes=asked.budget_bytes or target.tiers["hbm"].usable_bytes,
        objective=asked.objective,
        time_limit_seconds=asked.time_limit_seconds,
    )
    bones = skeleton(traced)
    works = works_of(bones, plan.sharding, target, compilation.dtype)
    fusion = compilation.fusion
    sections = cut_into_sections(
        bones,
        works,
        target,
        compilation.dtype,
        mode=fusion.mode,
        orchestration=fusion.orchestration,
        rules=fusion.rules,
    )
    return _timed(compilation, traced, plan, sections, shapes)


def _timed(
    compilation: Compilation, traced: Traced, plan: Partition, sections: Sections, shapes: Configuration
) -> Schedule:
    return schedule(traced, plan, sections, compilation.target, compilation.dtype, configuration=shapes)
