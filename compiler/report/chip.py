"""What sits where: the devices of every pipeline stage, and the tiles of a section on the chip's grid.

Compute units are squares, memory units are discs, both in the colour of their stage; lines are links between tiles, the
darker the busier.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from ..fuse.sections import Section
from ..mesh import Mesh
from ..place.placement import Place, PlacedSection
from ..text import format_bytes, format_seconds
from .inspection import Inspection
from .svg import element, number, picture, rectangles, text

__all__ = ["ChipView", "Legend", "chip_views", "device_map", "link_loads", "stage_hue"]

_TILE = 14.0
_EDGE = 16.0  # for ports, left and right
_MOST_SECTIONS = 6
_SHADES = 4  # of links
_DEVICE = 46.0
_MOST_COLUMNS = 32

_Link = tuple[Place, Place]


@dataclass(frozen=True)
class Legend:
    """A stage in a chip's legend."""

    position: int
    name: str
    units: str
    time: str
    hue: int  # degrees


@dataclass(frozen=True)
class ChipView:
    """A section on the grid."""

    section: int
    title: str
    about: str
    image: Markup
    legend: tuple[Legend, ...]


def chip_views(seen: Inspection) -> list[ChipView]:
    """Returns the sections that take most time, as they lie on the chip; none without a grid."""
    if not seen.placement.rows:
        return []
    shown = [section for section in seen.by_time if section.stages][:_MOST_SECTIONS]
    return [_view(seen, section, seen.placement.sections[section.id]) for section in shown]


def _view(seen: Inspection, section: Section, placed: PlacedSection) -> ChipView:
    rows, columns = seen.placement.rows, seen.placement.columns
    width, height = columns * _TILE + 2 * _EDGE, rows * _TILE
    tiles = [
        element("rect", x=_EDGE, y=0, width=columns * _TILE, height=height, class_="plot"),
        *(_stage_tiles(section, placed, position) for position in range(len(placed.stages))),
        element("g", *_links(placed, columns), class_="links"),
    ]
    about = (
        f"{section.num_pcus} PCUs and {section.num_pmus} PMUs of {rows} x {columns} tiles; busiest link "
        f"{placed.max_utilisation:.0%}, mean {placed.mean_utilisation:.1%}; a byte passes {placed.mean_hops:.1f} links"
    )
    legend = tuple(
        Legend(
            position,
            f"{stage.path}/{stage.name}".lstrip("/"),
            f"{stage.num_pcus} + {stage.num_pmus}",
            format_seconds(stage.seconds),
            stage_hue(position),
        )
        for position, stage in enumerate(section.stages)
    )
    image = picture(width, height, *tiles, label=f"section {section.id} on the chip", class_="chip")
    return ChipView(section.id, seen.title(section), about, image, legend)


def stage_hue(position: int) -> int:
    """Returns the colour of a stage, in degrees."""
    return round(position * 137.508 + 215) % 360  # the golden angle: neighbours differ


def _stage_tiles(section: Section, placed: PlacedSection, position: int) -> Markup:
    stage, tiles = section.stages[position], placed.stages[position]
    tip = (
        f"{f'{stage.path}/{stage.name}'.lstrip('/')}\n{stage.num_pcus} PCUs, {stage.num_pmus} PMUs, "
        f"{format_bytes(stage.sram_bytes)} of SRAM\n{format_seconds(stage.seconds)} a launch, phase {stage.phase}"
    )
    squares = rectangles(
        ((_EDGE + column * _TILE + 1, row * _TILE + 1, _TILE - 2, _TILE - 2) for row, column in tiles.pcus),
        class_="pcu",
    )
    return element(
        "g",
        squares,
        element("path", d=_discs(tiles.pmus), class_="pmu"),
        class_="stage",
        style=f"--hue:{stage_hue(position)}",
        data_tip=tip,
        data_stage=str(position),
    )


def _discs(places: Iterable[Place]) -> str:
    """Returns discs as one path."""
    radius = _TILE / 2 - 2
    arc = f"a{number(radius)} {number(radius)} 0 1 0 "
    return "".join(
        f"M{number(_EDGE + column * _TILE + 2)} {number((row + 0.5) * _TILE)}"
        f"{arc}{number(2 * radius)} 0{arc}-{number(2 * radius)} 0"
        for row, column in places
    )


