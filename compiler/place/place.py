"""Sections onto the chip: tiles for stages, routes for flows, devices for launches.

Comes in: the `Sections` of a graph and the `Partition` that they were fused from. Goes out: a `Placement`, the same on
every run but for its `seconds`. Each distinct section is placed once. Only the network of vectors is looked at: what
goes between the compute and the memory units of one stage is kept short (`PlacedSection.reach`), not routed.
"""

from __future__ import annotations

import time
from dataclasses import replace

from ...errors import ConfigurationError
from ..fuse.sections import Section, Sections
from ..partition.result import Partition
from ..target import Chip, Target
from .arrange import compute_units, memory_units
from .bound import wire_bound
from .demand import Demand, flow_bytes
from .grid import Grid, Ints
from .placement import Place, PlacedSection, PlacedStage, Placement, Route, StageDevices
from .route import Loads, route

__all__ = ["place"]

_BUSY = 0.5  # utilisation from which on load counts in full
_TOO_BUSY = 0.8  # utilisation from which on other tiles are tried


def place(sections: Sections, partition: Partition, target: Target) -> Placement:
    """Returns where everything is: sections on the grid of a chip, launches on devices.

    Args:
        sections: Of a graph.
        partition: That they were fused from.
        target: The machine. Without a dataflow chip, sections have no tiles and no routes.

    Raises:
        ConfigurationError: if sections and target, or sections and partition, do not belong together.
    """
    begun = time.perf_counter()
    chip = target.chip
    grid = Grid(chip.rows, chip.columns) if chip else None
    known: dict[tuple[object, ...], PlacedSection] = {}
    placed: list[PlacedSection] = []
    for section in sections.sections:
        key = _key(section)
        if key not in known:
            known[key] = _placed(section, chip, grid)
        placed.append(replace(known[key], section=section.id))
    cost = sum(section.cost * sections.counts[section.section] for section in placed)
    lower_bound = sum(section.lower_bound * sections.counts[section.section] for section in placed)
    return Placement(
        name=sections.name,
        target=target.name,
        rows=chip.rows if chip else 0,
        columns=chip.columns if chip else 0,
        sections=tuple(placed),
        stages=_devices(sections, partition),
        cost=cost,
        lower_bound=lower_bound,
        status="optimal" if cost <= lower_bound * (1 + 1e-9) else "feasible",
        seconds=time.perf_counter() - begun,
    )


def _key(section: Section) -> tuple[object, ...]:
    """Returns what a section's place depends on: equal ones get the same."""
    units = tuple((stage.num_pcus, stage.num_pmus) for stage in section.stages)
    seconds = (section.compute_seconds, section.sram_seconds, section.hbm_seconds)
    return units, section.flows, section.read_bytes, seconds


def _placed(section: Section, chip: Chip | None, grid: Grid | None) -> PlacedSection:
    if not section.stages:
        return PlacedSection(section.id, (), (), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    if chip is None or grid is None:
        raise ConfigurationError(f"section {section.id} has stages, but its target has no chip to place them on")
    demand = Demand.of(section, chip)
    link_bytes_per_s = chip.link_bytes_per_cycle * chip.clock_hz
    capacity = link_bytes_per_s * max(section.compute_seconds, section.sram_seconds, section.hbm_seconds)
    pmus, routes, loads = _routed(section, demand, grid, capacity)
    pcus, reach = compute_units(demand, grid, pmus)
    return PlacedSection(
        section=section.id,
        stages=tuple(
            PlacedStage(_places(compute), _places(memory)) for compute, memory in zip(pcus, pmus, strict=True)
        ),
        routes=routes,
        cost=loads.total_bytes,
        lower_bound=wire_bound(demand, grid),
        reach=reach,
        routing_seconds=loads.max_bytes / link_bytes_per_s,
        max_utilisation=loads.max_bytes / capacity if capacity else 0.0,
        mean_utilisation=loads.total_bytes / loads.num_links / capacity if capacity else 0.0,
    )


def _routed(
    section: Section, demand: Demand, grid: Grid, capacity: float
) -> tuple[tuple[Ints, ...], tuple[Route, ...], Loads]:
    """Returns memory units, routes and loads: the shortest that keep links free, else those that load them least."""
    tried: list[tuple[tuple[Ints, ...], tuple[Route, ...], Loads]] = []
    sizes = flow_bytes(section)
    for pmus in memory_units(demand, grid):
        tried.append((pmus, *route(section.flows, sizes, pmus, grid, _BUSY * capacity)))
        if tried[-1][2].max_bytes <= _TOO_BUSY * capacity:
            return tried[-1]
    return min(tried, key=lambda each: each[2].max_bytes)


def _places(units: Ints) -> tuple[Place, ...]:
    return tuple((row, column) for row, column in units.tolist())


def _devices(sections: Sections, partition: Partition) -> tuple[StageDevices, ...]:
    """Returns for each pipeline stage its devices and launches; launches are in order of operations."""
    devices: list[StageDevices] = []
    launch = 0
    for stage in partition.stages:
        first = launch
        while launch < len(sections.launches) and sections.launches[launch].begin < stage.end:
            begin = sections.launches[launch].begin
            section = sections.sections[sections.launches[launch].section]
            end = begin + section.end - section.begin
            if begin < stage.begin or end > stage.end:
                raise ConfigurationError(
                    f"section {section.id} of operations {begin}-{end - 1} is not within one pipeline stage; "
                    "fuse and place with the same partition"
                )
            launch += 1
        devices.append(StageDevices(stage.first_device, partition.mesh.num_devices, first, launch))
    if launch < len(sections.launches):
        raise ConfigurationError(
            f"{len(sections.launches) - launch} launches are of operations that no pipeline stage has; "
            "fuse and place with the same partition"
        )
    return tuple(devices)
