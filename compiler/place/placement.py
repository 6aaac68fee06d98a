"""The answer of placement: a `Placement`, plain data that goes to text and to JSON and back.

A place is (row, column) of a tile of the chip's grid. HBM is reached through ports, one beside each row at the left
and at the right edge (assumed: the number of bridges of these chips is not published); their columns are -1 and the
number of columns. `verify.placement.verify_placement` checks a placement from this definition.
"""

from __future__ import annotations

import functools
import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import pydantic

from ...errors import ConfigurationError

__all__ = [
    "Lane",
    "Place",
    "PlacedSection",
    "PlacedStage",
    "Placement",
    "Route",
    "StageDevices",
    "num_lanes",
]

Place: TypeAlias = tuple[int, int]  # row and column
Lane: TypeAlias = tuple[Place, ...]  # from its first place to its last, with those between at which it turns


def num_lanes(source_pmus: int | None, target_pmus: int | None) -> int:
    """Returns how many lanes a flow has: one for each memory unit of its larger side.

    Args:
        source_pmus: Memory units of the stage it comes from; None for HBM.
        target_pmus: Likewise of the stage it goes to.
    """
    return max(source_pmus or 1, target_pmus or 1)


@dataclass(frozen=True)
class PlacedStage:
    """The tiles of one stage."""

    pcus: tuple[Place, ...]
    pmus: tuple[Place, ...]


@dataclass(frozen=True)
class Route:
    """The way of one flow: lanes side by side, each with the same share of its bytes.

    A lane goes from a memory unit of one stage, or a port, to one of the other. There are as many as the larger side
    has memory units, so that its data, which is divided over them evenly, need not gather; each unit of the smaller
    side has equally many, or one more.
    """

    source: int | None  # position among the section's stages; None for HBM
    target: int | None  # likewise
    bytes: float  # of all lanes, in one launch; from HBM what is read again counts again
    lanes: tuple[Lane, ...]

    @property
    def lane_bytes(self) -> float:
        """Bytes of each lane."""
        return self.bytes / len(self.lanes)


@dataclass(frozen=True)
class PlacedSection:
    """A section on the chip. One that is no pipeline of stages has the whole device, and nothing here."""

    section: int  # id
    stages: tuple[PlacedStage, ...]
    routes: tuple[Route, ...]  # in the order of the section's flows
    cost: float  # wire length of one launch: bytes times links that they pass
    lower_bound: float  # that no placement goes below
    reach: float  # links from a compute unit to the nearest memory unit of its stage, mean
    routing_seconds: float  # that the busiest link takes for one launch
    max_utilisation: float  # of the busiest link while rows stream; above 1 it slows the section
    mean_utilisation: float  # of all links

    @property
    def mean_hops(self) -> float:
        """Links that a byte passes."""
        moved = sum(route.bytes for route in self.routes)
        return self.cost / moved if moved else 0.0


@dataclass(frozen=True)
class StageDevices:
    """The devices of one pipeline stage, and what runs on each of them."""

    first_device: int
    num_devices: int
    first_launch: int  # position among the launches
    end_launch: int  # behind the last


