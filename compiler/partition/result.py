"""The answer of the search: a `Partition`, plain data that goes to text and to JSON and back."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

import pydantic

from ...errors import ConfigurationError
from ..mesh import Layout, Mesh
from .footprint import Footprint
from .plan import OperationSharding, Sharding

__all__ = ["OBJECTIVES", "Objective", "Partition", "Stage", "Status", "Tried"]

Objective: TypeAlias = Literal["latency", "throughput", "memory"]
OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput", "memory")
Status: TypeAlias = Literal["optimal", "feasible", "infeasible", "unknown"]


@dataclass(frozen=True)
class Stage:
    """A stretch of the graph on devices of its own."""

    begin: int  # first operation
    end: int  # behind the last
    first_device: int
    seconds: float  # of one step, hand-over included
    footprint: Footprint  # of each of its devices


@dataclass(frozen=True)
class Tried:
    """A mesh shape that the search looked at."""

    mesh: Mesh  # of one stage
    num_stages: int
    status: Status
    cost: float | None  # seconds of a step; None if there is no plan
    lower_bound: float | None
    slowest_stage_seconds: float | None  # None too if the cost was enough to see that it is not the best
    device_bytes: int | None  # most that a device holds; None likewise
    seconds: float  # that it took
    note: str = ""  # why there is no plan


@dataclass(frozen=True)
class Partition:
    """How a graph is laid over devices, with its certificate.

    The bound is of the sharding problem on the chosen mesh, of plans that treat all repetitions of a layer alike.
    """

    sharding: Sharding
    stages: tuple[Stage, ...]
    objective: Objective
    budget_bytes: int | None  # of each device
    cost: float  # seconds of a step: work and communication of all stages
    lower_bound: float
    status: Status
    seconds: float  # that the whole search took
    tried: tuple[Tried, ...]
    limit_bytes: int | None = None  # of the sharding problem that was solved; all stages together keep it

    @property
    def mesh(self) -> Mesh:
        """The mesh of one stage."""
        return self.sharding.mesh

    @property
    def num_devices(self) -> int:
        """Devices of all stages."""
        return self.mesh.num_devices * len(self.stages)

    @property
    def gap(self) -> float:
        """How far the cost may be from the best possible, relative to it."""
        return 0.0 if self.cost == 0 else max(0.0, (self.cost - self.lower_bound) / self.cost)

    @property
    def slowest_stage_seconds(self) -> float:
        """Time between two steps when all stages are busy."""
        return max(stage.seconds for stage in self.stages)

    @property
    def device_bytes(self) -> int:
        """Most that any device holds."""
        return max(stage.footprint.total for stage in self.stages)

    def to_json(self) -> str:
        """Returns the partition as JSON text."""
        return json.dumps(self.to_dict())

    def to_dict(self) -> dict[str, object]:
        """Returns the partition as JSON has it: layouts as `Layout.as_text`, each written once, then by number."""
        layouts, divisions = _Numbers(), _Numbers()
        sharding = {
            "mesh": self.mesh.shape,
            "inputs": [layouts.of(layout.as_text()) for layout in self.sharding.inputs],
            "constants": {
                str(value): layouts.of(layout.as_text()) for value, layout in self.sharding.constants.items()
            },
            "operations": [divisions.of(division.as_text()) for division in self.sharding.operations],
            "shared": {str(value): layouts.of(layout.as_text()) for value, layout in self.sharding.shared.items()},
            "outputs": [layouts.of(layout.as_text()) for layout in self.sharding.outputs],
            "layouts": list(layouts.known),
            "divisions": list(divisions.known),
        }
        return {
            "cost": self.cost,
            "lower_bound": self.lower_bound,
            "gap": self.gap,
            "status": self.status,
            "seconds": self.seconds,
            "objective": self.objective,
            "budget_bytes": self.budget_bytes,
            "limit_bytes": self.limit_bytes,
            "num_devices": self.num_devices,
            "device_bytes": self.device_bytes,
            "slowest_stage_seconds": self.slowest_stage_seconds,
            "stages": [asdict(stage) for stage in self.stages],
            "tried": [{**asdict(tried), "mesh": tried.mesh.shape} for tried in self.tried],
            "sharding": sharding,
        }

    @staticmethod
    def from_dict(data: object) -> Partition:
        """Reads what `to_dict` returns.

        Raises:
            ConfigurationError: if it is no partition; the message says where it departs from one.
        """
        try:
            file = _adapter().validate_python(data)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "top level"
            raise ConfigurationError(f"not a partition: {where}: {first['msg']}") from None
        return file.partition()

    @staticmethod
    def from_json(text: str | bytes) -> Partition:
        """Reads what `to_json` wrote.

        Raises:
            ConfigurationError: if it is no partition.
        """
        try:
            return Partition.from_dict(json.loads(text))
        except ValueError as error:
            raise ConfigurationError(f"not a partition: {error}") from None


class _Numbers:
    """Texts, numbered in the order in which they first come."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def of(self, text: str) -> int:
        return self.known.setdefault(text, len(self.known))


