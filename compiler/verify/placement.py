"""A placement checked against its definition: tile by tile, hop by hop.

Units have each a tile of their kind to themselves. Lanes are walked from link to link, and what each link carries is
added up. Launches are looked up in the partition one by one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from ...errors import VerificationError
from ..fuse.sections import Section, Sections
from ..partition.result import Partition
from ..place.placement import Lane, Place, PlacedSection, PlacedStage, Placement, Route
from ..target import Chip, Target

__all__ = ["verify_placement"]

_SHARE = 1e-6  # that sums of bytes and times may miss


def verify_placement(placement: Placement, sections: Sections, partition: Partition, target: Target) -> None:
    """Checks tiles, routes, their figures, and the devices of every launch.

    Args:
        placement: To be checked.
        sections: That were placed.
        partition: That they were fused from.
        target: The machine.

    Raises:
        VerificationError: naming the section and what is wrong with it.
    """
    ids = [placed.section for placed in placement.sections]
    if ids != [section.id for section in sections.sections]:
        raise VerificationError(f"sections {ids} are placed, there are {len(sections.sections)}")
    grid = (target.chip.rows, target.chip.columns) if target.chip else (0, 0)
    if (placement.rows, placement.columns) != grid:
        raise VerificationError(f"the grid is {grid}, the placement says {(placement.rows, placement.columns)}")
    for placed, section in zip(placement.sections, sections.sections, strict=True):
        _check_section(placed, section, target.chip)
    _check_devices(placement, sections, partition)
    launched = Counter(launch.section for launch in sections.launches)
    for field in ("cost", "lower_bound"):
        total = sum(getattr(placed, field) * launched[placed.section] for placed in placement.sections)
        _same(f"{field} of the placement", getattr(placement, field), total)
    if placement.status == "optimal" and placement.gap > _SHARE:
        raise VerificationError(f"the placement is said to be {placement.status}, its gap is {placement.gap:.3g}")


def _check_section(placed: PlacedSection, section: Section, chip: Chip | None) -> None:
    if len(placed.stages) != len(section.stages) or len(placed.routes) != len(section.flows):
        raise VerificationError(
            f"section {section.id} has {len(section.stages)} stages and {len(section.flows)} flows, "
            f"placed are {len(placed.stages)} and {len(placed.routes)}"
        )
    if chip is None:
        if section.stages:
            raise VerificationError(f"section {section.id} has stages, its target no chip")
        return
    if section.stages:
        _check_tiles(placed, section, chip)
        _check_routes(placed, section)
    _check_figures(placed, section, chip)


def _check_tiles(placed: PlacedSection, section: Section, chip: Chip) -> None:
    used: set[Place] = set()
    for number, (tiles, stage) in enumerate(zip(placed.stages, section.stages, strict=True)):
        where = f"section {section.id}, stage {number} ({stage.name})"
        for kind, parity, places, count in (
            ("PCU", 0, tiles.pcus, stage.num_pcus),
            ("PMU", 1, tiles.pmus, stage.num_pmus),
        ):
            if len(places) != count:
                raise VerificationError(f"{where}: {len(places)} {kind}s are placed, it has {count}")
            for row, column in places:
                if not (0 <= row < chip.rows and 0 <= column < chip.columns):
                    raise VerificationError(f"{where}: tile {(row, column)} is not on the chip")
                if (row + column) % 2 != parity:
                    raise VerificationError(f"{where}: tile {(row, column)} is no {kind}")
                if (row, column) in used:
                    raise VerificationError(f"{where}: tile {(row, column)} is used twice")
                used.add((row, column))
        held = len(tiles.pmus) * chip.pmu_bytes
        if (
            stage.sram_bytes > held and len(section.stages) > 1
        ):  # an operation alone may stream what it has not room for
            raise VerificationError(f"{where}: its buffers are {stage.sram_bytes} bytes, its memory units hold {held}")


def _check_routes(placed: PlacedSection, section: Section) -> None:
    from_hbm = sum(flow.bytes for flow in section.flows if flow.source is None)
    for number, (route, flow) in enumerate(zip(placed.routes, section.flows, strict=True)):
        where = f"section {section.id}, flow {number}"
        if (route.source, route.target) != (flow.source, flow.target):
            raise VerificationError(
                f"{where} goes from {flow.source} to {flow.target}, its route from {route.source} to {route.target}"
            )
        expected = flow.bytes
        if flow.source is None and section.read_bytes > from_hbm > 0:
            expected = flow.bytes * section.read_bytes / from_hbm
        _same(f"bytes of {where}", route.bytes, expected)
        _check_ends(where, [lane[0] for lane in route.lanes], route, flow.source, placed.stages)
        _check_ends(where, [lane[-1] for lane in route.lanes], route, flow.target, placed.stages)
        other = max(_num_units(flow.source, placed.stages), _num_units(flow.target, placed.stages))
        if len(route.lanes) != other:
            raise VerificationError(f"{where} has {len(route.lanes)} lanes, its larger side has {other} memory units")


def _num_units(stage: int | None, stages: Sequence[PlacedStage]) -> int:
    return 1 if stage is None else len(stages[stage].pmus)


def _check_ends(
    where: str, ends: Sequence[Place], route: Route, stage: int | None, stages: Sequence[PlacedStage]
) -> None:
    """Checks that lanes begin or end at ports, or at all memory units of a stage alike."""
    if stage is None:
        return  # that it is a port is checked while walking: tiles are no ends there
    times = Counter(ends)
    units = stages[stage].pmus
    stray = next((end for end in ends if end not in set(units)), None) if not set(times) <= set(units) else None
    if stray is not None:
        raise VerificationError(f"{where}: a lane ends at {stray}, which is no memory unit of stage {stage}")
    if len(times) < min(len(units), len(route.lanes)) or max(times.values()) - min(times.values()) > 1:
        raise VerificationError(f"{where}: its lanes are not spread evenly over the memory units of stage {stage}")


def _check_figures(placed: PlacedSection, section: Section, chip: Chip) -> None:
    """Adds up what links carry, and checks everything that follows from it."""
    links: Counter[tuple[Place, Place]] = Counter()
    for number, route in enumerate(placed.routes):
        for lane in route.lanes:
            _check_ports(f"section {section.id}, flow {number}", lane, route, chip)
            for link in _links(f"section {section.id}, flow {number}", lane, chip):
                links[link] += route.bytes / len(route.lanes)  # pyright: ignore[reportArgumentType]
    busiest, total = max(links.values(), default=0.0), sum(links.values())
    num_links = 2 * (chip.rows * (chip.columns + 1) + (chip.rows - 1) * chip.columns)
    rate = chip.link_bytes_per_cycle * chip.clock_hz
    streaming = max(section.compute_seconds, section.sram_seconds, section.hbm_seconds)
    expected = {
        "cost": total,
        "reach": _reach(placed),
        "routing_seconds": busiest / rate,
        "max_utilisation": busiest / rate / streaming if streaming else 0.0,
        "mean_utilisation": total / num_links / rate / streaming if streaming else 0.0,
    }
    if not section.stages:
        expected = dict.fromkeys(expected, 0.0)
    for field, value in expected.items():
        _same(f"{field} of section {section.id}", getattr(placed, field), value)
    if not 0 <= placed.lower_bound <= placed.cost * (1 + _SHARE):
        raise VerificationError(
            f"section {section.id} costs {placed.cost:.6g}, less than its bound of {placed.lower_bound:.6g}"
        )


def _check_ports(where: str, lane: Lane, route: Route, chip: Chip) -> None:
    """Checks that a lane begins and ends outside of the grid where HBM is, and there alone."""
    for place, stage in ((lane[0], route.source), (lane[-1], route.target)):
        row, column = place
        is_port = 0 <= row < chip.rows and column in (-1, chip.columns)
        if is_port != (stage is None):
            raise VerificationError(f"{where}: a lane ends at {place}, which is {'a' if is_port else 'no'} port")


def _links(where: str, lane: Lane, chip: Chip) -> Iterator[tuple[Place, Place]]:
    """Yields the links that a lane passes, each between two places side by side."""
    walked = [lane[0]]
    for corner in lane[1:]:
        row, column = walked[-1]
        if (row == corner[0]) == (column == corner[1]):
            raise VerificationError(f"{where}: a lane has no straight way from {(row, column)} to {corner}")
        while walked[-1] != corner:
            row, column = walked[-1]
            row += (corner[0] > row) - (corner[0] < row)
            column += (corner[1] > column) - (corner[1] < column)
            yield walked[-1], (row, column)
            walked.append((row, column))
    for row, column in walked[1:-1]:
        if not (0 <= row < chip.rows and 0 <= column < chip.columns):
            raise VerificationError(f"{where}: a lane leaves the chip at {(row, column)}")


def _reach(placed: PlacedSection) -> float:
    distances = [
        min(abs(row - other_row) + abs(column - other_column) for other_row, other_column in stage.pmus)
        for stage in placed.stages
        for row, column in stage.pcus
    ]
    return sum(distances) / len(distances) if distances else 0.0


def _check_devices(placement: Placement, sections: Sections, partition: Partition) -> None:
    if len(placement.stages) != len(partition.stages):
        raise VerificationError(
            f"{len(placement.stages)} pipeline stages have devices, the partition has {len(partition.stages)}"
        )
    launched = [number for stage in placement.stages for number in range(stage.first_launch, stage.end_launch)]
    if launched != list(range(len(sections.launches))):
        raise VerificationError(f"{len(sections.launches)} launches are not each on one pipeline stage, in order")
    for number, (devices, stage) in enumerate(zip(placement.stages, partition.stages, strict=True)):
        there = (devices.first_device, devices.num_devices)
        if there != (stage.first_device, partition.mesh.num_devices):
            raise VerificationError(
                f"pipeline stage {number} is on {devices.num_devices} devices from {devices.first_device} on, "
                f"the partition has {partition.mesh.num_devices} from {stage.first_device} on"
            )
        for launch in sections.launches[devices.first_launch : devices.end_launch]:
            section = sections.sections[launch.section]
            if not stage.begin <= launch.begin <= launch.begin + section.end - section.begin <= stage.end:
                raise VerificationError(
                    f"section {launch.section} at operation {launch.begin} is launched on pipeline stage {number}, "
                    f"which has operations {stage.begin}-{stage.end - 1}"
                )


def _same(what: str, said: float, found: float) -> None:
    if not math.isclose(said, found, rel_tol=_SHARE, abs_tol=1e-12):
        raise VerificationError(f"{what} is {said:.9g}, by its definition {found:.9g}")
