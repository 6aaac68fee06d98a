"""The search over mesh shapes and pipelines: how many stages, what mesh each runs on, and what is divided how.

Comes in: a traced graph, a target, how many devices, a budget and an objective. Goes out: a `Partition`. For every
number of stages that divides the devices, and every way to give a stage's devices axes, the sharding problem of the
whole graph on one stage's mesh is solved; then the graph is cut into stages. What was tried is kept, with its cost.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType

from ...errors import ConfigurationError, DoesNotFitError, PlaitError
from ..mesh import Mesh
from ..target import Target
from ..trace import Traced
from .footprint import Footprints
from .formulate import Formulation, Pins, formulate
from .network import collective_seconds
from .plan import Sharding
from .result import Objective, Partition, Stage, Status, Tried
from .skeleton import Skeleton, skeleton
from .solver import Infeasible, Solution, solve
from .stages import balanced_cuts, cut_points, handed_over_bytes
from .timeline import timeline

__all__ = ["Replanned", "candidate_meshes", "partition", "replan", "score"]

_AXES = ("x", "y", "z", "w")
_MAX_AXES = 3  # of a mesh of our choosing: strategies grow as a power of it
_NUM_BISECTIONS = 8  # of the memory limit, for objective "memory"
_MAX_TIGHTENINGS = 6  # of the solver's memory limit, where a plan holds more than the problem says
_NO_LIMIT = 1 << 46  # bytes of a device; those of many devices still are an integer of 64 bits
_NUM_LARGEST = 5  # terms of a report
_LEVERS: Mapping[str, str] = {
    "devices": "use at least {devices} devices (--devices or a larger target)",
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
    given: Formulation | None = None  # the problem of the one mesh that is tried, if it is known
    levers: Mapping[str, str] = field(default_factory=lambda: _LEVERS)  # what to do where memory is short

    def solve(self, mesh: Mesh, limit_bytes: int, limit_seconds: float) -> tuple[Formulation, Solution]:
        """Solves the sharding problem of the graph on one mesh."""
        if self.given is None:
            formulation = formulate(self.bones, mesh, self.target, self.dtype, budget_bytes=limit_bytes, pins=self.pins)
        else:
            formulation = replace(self.given, problem=replace(self.given.problem, usage_limit=limit_bytes))
        return formulation, solve(formulation.problem, time_limit_seconds=limit_seconds)


@dataclass(frozen=True)
class _Found:
    tried: Tried
    sharding: Sharding | None = None
    stages: tuple[Stage, ...] = ()
    solution: Solution | None = None
    shortage: _Shortage | None = None
    allowed: int = _NO_LIMIT  # bytes that the problem was solved under
    is_conflict: bool = False  # whether no strategies suit each other


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
    levers: Mapping[str, str] = _LEVERS,
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
        levers: What the caller can do where memory is short: about "devices", and by the kind of value that takes most.

    Raises:
        InfeasibleError: if no plan keeps the budget; it says what is short, and what would help.
        ConfigurationError: if the mesh, the stages or a pin don't fit the graph.
    """
    begin = time.monotonic()
    budget = _NO_LIMIT if budget_bytes is None else budget_bytes
    candidates = list(_candidates(num_devices, mesh, num_stages))
    task = _Task(skeleton(traced), target, dtype, budget, objective, pins, levers=levers)
    opened: list[_Opened | _Found] = []
    for i, candidate in enumerate(candidates):
        if progress:
            progress(_describe(candidate))
        left = time_limit_seconds - (time.monotonic() - begin)
        if left <= 0 and opened:
            break
        opened.append(_open(task, candidate, max(left, 1.0) / (len(candidates) - i)))
    found = _close_best(task, opened, begin + time_limit_seconds)
    planned = [each for each in found if each.sharding is not None]
    if not planned:
        raise _infeasible(task, found, max(each.mesh.num_devices * each.num_stages for each in candidates))
    best = min(planned, key=lambda each: score(each.tried, objective))
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
        limit_bytes=None if best.allowed >= _NO_LIMIT else best.allowed,
    )


