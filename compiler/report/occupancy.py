"""Tiers over time as pictures: buffers are boxes, as long as they live and as high as they are large, at their offsets.

HBM and DDR are shown launch by launch, of the fullest device; what is there for a whole step is drawn by kind, and what
passes has a picture of its own, as it may be a millionth of the weights. SRAM is shown phase by phase, of the section
that takes most of a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ..memory.tiers import PlannedBuffer, SectionSram, StageTiers
from ..text import format_bytes
from .chip import stage_hue
from .inspection import Inspection
from .svg import Scale, element, picture, text, ticks

__all__ = ["Occupancy", "occupancies"]

_WIDTH, _HEIGHT = 580.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 74.0, 10.0, 10.0, 40.0
_MOST_BOXES = 1200
_KINDS = {
    "parameter": "hbm",
    "cache": "compute",
    "state": "ddr",
    "input": "launch",
    "constant": "launch",
    "intermediate": "network",
}


@dataclass(frozen=True)
class Occupancy:
    """A picture of one tier."""

    title: str
    about: str
    image: Markup


@dataclass(frozen=True)
class _Box:
    begin: float
    end: float
    offset: float
    size: float
    class_: str
    tip: str
    hue: int | None = None


def occupancies(seen: Inspection) -> list[Occupancy]:
    """Returns the pictures; none if the step's tiers were not planned."""
    tiers = seen.mapped.tiers
    if tiers is None or not tiers.stages:
        return []
    fullest = max(tiers.stages, key=lambda stage: stage.hbm_bytes)
    found = [_whole(fullest, "hbm", fullest.budget_bytes)]
    passing = [buffer for buffer in fullest.buffers if buffer.tier == "hbm" and not _stays(buffer, fullest)]
    if passing:
        found.append(_passing(passing, fullest))
    if fullest.ddr_bytes:
        found.append(_whole(fullest, "ddr", fullest.ddr_bytes))
    shown = [section.id for section in seen.by_time if section.stages][: 2 if passing else 1]
    found += [_sram(seen, tiers.sections[identity]) for identity in shown]
    return found


def _stays(buffer: PlannedBuffer, stage: StageTiers) -> bool:
    return (buffer.begin, buffer.end) == (0, stage.num_launches)


def _whole(stage: StageTiers, tier: str, limit: int) -> Occupancy:
    held = [buffer for buffer in stage.buffers if buffer.tier == tier]
    kept = [buffer for buffer in held if _stays(buffer, stage)]
    boxes = [*_merged(kept), *(_box(buffer) for buffer in held if not _stays(buffer, stage))]
    used = stage.hbm_bytes if tier == "hbm" else stage.ddr_bytes
    about = f"{format_bytes(used)} of {format_bytes(limit)}, {len(held):,} buffers"
    if tier == "hbm":
        about += f"; at least {format_bytes(stage.hbm_lower_bound_bytes)} are live at once"
    image = _image(boxes, stage.num_launches, max(limit, used), "launch", f"{tier} over a step", limit)
    return Occupancy(f"{tier.upper()} of device {stage.first_device}, launch by launch", about, image)


def _merged(buffers: Sequence[PlannedBuffer]) -> Iterator[_Box]:
    """Yields boxes of buffers that live for a whole step: neighbours of one kind, and of one module, are one."""
    run: list[PlannedBuffer] = []
    for buffer in [*sorted(buffers, key=lambda buffer: buffer.offset_bytes), None]:
        if run and (buffer is None or not _belongs(run, buffer)):
            size = run[-1].offset_bytes + run[-1].bytes - run[0].offset_bytes
            names = run[0].name if len(run) == 1 else f"{run[0].name} … {run[-1].name}, {len(run)} buffers"
            tip = f"{names}\n{run[0].kind}, {format_bytes(size)} at {format_bytes(run[0].offset_bytes)}"
            class_ = f"bar {_KINDS[run[0].kind]}"
            yield _Box(run[0].begin, run[0].end, run[0].offset_bytes, size, class_, tip)
            run = []
        if buffer is not None:
            run.append(buffer)


def _belongs(run: Sequence[PlannedBuffer], buffer: PlannedBuffer) -> bool:
    last = run[-1]
    is_next = last.offset_bytes + last.bytes == buffer.offset_bytes and last.kind == buffer.kind
    return is_next and _layer(run[0].name) == _layer(buffer.name)


