"""Targets: what a machine can hold and how fast it moves and computes, as one TOML file each.

`load_target` takes a name from `plait targets` or the path of a TOML file of one's own. The same kind of file
describes a laptop and a rack; `plait calibrate` writes one for this machine.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

import pydantic

from ..errors import TargetError
from . import targets

__all__ = [
    "Chip",
    "CollectiveRate",
    "Compute",
    "Link",
    "Network",
    "Power",
    "ProgramSeconds",
    "Serving",
    "Target",
    "Tier",
    "load_target",
    "target_names",
]

_STRICT = pydantic.ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Tier:
    """One memory tier."""

    __pydantic_config__ = _STRICT

    capacity_bytes: int
    bandwidth_bytes_per_s: float  # as compute reads it, at its peak
    memory_kind: str | None = None  # JAX's name for it; None where JAX does not run
    efficiency: float = 1.0  # share of the bandwidth that a kernel sustains
    reserved_bytes: int = 0  # of the capacity, not for models: programs, the runtime's own buffers

    @property
    def sustained_bytes_per_s(self) -> float:
        """What a kernel gets of the bandwidth."""
        return self.bandwidth_bytes_per_s * self.efficiency

    @property
    def usable_bytes(self) -> int:
        """What models may have of the capacity."""
        return self.capacity_bytes - self.reserved_bytes


@dataclass(frozen=True)
class Link:
    """A way for bytes between two tiers."""

    __pydantic_config__ = _STRICT

    bandwidth_bytes_per_s: float
    latency_seconds: float = 0.0
    pace: bool = False  # delay copies so that they take what this link would take


@dataclass(frozen=True)
class Compute:
    """What one device computes."""

    __pydantic_config__ = _STRICT

    flops_per_s: dict[str, float]  # peak by dtype
    launch_seconds: float = 0.0  # fixed cost of one launch of a kernel; of one step where a step is one program
    software_launch_seconds: float | None = None  # of a launch that the host orchestrates; None: there is one way
    sequence_seconds: float = 0.0  # of the host in every step, for each sequence of the batch beyond the first
    append_seconds: float = 0.0  # of a head's key or value that joins a cache, of all sequences but one
    request_seconds: float = 0.0  # of the host, once for each batch of requests, before the first step
    efficiency: float = 1.0  # share of the peak that matrix products sustain


@dataclass(frozen=True)
class Chip:
    """A dataflow chip: compute and memory units on a grid, on which a section's operations run side by side.

    Units stand as on a checkerboard: tile (row, column) is a compute unit (PCU) where row + column is even, else a
    memory unit (PMU).
    """

    __pydantic_config__ = _STRICT

    rows: int  # of tiles
    columns: int  # of tiles
    pmu_bytes: int  # of SRAM in one memory unit
    clock_hz: float
    pmu_bytes_per_cycle: float  # that one memory unit reads, and writes at the same time
    link_bytes_per_cycle: float  # of one link between two tiles, in each direction
    vector_share: float = 0.125  # of a compute unit's peak in products: what it reaches in everything else
    tile_rows: int = 64  # rows of an activation that stream through a section at a time

    @property
    def num_pcus(self) -> int:
        """Compute units."""
        return (self.rows * self.columns + 1) // 2

    @property
    def num_pmus(self) -> int:
        """Memory units."""
        return self.rows * self.columns // 2

    @property
    def sram_bytes(self) -> int:
        """SRAM of all memory units."""
        return self.num_pmus * self.pmu_bytes


@dataclass(frozen=True)
class Power:
    """What one device draws, with its share of the machine around it."""

    __pydantic_config__ = _STRICT

    idle_watts: float  # doing nothing
    peak_watts: float  # with compute or memory at its limit


@dataclass(frozen=True)
class ProgramSeconds:
    """What one program of a bundle was measured to take."""

    __pydantic_config__ = _STRICT

    seconds: float  # of a step without a context
    context_seconds: float = 0.0  # more, of one with the longest context
    rested_seconds: float = 0.0  # more, of one after a rest; some of them after a short one, or little work since


@dataclass(frozen=True)
class Serving:
    """What serving a bundle was measured to take on this machine: its programs, and what the host adds to them."""

    __pydantic_config__ = _STRICT

    step_seconds: float = 0.0  # of each step: scheduling it, its inputs, its results
    sequence_seconds: float = 0.0  # of each token that a step draws: the draw, and the token's way out
    request_seconds: float = 0.0  # of a request: until the scheduler has it, and until its client has the first token
    pool_bytes_per_s: float | None = None  # at which the KV pool of a model that comes to hbm is cleared; None: at once
    save_seconds: float = 0.0  # of a group of KV blocks that is copied to ddr, at least; the link may take longer
    load_seconds: float = 0.0  # of one that is copied back
    evict_seconds: float = 0.0  # of the engine's thread, to drop a model
    reading_seconds: float = 0.0  # likewise, to read which arrays are alive
    programs: dict[str, ProgramSeconds] = field(default_factory=dict[str, ProgramSeconds])  # by model/configuration


@dataclass(frozen=True)
class CollectiveRate:
    """What one kind of collective was measured to take."""

    __pydantic_config__ = _STRICT

    latency_seconds: float  # of each step
    bandwidth_bytes_per_s: float


@dataclass(frozen=True)
class Network:
    """How devices are connected.

    A collective takes `latency_seconds` for each of its steps and its bytes at the bandwidth of one device's links, in
    one direction. `overlap` is the share of that time that hides behind compute: 0 says that a step waits for it.
    """

    __pydantic_config__ = _STRICT

    latency_seconds: float
    bandwidth_bytes_per_s: float
    topology: Literal["all_to_all", "ring"] = "all_to_all"
    overlap: float = 0.0
    collectives: dict[str, CollectiveRate] = field(default_factory=dict[str, CollectiveRate])  # by kind, if measured


@dataclass(frozen=True)
class Target:
    """A machine, or a virtual one.

    `kind` says how programs meet memory: "unified" has one tier, in which weights alias mapped files; "tiered" keeps
    hbm and ddr apart and copies between them.
    """

    __pydantic_config__ = _STRICT

    name: str
    description: str
    kind: Literal["unified", "tiered"]
    num_devices: int
    compute: Compute
    tiers: dict[str, Tier]  # "hbm", and "ddr" where the target is tiered
    links: dict[str, Link]  # "ddr->hbm", "disk->ddr", "disk->hbm"
    source: str  # where the numbers are from
    network: Network = Network(latency_seconds=1e-5, bandwidth_bytes_per_s=1e10)  # between devices
    chip: Chip | None = None  # of a dataflow device; None where a kernel has the whole device
    power: Power | None = None
    serving: Serving | None = None  # of a bundle; None where none was measured
    sources: dict[str, str] = field(default_factory=dict[str, str])  # by dotted key or its beginning: of one number

    def link(self, source: str, destination: str) -> Link:
        """Returns the link between two tiers.

        Raises:
            TargetError: if the target has none.
        """
        try:
            return self.links[f"{source}->{destination}"]
        except KeyError:
            raise TargetError(f"target {self.name!r} has no link {source}->{destination}") from None


_ADAPTER = pydantic.TypeAdapter(Target)


def target_names() -> tuple[str, ...]:
    """Returns the names of the targets that come with plait, sorted."""
    files = resources.files(targets).iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load_target(name_or_path: str | Path) -> Target:
    """Returns a target by name, or from a TOML file.

    Raises:
        TargetError: if there is none of that name, or the file is malformed.
    """
    text = _text_of(name_or_path)
    try:
        return _ADAPTER.validate_python(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise TargetError(f"target {str(name_or_path)!r} is not TOML: {error}") from None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise TargetError(f"target {str(name_or_path)!r}: {where}: {first['msg']}") from None


def _text_of(name_or_path: str | Path) -> str:
    if str(name_or_path) in target_names():
        return (resources.files(targets) / f"{name_or_path}.toml").read_text(encoding="utf-8")
    path = Path(name_or_path)
    if not path.is_file():
        known = ", ".join(target_names())
        raise TargetError(f"unknown target {str(name_or_path)!r}; known: {known}, or the path of a TOML file")
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise TargetError(f"cannot read target {str(name_or_path)!r}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TargetError(f"target {str(name_or_path)!r} is not TOML: it is not UTF-8 text") from None