def link_loads(placed: PlacedSection) -> dict[_Link, float]:
    """Returns the bytes of one launch over each link, by the two tiles that it joins, both ways together."""
    loads: dict[_Link, float] = defaultdict(float)
    for route in placed.routes:
        for lane in route.lanes:
            for begin, end in pairwise(lane):
                for link in _straight(begin, end):
                    loads[link] += route.lane_bytes
    return loads


def _straight(begin: Place, end: Place) -> Iterator[_Link]:
    """Yields the links of a stretch along a row or a column."""
    (row, column), (last_row, last_column) = min(begin, end), max(begin, end)
    while (row, column) != (last_row, last_column):
        after = (row + 1, column) if row < last_row else (row, column + 1)
        yield (row, column), after
        row, column = after


def _links(placed: PlacedSection, columns: int) -> Iterator[Markup]:
    """Yields the links in shades by their load relative to the busiest."""
    loads = link_loads(placed)
    most = max(loads.values(), default=0)
    ways: list[list[str]] = [[] for _ in range(_SHADES)]
    for ((row, column), (other_row, other_column)), load in loads.items():
        if min(column, other_column) < 0 or max(column, other_column) >= columns:
            length = _EDGE - 2
            begin = 2.0 if column < 0 else _EDGE + columns * _TILE
            way = f"M{number(begin)} {number((row + 0.5) * _TILE)}h{number(length)}"
        else:
            way = f"M{number(_EDGE + (column + 0.5) * _TILE)} {number((row + 0.5) * _TILE)}"
            way += f"v{number(_TILE)}" if other_row > row else f"h{number(_TILE)}"
        ways[min(_SHADES - 1, int(_SHADES * load / most))].append(way)
    for shade, found in enumerate(ways):
        if found:
            yield element("path", d="".join(found), class_=f"link shade{shade}")


def device_map(seen: Inspection) -> Markup:
    """Returns all devices, by pipeline stage, filled as far as their HBM is, with their place in the mesh."""
    mesh, plan = seen.partition.mesh, seen.partition
    limit = plan.budget_bytes or seen.compilation.target.tiers["hbm"].usable_bytes
    columns = _columns(mesh, len(plan.stages))
    rows = -(-mesh.num_devices // columns)
    across = max(1, _MOST_COLUMNS // columns) if rows == 1 else max(1, 16 // columns)
    parts: list[Markup] = []
    block = columns * _DEVICE + 24, rows * _DEVICE + 34
    for number_, stage in enumerate(plan.stages):
        left, top = (number_ % across) * block[0], (number_ // across) * block[1]
        share = stage.footprint.total / limit
        title = f"stage {number_}" if len(plan.stages) > 1 else f"one stage, mesh {mesh}"
        parts.append(text(left, top + 13, f"{title}: {format_seconds(stage.seconds)}", class_="tick"))
        for device in range(mesh.num_devices):
            x, y = left + device % columns * _DEVICE, top + 22 + device // columns * _DEVICE
            tip = (
                f"device {stage.first_device + device}: {_coordinates(mesh, device)}\n"
                f"{format_bytes(stage.footprint.total)} of {format_bytes(limit)} of HBM ({share:.0%})"
            )
            parts.append(_device(x, y, min(share, 1.0), str(stage.first_device + device), tip))
    used = min(across, len(plan.stages))
    down = -(-len(plan.stages) // across)
    width = max(used * block[0] - 24, 16 * _DEVICE)
    return picture(width, down * block[1], *parts, label="devices", class_="devices", most=width * 1.1)


def _columns(mesh: Mesh, num_stages: int) -> int:
    """Returns in how many columns a stage's devices stand: the last axes go down, the others across."""
    if len(mesh.sizes) > 1 and num_stages <= 2:
        return min(_MOST_COLUMNS, mesh.num_devices // mesh.sizes[-1])
    return min(16, mesh.num_devices)


def _coordinates(mesh: Mesh, device: int) -> str:
    found: list[str] = []
    for axis, size in reversed(list(mesh.shape.items())):
        found.append(f"{axis}={device % size}")
        device //= size
    return ", ".join(reversed(found)) or "alone"


def _device(x: float, y: float, share: float, name: str, tip: str) -> Markup:
    size = _DEVICE - 6
    return element(
        "g",
        element("rect", x=x, y=y, width=size, height=size, rx=5, class_="socket"),
        element("rect", x=x, y=y + size * (1 - share), width=size, height=size * share, rx=5, class_="filled"),
        text(x + size / 2, y + size / 2 + 4, name, anchor="middle", class_="label strong"),
        data_tip=tip,
    )