def _layer(name: str) -> str:
    return ".".join(name.split(".")[:2])


def _box(buffer: PlannedBuffer) -> _Box:
    tip = (
        f"{buffer.name}\n{buffer.kind}, {format_bytes(buffer.bytes)} at {format_bytes(buffer.offset_bytes)}\n"
        f"launches {buffer.begin} to {buffer.end}"
    )
    return _Box(buffer.begin, buffer.end, buffer.offset_bytes, buffer.bytes, f"bar {_KINDS[buffer.kind]} outlined", tip)


def _passing(buffers: Sequence[PlannedBuffer], stage: StageTiers) -> Occupancy:
    base = min(buffer.offset_bytes for buffer in buffers)
    shown = sorted(buffers, key=lambda buffer: -buffer.bytes)[:_MOST_BOXES]
    boxes = [_Box(box.begin, box.end, box.offset - base, box.size, box.class_, box.tip) for box in map(_box, shown)]
    top = max(buffer.offset_bytes + buffer.bytes for buffer in buffers) - base
    about = f"{len(buffers):,} buffers share {format_bytes(top)} from {format_bytes(base)} on"
    if len(shown) < len(buffers):
        about += f"; the {len(shown):,} largest are shown"
    image = _image(boxes, stage.num_launches, top, "launch", "what passes through HBM")
    return Occupancy("of it, what sections hand on", about, image)


def _sram(seen: Inspection, sram: SectionSram) -> Occupancy:
    section = seen.sections.sections[sram.section]
    boxes: list[_Box] = []
    for position, stage in enumerate(section.stages):
        begin, end = sram.phases[position]
        name = f"{stage.path}/{stage.name}".lstrip("/")
        tip = f"{name}\n{format_bytes(sram.bytes[position])} at {format_bytes(sram.offsets_bytes[position])}"
        offset, size = sram.offsets_bytes[position], sram.bytes[position]
        boxes.append(_Box(begin, end, offset, size, "pcu outlined", tip, stage_hue(position)))
    about = f"{format_bytes(sram.height_bytes)} of {format_bytes(sram.capacity_bytes)}"
    phases = max(end for _, end in sram.phases)
    image = _image(boxes, phases, sram.height_bytes, "phase", f"SRAM of section {sram.section}")
    return Occupancy(f"SRAM, section {sram.section} ({seen.title(section)}), phase by phase", about, image)


def _image(boxes: Sequence[_Box], end: int, top: float, unit: str, label: str, limit: float | None = None) -> Markup:
    x = Scale(0.0, max(end, 1), _LEFT, _WIDTH - _RIGHT)
    y = Scale(0.0, max(top, 1.0) * 1.04, _HEIGHT - _BOTTOM, _TOP)
    drawn = [
        element(
            "rect",
            x=x(box.begin),
            y=y(box.offset + box.size),
            width=x(box.end) - x(box.begin),
            height=max(y(box.offset) - y(box.offset + box.size), 0.3),
            class_=f"{box.class_} crisp",
            style=None if box.hue is None else f"--hue:{box.hue}",
            data_tip=box.tip,
        )
        for box in boxes
    ]
    back = element("rect", x=_LEFT, y=_TOP, width=x.end - x.begin, height=y.begin - y.end, class_="plot")
    roof = Markup()
    if limit is not None:
        roof = element("line", x1=x.begin, x2=x.end, y1=y(limit), y2=y(limit), class_="limit")
    return picture(_WIDTH, _HEIGHT, back, *drawn, roof, *_axes(x, y, unit), label=label)


def _axes(x: Scale, y: Scale, unit: str) -> Iterator[Markup]:
    size = _unit_of(y.high)
    for value in ticks(y.high / size, most=5):
        place = y(value * size)
        yield element("line", x1=x.begin - 4, x2=x.begin, y1=place, y2=place, class_="grid")
        yield text(x.begin - 8, place + 4, format_bytes(value * size) if value else "0", anchor="end", class_="tick")
    for value in ticks(x.high, most=8):
        if value == int(value):
            yield text(x(value), y.begin + 16, f"{value:.0f}", anchor="middle", class_="tick")
    yield text((x.begin + x.end) / 2, y.begin + 34, unit, anchor="middle", class_="axis")


def _unit_of(size: float) -> float:
    """Returns the binary unit in which a size is a number of few digits."""
    unit = 1.0
    while size >= unit * 1024:
        unit *= 1024
    return unit
