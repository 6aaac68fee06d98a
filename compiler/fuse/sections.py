"""Sections: stretches of a graph that each run as one dataflow kernel, and what one costs.

A model of 126 layers has few distinct sections: a `Section` is a program, and `Sections.launches` says which program
runs at which operations. `verify.fusion.verify_sections` checks them from this definition.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

__all__ = ["BOUNDS", "MODES", "Bound", "Flow", "Launch", "Mode", "Orchestration", "Section", "Sections", "StageUnits"]

Mode: TypeAlias = Literal["o0", "o1", "o3"]
MODES: tuple[Mode, ...] = ("o0", "o1", "o3")
Orchestration: TypeAlias = Literal["hardware", "software"]
Bound: TypeAlias = Literal["compute", "sram", "hbm", "ddr", "network", "launch"]
BOUNDS: tuple[Bound, ...] = ("compute", "sram", "hbm", "ddr", "network", "launch")  # ddr: if buffers were spilled


@dataclass(frozen=True)
class StageUnits:
    """An operation as a stage of a section's metapipeline, and the units that it has on the chip."""

    operation: int  # of the section's first launch
    name: str
    path: str
    phase: int  # stages of one phase run side by side; a phase begins when the one before is through
    num_pcus: int
    num_pmus: int
    sram_bytes: int  # that its buffers need: of activations two tiles, of weights what stays
    compute_seconds: float  # on its compute units, for all rows
    sram_seconds: float  # through its memory units, for all rows

    @property
    def seconds(self) -> float:
        """Time of all rows, by the slower of the two."""
        return max(self.compute_seconds, self.sram_seconds)


@dataclass(frozen=True)
class Flow:
    """Bytes that go from one stage of a section to another, or from HBM or to it, in one launch."""

    source: int | None  # position among the section's stages; None for HBM
    target: int | None  # likewise
    bytes: float


@dataclass(frozen=True)
class Section:
    """A stretch of operations that runs as one kernel on each device, and what one launch of it takes there."""

    id: int
    begin: int  # first operation of its first launch
    end: int  # behind the last
    stages: tuple[StageUnits, ...]  # none where the target has no dataflow chip
    flows: tuple[Flow, ...]  # between them; none likewise
    num_tiles: int  # that its rows stream through in
    num_passes: int  # over its weights: more than one if they do not stay in SRAM
    num_kernels: int  # launches that it takes: 1, or if nothing is fused those of its operation
    flops: float  # of one device
    read_bytes: float  # from HBM
    written_bytes: float  # to HBM
    compute_seconds: float  # on compute units, fill of the pipeline included
    sram_seconds: float  # the same through memory units alone
    hbm_seconds: float
    network_seconds: float  # collectives, after the rest
    launch_seconds: float

    @property
    def seconds(self) -> float:
        """Time of one launch: compute, SRAM and HBM overlap, collectives and the launch do not."""
        return (
            max(self.compute_seconds, self.sram_seconds, self.hbm_seconds) + self.network_seconds + self.launch_seconds
        )

    @functools.cached_property
    def terms(self) -> dict[Bound, float]:
        """Seconds by what they are spent on."""
        return {
            "compute": self.compute_seconds,
            "sram": self.sram_seconds,
            "hbm": self.hbm_seconds,
            "ddr": 0.0,
            "network": self.network_seconds,
            "launch": self.launch_seconds,
        }

    @property
    def bound(self) -> Bound:
        """What takes longest."""
        return max(BOUNDS, key=lambda bound: self.terms[bound])

    @property
    def margin(self) -> float:
        """How many times longer that takes than what comes next."""
        first, second = sorted(self.terms.values())[-1:-3:-1]
        return first / second if second else float("inf")

    @property
    def num_pcus(self) -> int:
        """Compute units of all stages."""
        return sum(stage.num_pcus for stage in self.stages)

    @property
    def num_pmus(self) -> int:
        """Memory units of all stages."""
        return sum(stage.num_pmus for stage in self.stages)

    @property
    def sram_bytes(self) -> int:
        """Bytes of all buffers on the chip."""
        return sum(stage.sram_bytes for stage in self.stages)

    @property
    def intensity(self) -> float:
        """FLOPs for each byte of HBM traffic."""
        moved = self.read_bytes + self.written_bytes
        return self.flops / moved if moved else float("inf")


@dataclass(frozen=True)
class Launch:
    """One launch of a section."""

    section: int  # id
    begin: int  # first operation of this launch


@dataclass(frozen=True)
class Sections:
    """A graph as kernels in the order in which they run on the devices of one pipeline stage after the other."""

    name: str  # of the graph
    target: str
    mode: Mode
    orchestration: Orchestration
    sections: tuple[Section, ...]
    launches: tuple[Launch, ...]

    @functools.cached_property
    def counts(self) -> Counter[int]:
        """How often each section is launched, by id."""
        return Counter(launch.section for launch in self.launches)

    @property
    def num_kernels(self) -> int:
        """Kernel launches of one step."""
        return sum(self.sections[launch.section].num_kernels for launch in self.launches)

    @property
    def seconds(self) -> float:
        """Time of one step."""
        return sum(self.sections[section].seconds * count for section, count in self.counts.items())

    def total(self, field: str) -> float:
        """Returns the sum of a number of all sections over all launches, e.g. "flops" or "read_bytes"."""
        return sum(float(getattr(self.sections[section], field)) * count for section, count in self.counts.items())

    @property
    def intensity(self) -> float:
        """FLOPs for each byte of HBM traffic of a whole step."""
        return self.total("flops") / (self.total("read_bytes") + self.total("written_bytes"))

    def bound_seconds(self) -> dict[Bound, float]:
        """Returns how much of a step's time is in sections bound by each term."""
        seconds = dict.fromkeys(BOUNDS, 0.0)
        for section, count in self.counts.items():
            seconds[self.sections[section].bound] += self.sections[section].seconds * count
        return seconds

    def as_text(self) -> str:
        """Returns a line a section."""
        lines = [f"{self.name} on {self.target}, {self.mode}: {self.num_kernels} launches, {self.seconds:.3e} s"]
        for section in self.sections:
            lines.append(
                f"{section.id:4} x{self.counts[section.id]:<4} operations {section.begin}-{section.end - 1}: "
                f"{section.seconds:.3e} s, {section.bound} bound, {section.num_pcus} PCUs, {section.num_pmus} PMUs"
            )
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, object]:
        """Returns it as JSON has it, totals included."""
        return {
            **asdict(self),
            "seconds": self.seconds,
            "num_kernels": self.num_kernels,
            "bound_seconds": self.bound_seconds(),
        }

    def to_json(self) -> str:
        """Returns it as JSON text."""
        return json.dumps(self.to_dict())
