"""The search over mesh shapes and pipelines: how many stages, what mesh each runs on, and what is divided how.

Comes in: a traced graph, a target, how many devices, a budget and an objective. Goes out: a `Partition`. For every
number of stages that divides the devices, and every way to give a stage's devices axes, the sharding problem of the
whole graph on one stage's mesh is solved; then the graph is cut into stages. What was tried is kept, with its cost.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

from ...errors import ConfigurationError, DoesNotFitError, PlaitError
from ..mesh import Mesh
from ..target import Target
from ..trace import Traced
from .footprint import Footprint, footprint
from .formulate import Formulation, Pins, formulate
from .network import collective_seconds
from .plan import Sharding
from .result import Objective, Partition, Stage, Status, Tried
from .skeleton import Skeleton, skeleton
from .solver import Infeasible, Solution, solve
from .stages import balanced_cuts, cut_points
from .timeline import timeline

__all__ = ["candidate_meshes", "partition"]

_AXES = ("x", "y", "z", "w")
_MAX_AXES = 3  # of a mesh of our choosing: strategies grow as a power of it
_NUM_BISECTIONS = 8  # of the memory limit, for objective "memory"
_MAX_TIGHTENINGS = 6  # of the solver's memory limit, where a plan holds more than the problem says
_NO_LIMIT = 1 << 60  # bytes of a device
_NUM_LARGEST = 5  # terms of a report
_LEVERS = {
    "parameter": "store the weights in fewer bits (--weights)",
    "state": "use an optimizer that keeps less (--optimizer)",
    "cache": "lower --batch or --sequence",
    "input": "lower --batch or --sequence",
    "intermediate": "lower --batch or --sequence, or compute layers again (--remat)",
}


@dataclass(frozen=True)
class _Candidate:
    mesh: Mesh  # of one stage
    num_stages: int


@dataclass(frozen=True)
class _Task:
    """What is the same for all candidates."""

    bones: Skeleton
    target: Target
    dtype: str
    budget: int  # bytes of a device
    objective: Objective
    pins: Pins

    def solve(self, mesh: Mesh, limit_bytes: int, limit_seconds: float) -> tuple[Formulation, Solution]:
        """Solves the sharding problem of the graph on one mesh."""
        formulation = formulate(self.bones, mesh, self.target, self.dtype, budget_bytes=limit_bytes, pins=self.pins)
        return formulation, solve(formulation.problem, time_limit_seconds=limit_seconds)


@dataclass(frozen=True)
class _Found:
    tried: Tried
    sharding: Sharding | None = None
    stages: tuple[Stage, ...] = ()
    solution: Solution | None = None
    shortage: _Shortage | None = None


@dataclass(frozen=True)
class _Shortage:
    """Why memory is short."""

    demand_bytes: int  # least that a device must hold
    largest: tuple[tuple[str, int], ...]
    kind: str  # of values that take most


def partition(
    traced: Traced,
    target: Target,
    *,
    dtype: str,
    num_devices: int = 1,
    mesh: Mesh | None = None,
    num_stages: int | None = None,
    budget_bytes: int | None = None,
    objective: Objective = "latency",
    pins: Pins = MappingProxyType({}),
    time_limit_seconds: float = 60.0,
    progress: Callable[[str], None] | None = None,
) -> Partition:
    """Returns the best partition found of a graph over the devices of a target.

    Args:
        traced: The graph.
        target: The machine.
        dtype: That products are computed in.
        num_devices: Devices to use, if `mesh` is not given.
        mesh: Of one stage; by default several shapes are tried.
        num_stages: Pipeline stages; by default as many as are best, or 1 if `mesh` is given.
        budget_bytes: What each device may hold; no limit by default.
        objective: "latency" (of a step), "throughput" (time between steps with all stages busy) or "memory" (of the
            fullest device).
        pins: Layouts that inputs or results may have, by value id.
        time_limit_seconds: Of the whole search.
        progress: Told each mesh before it is tried.

    Raises:
        InfeasibleError: if no plan keeps the budget; it says what is short, and what would help.
        ConfigurationError: if the mesh, the stages or a pin don't fit the graph.
    """
    begin = time.monotonic()
    budget = _NO_LIMIT if budget_bytes is None else budget_bytes
    candidates = list(_candidates(num_devices, mesh, num_stages))
    task = _Task(skeleton(traced), target, dtype, budget, objective, pins)
    found: list[_Found] = []
    for i, candidate in enumerate(candidates):
        if progress:
            progress(_describe(candidate))
        left = time_limit_seconds - (time.monotonic() - begin)
        if left <= 0 and found:
            break
        limit = max(left, 1.0) / (len(candidates) - i)
        found.append(_try(task, candidate, limit))
    planned = [each for each in found if each.sharding is not None]
    if not planned:
        raise _infeasible(task, found, max(each.mesh.num_devices * each.num_stages for each in candidates))
    best = min(planned, key=lambda each: _score(each.tried, objective))
    assert best.sharding is not None
    assert best.solution is not None
    return Partition(
        sharding=best.sharding,
        stages=best.stages,
        objective=objective,
        budget_bytes=budget_bytes,
        cost=best.solution.cost,
        lower_bound=best.solution.lower_bound,
        status=best.tried.status,
        seconds=time.monotonic() - begin,
        tried=tuple(each.tried for each in found),
    )


def candidate_meshes(num_devices: int) -> tuple[Mesh, ...]:
    """Returns the mesh shapes that are tried for a number of devices, the fewest axes first.

    A mesh of 16 is also tried as 8 x 2, 4 x 4 and 4 x 2 x 2: a dim may be divided over several axes, but 8 heads don't
    divide over one axis of 16.
    """
    shapes = sorted(set(_factorizations(num_devices, _MAX_AXES)), key=lambda shape: (len(shape), shape))
    return tuple(Mesh(_AXES[: len(shape)], shape) for shape in shapes)


def _factorizations(number: int, max_factors: int, largest: int | None = None) -> Iterator[tuple[int, ...]]:
    """Yields the ways to write a number as a product of factors over 1, not increasing."""
    if number == 1:
        yield ()
    elif max_factors:
        for factor in range(min(number, largest or number), 1, -1):
            if number % factor == 0:
                for rest in _factorizations(number // factor, max_factors - 1, factor):
                    yield (factor, *rest)


def _candidates(num_devices: int, mesh: Mesh | None, num_stages: int | None) -> Iterator[_Candidate]:
    if mesh is not None:
        yield _Candidate(mesh, num_stages or 1)
        return
    for stages in range(1, num_devices + 1) if num_stages is None else (num_stages,):
        if num_devices % stages == 0:
            yield from (_Candidate(shape, stages) for shape in candidate_meshes(num_devices // stages))
        elif num_stages is not None:
            raise ConfigurationError(f"{num_devices} devices don't divide into {num_stages} pipeline stages")


def _describe(candidate: _Candidate) -> str:
    stages = f"{candidate.num_stages} stages of " if candidate.num_stages > 1 else ""
    return f"{stages}{candidate.mesh}"


def _score(tried: Tried, objective: Objective) -> tuple[float, ...]:
    assert tried.cost is not None
    assert tried.slowest_stage_seconds is not None
    assert tried.device_bytes is not None
    latency, rate, held = tried.cost, tried.slowest_stage_seconds, tried.device_bytes
    return {"latency": (latency, held), "throughput": (rate, latency, held), "memory": (held, latency)}[objective]


def _try(task: _Task, candidate: _Candidate, limit_seconds: float) -> _Found:
    """Solves one candidate; where stages hold more than the budget, again under a lower limit."""
    begin = time.monotonic()
    if candidate.num_stages > 1 and task.bones.has_training_state:
        return _without(candidate, begin, "infeasible", "a training step is not cut into stages")
    allowed = task.budget * candidate.num_stages
    if task.objective == "memory":
        allowed = _least_limit(task, candidate, allowed, limit_seconds / 2)
    first: Solution | None = None
    fullest = 0
    for _ in range(_MAX_TIGHTENINGS):
        formulation, solution = task.solve(candidate.mesh, allowed, limit_seconds)
        if not solution.assignment:
            reason = solution.infeasible
            note = reason.text if reason else "no plan was found in time"
            shortage = _least_terms(task, formulation, reason, candidate.num_stages) if reason else None
            return _without(candidate, begin, solution.status, note, shortage)
        first = first or solution
        sharding = formulation.sharding(solution.assignment)
        stages = _stages(task, candidate, sharding)
        if stages and (fullest := max(stage.footprint.total for stage in stages)) <= task.budget:
            return _planned(candidate, begin, first, solution, sharding, stages)
        allowed = int(allowed * min(0.95, task.budget / max(fullest, 1)))
    return _without(candidate, begin, "infeasible", f"a device would hold {fullest:,} bytes of {task.budget:,}")


def _planned(
    candidate: _Candidate,
    begin: float,
    first: Solution,
    solution: Solution,
    sharding: Sharding,
    stages: tuple[Stage, ...],
) -> _Found:
    is_optimal = solution is first and solution.status == "optimal"
    tried = Tried(
        mesh=candidate.mesh,
        num_stages=candidate.num_stages,
        status="optimal" if is_optimal else "feasible",
        cost=solution.cost,
        lower_bound=min(first.lower_bound, solution.cost),
        slowest_stage_seconds=max(stage.seconds for stage in stages),
        device_bytes=max(stage.footprint.total for stage in stages),
        seconds=time.monotonic() - begin,
    )
    return _Found(tried, sharding, stages, solution)


def _without(
    candidate: _Candidate, begin: float, status: Status, note: str, shortage: _Shortage | None = None
) -> _Found:
    seconds = time.monotonic() - begin
    tried = Tried(candidate.mesh, candidate.num_stages, status, None, None, None, None, seconds, note)
    return _Found(tried, shortage=shortage)


def _least_limit(task: _Task, candidate: _Candidate, most: int, limit_seconds: float) -> int:
    """Returns about the lowest memory limit under which there still is a plan, by bisection."""
    least = 0
    for _ in range(_NUM_BISECTIONS):
        middle = (least + most) // 2
        _, solution = task.solve(candidate.mesh, middle, limit_seconds / _NUM_BISECTIONS)
        if solution.assignment:
            most = middle
        else:
            least = middle
    return most


def _stages(task: _Task, candidate: _Candidate, sharding: Sharding) -> tuple[Stage, ...]:
    """Cuts the graph into a candidate's stages; returns none if no cut keeps the budget."""
    traced = task.bones.traced
    times = [time.seconds for time in timeline(task.bones, sharding, task.target, task.dtype)]
    num_operations = len(times)
    if candidate.num_stages == 1:
        held = footprint(traced, sharding)
        return (Stage(0, num_operations, 0, sum(times), held),)
    points = cut_points(task.bones.merged.runs, num_operations)
    units = list(pairwise(points))
    handover = [_handover_seconds(task, sharding, begin) for begin in points[:-1]]
    stored = [_stored_bytes(footprint(traced, sharding, begin, end)) for begin, end in units]
    temporaries = footprint(traced, sharding).temporaries
    cuts = balanced_cuts(
        [sum(times[begin:end]) for begin, end in units],
        stored,
        candidate.num_stages,
        budget_bytes=task.budget - temporaries,
        handover_seconds=handover,
    )
    if cuts is None:
        return ()
    return tuple(
        Stage(
            begin=points[first],
            end=points[last],
            first_device=number * candidate.mesh.num_devices,
            seconds=sum(times[points[first] : points[last]]) + handover[first],
            footprint=footprint(traced, sharding, points[first], points[last]),
        )
        for number, (first, last) in enumerate(pairwise(cuts))
    )