@dataclass(frozen=True)
class Replanned:
    """The best plan of a sharding problem."""

    tried: Tried
    sharding: Sharding | None  # None if there is no plan
    short_bytes: int = 0  # that a device lacks, if memory is why there is none
    is_conflict: bool = False  # whether there is none for want of ways between layouts


def replan(
    formulation: Formulation,
    target: Target,
    dtype: str,
    *,
    num_stages: int,
    objective: Objective,
    budget_bytes: int | None,
    time_limit_seconds: float,
) -> Replanned:
    """Returns the best plan of a sharding problem: what `partition` finds on its mesh, in as many stages.

    Args:
        formulation: The problem; its memory limit does not count.
        target: The machine.
        dtype: That products are computed in.
        num_stages: Pipeline stages.
        objective: What is least.
        budget_bytes: What each device may hold; no limit by default.
        time_limit_seconds: In which to be back.
    """
    budget = _NO_LIMIT if budget_bytes is None else budget_bytes
    task = _Task(formulation.skeleton, target, dtype, budget, objective, MappingProxyType({}), formulation)
    opened = _open(task, _Candidate(formulation.mesh, num_stages), time_limit_seconds)
    found = opened if isinstance(opened, _Found) else _close(task, opened, time_limit_seconds)
    short = found.shortage.demand_bytes - budget if found.shortage else 0
    return Replanned(found.tried, found.sharding, short, found.is_conflict)


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


def score(tried: Tried, objective: Objective) -> tuple[float, ...]:
    """Returns what is least of the plan that was found on a mesh, then what decides between equals."""
    assert tried.cost is not None
    assert tried.slowest_stage_seconds is not None
    assert tried.device_bytes is not None
    latency, rate, held = tried.cost, tried.slowest_stage_seconds, tried.device_bytes
    return {"latency": (latency, held), "throughput": (rate, latency, held), "memory": (held, latency)}[objective]


@dataclass(frozen=True)
class _Opened:
    """A candidate whose sharding problem is solved; what its devices hold has not been looked at."""

    candidate: _Candidate
    allowed: int  # bytes that the problem was solved under
    formulation: Formulation
    solution: Solution
    seconds: float  # that it took


def _open(task: _Task, candidate: _Candidate, limit_seconds: float) -> _Opened | _Found:
    """Solves the sharding problem of one candidate."""
    begin = time.monotonic()
    if candidate.num_stages > 1 and task.bones.has_training_state:
        return _without(candidate, begin, "infeasible", "a training step is not cut into stages")
    allowed = task.budget * candidate.num_stages
    if task.objective == "memory":
        allowed = _least_limit(task, candidate, allowed, limit_seconds / 2)
    formulation, solution = task.solve(candidate.mesh, allowed, limit_seconds)
    if not solution.assignment:
        return _unsolved(task, candidate, begin, formulation, solution)
    return _Opened(candidate, allowed, formulation, solution, time.monotonic() - begin)


def _close_best(task: _Task, opened: Sequence[_Opened | _Found], deadline: float) -> list[_Found]:
    """Cuts candidates into stages, the most promising first; what cannot beat the best one is left as it is."""
    found = {i: each for i, each in enumerate(opened) if isinstance(each, _Found)}
    rest = [(_least_score(each, task.objective), i, each) for i, each in enumerate(opened) if isinstance(each, _Opened)]
    best = math.inf
    for least, i, each in sorted(rest, key=lambda entry: entry[:2]):
        if least > best:
            begin = time.monotonic() - each.seconds
            found[i] = _Found(_tried(each.candidate, begin, each.solution, each.solution))
            continue
        found[i] = _close(task, each, max(deadline - time.monotonic(), 1.0))
        if found[i].sharding is not None:
            best = min(best, score(found[i].tried, task.objective)[0])
    return [found[i] for i in range(len(opened))]


