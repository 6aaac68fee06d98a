"""One model planned in many ways, and which of them no other one beats: a `Sweep`.

Comes in: a model, a trial, and what of it is varied. Goes out: a point for each combination: what a step takes, or why
there is none. The Pareto front is of two metrics: a point is on it if no other is as good in both and better in one.
Rates are those of one batch at a time: pipeline stages that wait for each other are not filled.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias, get_args

from ...errors import ConfigurationError, DoesNotFitError, PlaitError
from ...models.config import ModelConfig
from ..fuse import fuse
from ..partition.result import Partition
from ..partition.search import partition
from ..partition.skeleton import skeleton
from ..pipeline import configuration_for
from ..schedule import Schedule, schedule
from ..subject import with_weights
from ..text import format_bytes
from ..trace import Traced, trace_model
from .knobs import Trial, turned

__all__ = ["METRICS", "Metric", "Outcome", "Point", "Sweep", "sweep"]

Metric: TypeAlias = Literal[
    "tokens_per_s_per_user",
    "tokens_per_s_per_socket",
    "tokens_per_s",
    "joules_per_token",
    "step_seconds",
    "device_bytes",
]
METRICS: tuple[Metric, ...] = get_args(Metric)
_LESS_IS_BETTER: tuple[Metric, ...] = ("joules_per_token", "step_seconds", "device_bytes")
_MOST_POINTS = 512
_MOST_TRACES = 8  # kept at a time
_SEARCH_SECONDS = 20.0  # of one partition


@dataclass(frozen=True)
class Outcome:
    """What a planned step takes."""

    tokens_per_s_per_user: float
    tokens_per_s_per_socket: float
    tokens_per_s: float
    joules_per_token: float | None  # None if the target says nothing of power
    step_seconds: float
    device_bytes: int  # of the fullest device
    num_devices: int
    num_stages: int
    mesh: str
    bound: str


@dataclass(frozen=True)
class Point:
    """A combination, and what came of it."""

    settings: Mapping[str, str]  # what is varied, as it was written
    outcome: Outcome | None  # None if there is no plan
    why: str = ""  # there is none

    def metric(self, name: Metric) -> float | None:
        """Returns a metric; None if it is not known."""
        value: float | None = None if self.outcome is None else getattr(self.outcome, name)
        return value


@dataclass(frozen=True)
class Sweep:
    """All combinations, in the order of their values."""

    model: str
    phase: str
    varied: Mapping[str, tuple[str, ...]]
    points: tuple[Point, ...]
    metrics: tuple[Metric, Metric]  # that the front is of

    @property
    def front(self) -> tuple[int, ...]:
        """Positions of the points on the Pareto front, ascending."""
        scored = [(place, score) for place, point in enumerate(self.points) if (score := self._score(point))]
        return tuple(place for place, score in scored if not any(_beats(other, score) for _, other in scored))

    def _score(self, point: Point) -> tuple[float, float] | None:
        first, second = (_scored(point, metric) for metric in self.metrics)
        return None if first is None or second is None else (first, second)

    def to_dict(self) -> dict[str, object]:
        """Returns it as JSON has it."""
        front = set(self.front)
        points = [
            {
                "settings": dict(point.settings),
                "outcome": None if point.outcome is None else asdict(point.outcome),
                "why": point.why,
                "is_on_front": place in front,
            }
            for place, point in enumerate(self.points)
        ]
        return {
            "model": self.model,
            "phase": self.phase,
            "varied": {name: list(values) for name, values in self.varied.items()},
            "front_of": list(self.metrics),
            "points": points,
        }


def _scored(point: Point, metric: Metric) -> float | None:
    value = point.metric(metric)
    return None if value is None else -value if metric in _LESS_IS_BETTER else value


def _beats(other: tuple[float, float], score: tuple[float, float]) -> bool:
    return other != score and all(a >= b for a, b in zip(other, score, strict=True))


def sweep(
    model: ModelConfig,
    base: Trial,
    varied: Mapping[str, tuple[str, ...]],
    *,
    name: str,
    dtype: str,
    metrics: tuple[Metric, Metric] = ("tokens_per_s_per_user", "tokens_per_s_per_socket"),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sweep:
    """Plans a model in every combination.

    Args:
        model: The architecture.
        base: What is not varied.
        varied: Values of knobs, by name, as they are written.
        name: What to call the model.
        dtype: That it is computed in.
        metrics: That the front is of.
        progress: Told how many of all combinations are done.

    Raises:
        ConfigurationError: if a value is none of its knob, or there are too many combinations.
    """
    combinations = [
        dict(zip(varied, values, strict=True)) for values in itertools.product(*(varied[knob] for knob in varied))
    ]
    if len(combinations) > _MOST_POINTS:
        raise ConfigurationError(f"{len(combinations)} combinations are more than {_MOST_POINTS}; vary less")
    trials = [turned(base, settings) for settings in combinations]
    planner = _Planner(model, dtype)
    points: list[Point] = []
    for place, (settings, trial) in enumerate(zip(combinations, trials, strict=True)):
        progress(place, len(trials))
        points.append(planner.point(settings, trial))
    progress(len(trials), len(trials))
    return Sweep(name, base.phase, varied, tuple(points), metrics)


class _Planner:
    """Plans trials of one model; what trials have in common is made once."""

    def __init__(self, model: ModelConfig, dtype: str) -> None:
        self.model, self.dtype = model, dtype
        self.traces: dict[tuple[object, ...], Traced] = {}
        self.last: tuple[Trial, Partition] | None = None

    def point(self, settings: Mapping[str, str], trial: Trial) -> Point:
        """Returns what comes of a trial."""
        try:
            return Point(settings, self.outcome(trial))
        except DoesNotFitError as error:
            need, limit = format_bytes(error.demand_bytes), format_bytes(error.limit_bytes)
            return Point(settings, None, f"a device would need {need} of {error.tier}, and has {limit}")
        except PlaitError as error:
            return Point(settings, None, str(error))

    def outcome(self, trial: Trial) -> Outcome:
        if (trial.num_devices or 1) > trial.target.num_devices:
            raise ConfigurationError(f"{trial.target.name} has {trial.target.num_devices} devices")
        configuration = configuration_for(self.model, phase=trial.phase, batch=trial.batch, sequence=trial.sequence)
        key = (trial.phase, trial.batch, trial.sequence, trial.weights)
        if key not in self.traces:
            if len(self.traces) == _MOST_TRACES:
                self.traces.clear()
            self.traces[key] = trace_model(with_weights(self.model, trial.weights), configuration, self.dtype)
        traced = self.traces[key]
        plan = self.partition(traced, trial)
        sections = fuse(
            skeleton(traced),
            plan.sharding,
            trial.target,
            self.dtype,
            mode=trial.fusion.mode,
            orchestration=trial.fusion.orchestration,
        )
        timed = schedule(traced, plan, sections, trial.target, self.dtype, configuration=configuration)
        return _outcome(trial, plan, timed, configuration.batch * configuration.new_tokens)

    def partition(self, traced: Traced, trial: Trial) -> Partition:
        """Returns how a trial is divided; how it is fused makes no difference."""
        if self.last is not None and _is_divided_alike(self.last[0], trial):
            return self.last[1]
        plan = partition(
            traced,
            trial.target,
            dtype=self.dtype,
            num_devices=trial.num_devices or trial.target.num_devices,
            mesh=trial.mesh,
            num_stages=trial.num_stages,
            budget_bytes=trial.target.tiers["hbm"].usable_bytes,
            time_limit_seconds=_SEARCH_SECONDS,
        )
        self.last = trial, plan
        return plan


def _is_divided_alike(trial: Trial, other: Trial) -> bool:
    names = ("target", "num_devices", "batch", "sequence", "phase", "weights", "mesh", "num_stages")
    return all(getattr(trial, name) == getattr(other, name) for name in names)


def _outcome(trial: Trial, plan: Partition, timed: Schedule, num_tokens: int) -> Outcome:
    rate = num_tokens / timed.seconds
    return Outcome(
        tokens_per_s_per_user=rate / trial.batch,
        tokens_per_s_per_socket=rate / plan.num_devices,
        tokens_per_s=rate,
        joules_per_token=None if timed.joules is None else timed.joules / num_tokens,
        step_seconds=timed.seconds,
        device_bytes=plan.device_bytes,
        num_devices=plan.num_devices,
        num_stages=len(plan.stages),
        mesh=str(plan.mesh),
        bound=timed.bound,
    )