def _stored_bytes(held: Footprint) -> int:
    return held.total - held.temporaries


def _handover_seconds(task: _Task, sharding: Sharding, cut: int) -> float:
    """Returns the time to send the values that cross a cut to the next stage, each device its own part."""
    graph = task.bones.traced.graph
    made = {value for operation in graph.operations[:cut] for value in operation.outputs}
    read = {value for operation in graph.operations[cut:] for value in operation.inputs}
    kept = sharding.layouts(graph)
    crossing = sum(graph.values[value].bytes // sharding.mesh.num_shards(kept[value].axes) for value in made & read)
    return collective_seconds("permute", crossing, 2, task.target.network) if crossing else 0.0


def _least_terms(task: _Task, formulation: Formulation, reason: Infeasible, num_stages: int) -> _Shortage | None:
    """Returns what is short where memory is the reason, of one device of one stage."""
    if reason.reason != "memory":
        return None
    names = [(formulation.problem.name(node), int(size / num_stages)) for node, size in reason.largest]
    kinds: Counter[str] = Counter()
    for node, size in reason.largest:
        about = formulation.nodes[node]
        kinds[task.bones.values[about.made].kind if about.kind == "input" else "intermediate"] += int(size)
    return _Shortage(
        int(reason.demand / num_stages), tuple(names), kinds.most_common(1)[0][0] if kinds else "parameter"
    )


def _infeasible(task: _Task, found: Sequence[_Found], num_devices: int) -> PlaitError:
    """Returns the error that says why no candidate has a plan; the numbers are of the one that lacks the least."""
    short = [each.shortage for each in found if each.shortage is not None]
    if not short:
        notes = "; ".join(f"{each.tried.mesh}: {each.tried.note}" for each in found)
        return ConfigurationError(f"no plan for {task.bones.traced.graph.name} on {num_devices} devices: {notes}")
    least = min(short, key=lambda shortage: shortage.demand_bytes)
    enough = max(-(-least.demand_bytes * num_devices // max(task.budget, 1)), num_devices + 1)
    return DoesNotFitError(
        subject=f"each of {num_devices} devices for {task.bones.traced.graph.name}",
        tier="hbm",
        demand_bytes=max(least.demand_bytes, task.budget + 1),
        limit_bytes=task.budget,
        largest_terms=least.largest[:_NUM_LARGEST],
        levers=(f"use at least {enough} devices (--devices or a larger target)", _LEVERS[least.kind]),
    )