def _close(task: _Task, opened: _Opened, limit_seconds: float) -> _Found:
    """Cuts a candidate into stages; where they hold more than the budget, solves it again under a lower limit."""
    candidate, formulation, solution, allowed = opened.candidate, opened.formulation, opened.solution, opened.allowed
    begin = time.monotonic() - opened.seconds
    held = 0  # by the fullest device of the leanest plan so far
    for attempt in range(_MAX_TIGHTENINGS):
        if attempt:
            formulation, solution = task.solve(candidate.mesh, allowed, limit_seconds)
            if not solution.assignment:
                return _unsolved(task, candidate, begin, formulation, solution, held)
        sharding = formulation.sharding(solution.assignment)
        stages = _stages(task, candidate, sharding)
        fullest = max((stage.footprint.total for stage in stages), default=0)
        if stages and fullest <= task.budget:
            tried = _tried(candidate, begin, opened.solution, solution, stages)
            return _Found(tried, sharding, stages, solution, allowed=allowed)
        held = min(held or fullest, fullest)
        allowed = int(allowed * min(0.95, task.budget / max(fullest, 1)))
    note = f"a device would hold {held:,} bytes of {task.budget:,}" if held else "no cut keeps the budget"
    return _without(candidate, begin, "infeasible", note)


def _unsolved(
    task: _Task,
    candidate: _Candidate,
    begin: float,
    formulation: Formulation,
    solution: Solution,
    held_bytes: int = 0,
) -> _Found:
    reason = solution.infeasible
    note = reason.text if reason else "no plan was found in time"
    shortage = _least_terms(task, formulation, reason, candidate.num_stages, held_bytes) if reason else None
    found = _without(candidate, begin, solution.status, note, shortage)
    return replace(found, is_conflict=reason is not None and reason.reason == "conflict")


def _least_score(opened: _Opened, objective: Objective) -> float:
    """Returns what a candidate scores at best, however its stages turn out."""
    cost = opened.solution.cost
    return {"latency": cost, "throughput": cost / opened.candidate.num_stages, "memory": 0.0}[objective]


def _tried(
    candidate: _Candidate, begin: float, first: Solution, solution: Solution, stages: tuple[Stage, ...] = ()
) -> Tried:
    is_optimal = solution is first and solution.status == "optimal"
    return Tried(
        mesh=candidate.mesh,
        num_stages=candidate.num_stages,
        status="optimal" if is_optimal else "feasible",
        cost=solution.cost,
        lower_bound=min(first.lower_bound, solution.cost),
        slowest_stage_seconds=max((stage.seconds for stage in stages), default=None),
        device_bytes=max((stage.footprint.total for stage in stages), default=None),
        seconds=time.monotonic() - begin,
    )


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
    held = Footprints(traced, sharding)
    if candidate.num_stages == 1:
        return (Stage(0, num_operations, 0, sum(times), held.of()),)
    points = cut_points(task.bones.merged.runs, num_operations)
    units = list(pairwise(points))
    handover = [
        collective_seconds("permute", size, 2, task.target.network) if size else 0.0
        for size in handed_over_bytes(traced.graph, sharding, points[:-1])
    ]
    cuts = balanced_cuts(
        [sum(times[begin:end]) for begin, end in units],
        held.stored_bytes(points),
        candidate.num_stages,
        budget_bytes=task.budget - held.of().temporaries,
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
            footprint=held.of(points[first], points[last]),
        )
        for number, (first, last) in enumerate(pairwise(cuts))
    )


def _least_terms(
    task: _Task, formulation: Formulation, reason: Infeasible, num_stages: int, held_bytes: int
) -> _Shortage | None:
    """Returns what is short where memory is the reason, of one device of one stage; a plan that was found held more."""
    if reason.reason != "memory":
        return None
    names = [(formulation.problem.names[node], int(size / num_stages)) for node, size in reason.largest]
    kinds: Counter[str] = Counter()
    for node, size in reason.largest:
        about = formulation.nodes[node]
        kinds[task.bones.values[about.made].kind if about.kind == "input" else "intermediate"] += int(size)
    return _Shortage(
        max(int(reason.demand / num_stages), held_bytes),
        tuple(names),
        kinds.most_common(1)[0][0] if kinds else "parameter",
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
        levers=(task.levers["devices"].format(devices=enough), task.levers[least.kind]),
    )