@dataclass(frozen=True)
class Placement:
    """Sections on the grid of a chip and launches on devices, with a certificate.

    Cost and bound are of the wire length of a step on one device of each pipeline stage. The bound holds for any choice
    of tiles and routes: all memory units of a stage take part in its flows, and few are near a port or another one.
    """

    name: str  # of the graph
    target: str
    rows: int  # of the chip's grid; 0 without one
    columns: int
    sections: tuple[PlacedSection, ...]
    stages: tuple[StageDevices, ...]
    cost: float  # bytes times links, of all launches
    lower_bound: float
    status: Literal["optimal", "feasible"]
    seconds: float  # that placing took

    @property
    def gap(self) -> float:
        """How far the cost may be from the best possible, relative to it."""
        return 0.0 if self.cost == 0 else max(0.0, (self.cost - self.lower_bound) / self.cost)

    @property
    def max_utilisation(self) -> float:
        """Of the busiest link of all sections."""
        return max((section.max_utilisation for section in self.sections), default=0.0)

    @property
    def bottleneck(self) -> PlacedSection | None:
        """The section whose links are busiest; None if none has any."""
        routed = [section for section in self.sections if section.routes]
        return max(routed, key=lambda section: section.max_utilisation, default=None)

    def stage_of(self, launch: int) -> int:
        """Returns the pipeline stage that runs a launch, by position among the launches."""
        return next(i for i, stage in enumerate(self.stages) if launch < stage.end_launch)

    def as_text(self) -> str:
        """Returns a line a section and one a pipeline stage."""
        lines = [
            f"{self.name} on {self.target}: wire length {self.cost:.3e} byte-links a step, "
            f"at least {self.lower_bound:.3e} (gap {self.gap:.0%})"
        ]
        for stage in self.stages:
            last = stage.first_device + stage.num_devices - 1
            lines.append(
                f"launches {stage.first_launch}-{stage.end_launch - 1} on devices {stage.first_device}-{last}"
                if stage.end_launch > stage.first_launch
                else f"no launches on devices {stage.first_device}-{last}"
            )
        for section in self.sections:
            if section.stages:
                lines.append(
                    f"{section.section:4} {len(section.stages)} stages, {sum(len(r.lanes) for r in section.routes)} "
                    f"lanes of {section.mean_hops:.1f} links, busiest link {section.max_utilisation:.0%} "
                    f"(mean {section.mean_utilisation:.0%}), routing {section.routing_seconds:.3e} s"
                )
        return "\n".join(lines) + "\n"

    def map_text(self, section: int, names: Sequence[str] = ()) -> str:
        """Returns a section's tiles as letters, one a stage: capitals are compute units, small ones memory units.

        Args:
            section: Its id.
            names: Of its stages, for the legend; letters come again after 26.
        """
        stages = self.sections[section].stages
        tiles = [["."] * self.columns for _ in range(self.rows)]
        for position, stage in enumerate(stages):
            letter = string.ascii_lowercase[position % 26]
            for row, column in stage.pmus:
                tiles[row][column] = letter
            for row, column in stage.pcus:
                tiles[row][column] = letter.upper()
        lines = ["".join(row) for row in tiles]
        for position, stage in enumerate(stages):
            name = names[position] if names else f"stage {position}"
            letter = string.ascii_lowercase[position % 26]
            lines.append(f"{letter} {name}: {len(stage.pcus)} PCUs, {len(stage.pmus)} PMUs")
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, object]:
        """Returns it as JSON has it, totals included."""
        return {
            **vars(self),
            "sections": [_section_dict(section) for section in self.sections],
            "stages": [dict(vars(stage)) for stage in self.stages],
            "gap": self.gap,
            "max_utilisation": self.max_utilisation,
        }

    def to_json(self) -> str:
        """Returns it as JSON text."""
        return json.dumps(self.to_dict())

    @staticmethod
    def from_dict(data: object) -> Placement:
        """Reads what `to_dict` returns.

        Raises:
            ConfigurationError: if it is no placement; the message says where it departs from one.
        """
        try:
            return _adapter().validate_python(data)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "top level"
            raise ConfigurationError(f"not a placement: {where}: {first['msg']}") from None

    @staticmethod
    def from_json(text: str | bytes) -> Placement:
        """Reads what `to_json` wrote.

        Raises:
            ConfigurationError: if it is no placement.
        """
        try:
            return Placement.from_dict(json.loads(text))
        except ValueError as error:
            raise ConfigurationError(f"not a placement: {error}") from None


def _section_dict(section: PlacedSection) -> dict[str, object]:
    stages = [dict(vars(stage)) for stage in section.stages]
    return {**vars(section), "stages": stages, "routes": [dict(vars(route)) for route in section.routes]}


@functools.cache
def _adapter() -> pydantic.TypeAdapter[Placement]:
    return pydantic.TypeAdapter(Placement)
