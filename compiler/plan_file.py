"""Plans as files: what `plait compile -o DIR` wrote, read back.

Comes in: a directory or its plan.json. Goes out: the `Compilation` that wrote it, up to its partition. The file holds
the model's configuration, the shapes, the target with all its numbers, what was asked for and what was decided. The
graph is not read but traced again, which takes seconds for the largest models, and the decisions are held against it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, cast

import pydantic

from ..errors import ConfigurationError, PlaitError, VerificationError
from ..models.config import Json, config_from_json
from .configuration import Configuration, Phase
from .mapping import Fusion
from .mesh import Mesh
from .partition.result import Objective, Partition
from .pipeline import PLAN_FORMAT, VERSION, Compilation, Parallelism, compile_model, configuration_for
from .target import Target
from .trace import Traced
from .train import Training
from .verify.partition import check_sharding

__all__ = ["PlanFile", "open_plan", "read_plan"]

_NAME = "plan.json"


@dataclass(frozen=True)
class PlanFile:
    """A plan as it was written, not yet held against its graph."""

    path: Path
    partition: Partition | None  # None if the compilation stopped before
    content: _Content

    def compilation(self) -> Compilation:
        """Traces the model again and returns the compilation up to its partition, without memory plan and program.

        Raises:
            ConfigurationError: if the plan is not one of this model.
        """
        try:
            return self._compilation()
        except PlaitError as error:
            raise ConfigurationError(f"{self.path}: {error}{self._remedy()}") from None

    def _compilation(self) -> Compilation:
        content = self.content
        shapes = content.configuration
        model = config_from_json(cast(dict[str, Json], content.model.config))
        if content.training is not None and shapes.phase != "train":
            raise ConfigurationError(f"it has an optimizer, but its phase is {shapes.phase}")
        made = compile_model(
            model,
            configuration_for(
                model,
                phase=shapes.phase,
                batch=shapes.batch,
                sequence=shapes.context,
                new_tokens=shapes.new_tokens if shapes.phase == "prefill" else None,
            ),
            dtype=content.dtype,
            target=content.target,
            training=content.training,
            parallelism=content.parallelism.parallelism(),
            fusion=content.fusion,
            stop_after="trace",
        )
        if made.configuration != Configuration(shapes.phase, shapes.batch, shapes.new_tokens, shapes.context):
            raise ConfigurationError(f"phase {shapes.phase} has no step of {shapes.new_tokens} new tokens")
        _check_graph(made.traced, content.graph)
        if self.partition is not None:
            _check_partition(made.traced, self.partition)
        return replace(made, partition=self.partition)

    def _remedy(self) -> str:
        written = self.content.plait
        return f"; plait {written} wrote it, this is {VERSION}: compile it again" if written != VERSION else ""


def open_plan(path: str | Path) -> PlanFile:
    """Returns what a plan file says.

    Args:
        path: Directory that `plait compile -o` made, or its plan.json.

    Raises:
        ConfigurationError: if there is none, or it is damaged or none that this plait reads.
    """
    file = Path(path) / _NAME if Path(path).is_dir() else Path(path)
    data = _read(file)
    if not isinstance(data, dict) or "plait" not in data or "format" not in data:
        raise ConfigurationError(f"{file} is no plan of `plait compile -o DIR`: it says neither plait nor format")
    if data["format"] != PLAN_FORMAT:
        raise ConfigurationError(
            f"{file} is a plan in format {str(data['format'])[:40]!r} of plait {str(data['plait'])[:40]!r}; this is "
            f"plait {VERSION}, which reads format {PLAN_FORMAT}: compile it again"
        )
    try:
        content = _Content.model_validate(data)
        partition = None if content.partition is None else Partition.from_dict(content.partition)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigurationError(f"{file} is no plan: {where}: {first['msg']}") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{file} is no plan: {error}") from None
    return PlanFile(file, partition, content)


def read_plan(path: str | Path) -> Compilation:
    """Returns the compilation that a plan file is of, up to its partition, without memory plan and program.

    Args:
        path: Directory that `plait compile -o` made, or its plan.json.

    Raises:
        ConfigurationError: if there is none, it is damaged, or not of the model that it names.
    """
    return open_plan(path).compilation()


def _read(file: Path) -> object:
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise ConfigurationError(
            f"cannot read plan {file}: {error.strerror or error}; `plait compile -o DIR` makes one"
        ) from None
    except RecursionError:
        raise ConfigurationError(f"{file} is no plan: its JSON is nested too deep") from None
    except ValueError as error:
        raise ConfigurationError(f"{file} is no plan: it is damaged or not JSON ({error})") from None


class _Model(pydantic.BaseModel):
    config: dict[str, object]


class _Configuration(pydantic.BaseModel):
    phase: Phase
    batch: int
    new_tokens: int
    context: int


class _Graph(pydantic.BaseModel):
    operations: int
    flops: int
    parameter_bytes: int


class _Parallelism(pydantic.BaseModel):
    num_devices: pydantic.PositiveInt | None
    mesh: dict[str, pydantic.PositiveInt] | None
    num_stages: pydantic.PositiveInt | None
    objective: Objective
    budget_bytes: pydantic.NonNegativeInt | None
    pins: tuple[tuple[str, str], ...]
    time_limit_seconds: float

    def parallelism(self) -> Parallelism:
        mesh = None if self.mesh is None else Mesh(tuple(self.mesh), tuple(self.mesh.values()))
        return Parallelism(**{**dict(self), "mesh": mesh})


class _Content(pydantic.BaseModel):
    plait: str
    model: _Model
    configuration: _Configuration
    training: Training | None
    dtype: Literal["float32", "bfloat16", "float16"]
    target: Target
    parallelism: _Parallelism
    fusion: Fusion = Fusion()
    graph: _Graph
    partition: object


def _check_graph(traced: Traced, written: _Graph) -> None:
    graph = traced.graph
    found = _Graph(operations=len(graph.operations), flops=graph.flops, parameter_bytes=graph.parameter_bytes)
    for name, value in written:
        if getattr(found, name) != value:
            raise ConfigurationError(f"it is of another graph: {value} {name}, {graph.name} has {getattr(found, name)}")


def _check_partition(traced: Traced, partition: Partition) -> None:
    """Holds a partition against the graph that it is said to be of.

    Raises:
        ConfigurationError: if it is not; it says in what.
    """
    num_operations, num_devices = len(traced.graph.operations), partition.mesh.num_devices
    stages = partition.stages
    points = [0, *(stage.end for stage in stages)]
    if [stage.begin for stage in stages] != points[:-1] or points[-1] != num_operations:
        raise ConfigurationError(f"its stages don't cover operations 0 to {num_operations} one after the other")
    if any(begin >= end for begin, end in pairwise(points)):
        raise ConfigurationError("one of its stages is empty")
    if [stage.first_device for stage in stages] != [number * num_devices for number in range(len(stages))]:
        raise ConfigurationError(f"its stages don't begin at every {num_devices} devices")
    try:
        check_sharding(traced, partition.sharding)
    except VerificationError as error:
        raise ConfigurationError(f"it does not divide its graph: {error}") from None