class _ShardingFile(pydantic.BaseModel):
    mesh: dict[str, pydantic.PositiveInt]
    inputs: tuple[pydantic.NonNegativeInt, ...]
    constants: dict[int, pydantic.NonNegativeInt]
    operations: tuple[pydantic.NonNegativeInt, ...]
    shared: dict[int, pydantic.NonNegativeInt]
    outputs: tuple[pydantic.NonNegativeInt, ...]
    layouts: tuple[str, ...]
    divisions: tuple[str, ...]

    @pydantic.model_validator(mode="after")
    def _known(self) -> _ShardingFile:
        used = (*self.inputs, *self.constants.values(), *self.shared.values(), *self.outputs)
        if max(used, default=-1) >= len(self.layouts) or max(self.operations, default=-1) >= len(self.divisions):
            raise ValueError("a layout or a division is not there")
        self.sharding()  # its texts are read
        return self

    def sharding(self) -> Sharding:
        layouts = tuple(map(Layout.from_text, self.layouts))
        divisions = tuple(map(OperationSharding.from_text, self.divisions))
        return Sharding(
            mesh=_mesh(self.mesh),
            inputs=tuple(layouts[number] for number in self.inputs),
            constants={value: layouts[number] for value, number in self.constants.items()},
            operations=tuple(divisions[number] for number in self.operations),
            shared={value: layouts[number] for value, number in self.shared.items()},
            outputs=tuple(layouts[number] for number in self.outputs),
        )


class _TriedFile(pydantic.BaseModel):
    mesh: dict[str, pydantic.PositiveInt]
    num_stages: int
    status: Status
    cost: float | None
    lower_bound: float | None
    slowest_stage_seconds: float | None
    device_bytes: int | None
    seconds: float
    note: str


class _PartitionFile(pydantic.BaseModel):
    cost: float
    lower_bound: float
    status: Status
    seconds: float
    objective: Objective
    budget_bytes: int | None
    limit_bytes: int | None
    stages: tuple[Stage, ...] = pydantic.Field(min_length=1)
    tried: tuple[_TriedFile, ...]
    sharding: _ShardingFile

    def partition(self) -> Partition:
        return Partition(
            sharding=self.sharding.sharding(),
            stages=self.stages,
            objective=self.objective,
            budget_bytes=self.budget_bytes,
            limit_bytes=self.limit_bytes,
            cost=self.cost,
            lower_bound=self.lower_bound,
            status=self.status,
            seconds=self.seconds,
            tried=tuple(Tried(**{**dict(tried), "mesh": _mesh(tried.mesh)}) for tried in self.tried),
        )


def _mesh(shape: dict[str, int]) -> Mesh:
    return Mesh(tuple(shape), tuple(shape.values()))


@functools.cache
def _adapter() -> pydantic.TypeAdapter[_PartitionFile]:
    return pydantic.TypeAdapter(_PartitionFile)
