"""The roofline of one device with every section on it (Williams, Waterman and Patterson 2009), as a picture.

Across is the intensity, FLOPs for each byte of HBM traffic, upwards the FLOPs a second that a section reaches while its
kernel runs, both as logarithms. The area of a point is the section's share of a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from ..cost import peak_flops_per_s
from ..fuse.sections import Section
from ..text import format_seconds
from .inspection import Inspection
from .svg import Scale, decades, element, picture, text

__all__ = ["Roof", "roofline", "roofs"]

_WIDTH, _HEIGHT = 700.0, 430.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 16.0, 16.0, 44.0
_LARGEST, _SMALLEST = 15.0, 4.0  # radii
_LABEL, _LETTER = 15.0, 6.6  # height of a label, width of a letter
_LEAST_NAMED, _MOST_NAMED = 0.01, 8  # share of a step, and how many points have names


@dataclass(frozen=True)
class Roof:
    """A limit: of bytes a second, a slope, or of FLOPs a second, level."""

    name: str
    kind: str  # "hbm", "sram" or "compute"
    bytes_per_s: float | None
    flops_per_s: float
    is_peak: bool  # as published, not as sustained

    def at(self, intensity: float) -> float:
        """Returns the most FLOPs a second at an intensity, by this roof alone."""
        return self.flops_per_s if self.bytes_per_s is None else self.bytes_per_s * intensity


def roofs(seen: Inspection) -> list[Roof]:
    """Returns the limits of one device."""
    target = seen.compilation.target
    peak, tier, chip = peak_flops_per_s(target, seen.compilation.dtype), target.tiers["hbm"], target.chip
    found = [
        Roof("compute", "compute", None, peak, is_peak=True),
        Roof("HBM, sustained", "hbm", tier.sustained_bytes_per_s, peak, is_peak=False),
        Roof("HBM, peak", "hbm", tier.bandwidth_bytes_per_s, peak, is_peak=True),
    ]
    if chip is not None:
        sram = chip.num_pmus * chip.pmu_bytes_per_cycle * chip.clock_hz
        found.append(Roof("SRAM", "sram", sram, peak, is_peak=True))
    return found


def kernel_seconds(section: Section) -> float:
    """Returns the time of one launch without launching and collectives."""
    return max(section.compute_seconds, section.sram_seconds, section.hbm_seconds)


def roofline(seen: Inspection) -> Markup | None:
    """Returns the picture; None if nothing is computed from memory."""
    shown = [
        section
        for section in seen.by_time
        if section.flops and kernel_seconds(section) and 0 < section.intensity < math.inf
    ]
    if not shown:
        return None
    limits = roofs(seen)
    x, y = _scales(shown, limits)
    return picture(
        _WIDTH,
        _HEIGHT,
        *_axes(x, y),
        *(_roof_line(roof, limits[0].flops_per_s, x, y) for roof in limits),
        *_points(seen, shown, limits[0].flops_per_s, x, y),
        label="roofline of one device",
    )


def _scales(shown: list[Section], limits: list[Roof]) -> tuple[Scale, Scale]:
    ridge = limits[0].flops_per_s / limits[1].at(1.0)
    intensities = [section.intensity for section in shown]
    reached = [section.flops / kernel_seconds(section) for section in shown]
    low, high = min(*intensities, ridge / 100) / 3, max(*intensities, ridge) * 25
    bottom, top = min(*reached, limits[1].at(low)) / 2, limits[0].flops_per_s * 2.5
    return (
        Scale(low, high, _LEFT, _WIDTH - _RIGHT, is_log=True),
        Scale(bottom, top, _HEIGHT - _BOTTOM, _TOP, is_log=True),
    )


def _axes(x: Scale, y: Scale) -> Iterator[Markup]:
    for value in decades(x.low, x.high):
        place = x(value)
        yield element("line", x1=place, x2=place, y1=y.begin, y2=y.end, class_="grid")
        yield text(place, y.begin + 16, _power(value), anchor="middle", class_="tick")
    for value in decades(y.low, y.high):
        place = y(value)
        yield element("line", x1=x.begin, x2=x.end, y1=place, y2=place, class_="grid")
        yield text(x.begin - 8, place + 4, _rate(value), anchor="end", class_="tick")
    yield text((x.begin + x.end) / 2, _HEIGHT - 8, "FLOPs for each byte of HBM traffic", anchor="middle", class_="axis")
    yield text(x.begin + 6, _TOP + 11, "FLOP/s of a device", class_="axis")


def _power(value: float) -> str:
    return f"{value:g}" if 1e-3 <= value < 1e5 else f"{value:.0e}"


def _rate(value: float) -> str:
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def _roof_line(roof: Roof, peak: float, x: Scale, y: Scale) -> Markup:
    """Returns a roof where it is below the compute roof and inside the picture, with its name along it."""
    if roof.bytes_per_s is None:
        begin, end = x.low, x.high
        name = text(
            x.end - 4, y(peak) - 6, f"compute {_rate(peak)}FLOP/s", anchor="end", class_=f"roof-name {roof.kind}"
        )
    else:
        begin = max(x.low, y.low / roof.bytes_per_s)
        end = min(x.high, peak / roof.bytes_per_s)
        if begin >= end:
            return Markup()
        name = _slope_name(roof, begin, end, x, y)
    return element(
        "g",
        element(
            "line",
            x1=x(begin),
            y1=y(roof.at(begin)),
            x2=x(end),
            y2=y(roof.at(end)),
            class_=f"roof {roof.kind}{' peak' if roof.is_peak and roof.kind == 'hbm' else ''}",
        ),
        name,
    )


def _slope_name(roof: Roof, begin: float, end: float, x: Scale, y: Scale) -> Markup:
    """Returns the name of a sloped roof, along it; of two that are close together one above and one below."""
    if roof.bytes_per_s is None:
        return Markup()
    if roof.name == "HBM, sustained":
        return Markup()  # it and the peak have one name
    middle = math.sqrt(begin * end) if roof.kind == "sram" else begin * (end / begin) ** 0.72
    across, up = x(middle), y(roof.at(middle))
    angle = math.degrees(math.atan2(y(roof.at(end)) - y(roof.at(begin)), x(end) - x(begin)))
    rate = f"{_rate(roof.bytes_per_s)}B/s"
    content = f"SRAM {rate}" if roof.kind == "sram" else f"HBM {rate}, below it what is sustained"
    return element(
        "text",
        content,
        text_anchor="middle",
        transform=f"translate({across:.1f} {up - 6:.1f}) rotate({angle:.1f})",
        class_=f"roof-name {roof.kind}",
    )


def _points(seen: Inspection, shown: list[Section], peak: float, x: Scale, y: Scale) -> Iterator[Markup]:
    taken: list[float] = []
    highest = y(peak) + _LABEL
    for section in shown:
        share = seen.share(section)
        reached = section.flops / kernel_seconds(section)
        across, up = x(section.intensity), y(reached)
        radius = max(_SMALLEST, _LARGEST * math.sqrt(share))
        tip = (
            f"section {section.id}: {seen.title(section)}\n{share:.1%} of the step, {section.bound} bound\n"
            f"{section.intensity:.3g} FLOP/byte, {reached / 1e12:.3g} TFLOP/s\n"
            f"{format_seconds(kernel_seconds(section))} a launch, x {seen.sections.counts[section.id]}"
        )
        yield element("circle", cx=across, cy=up, r=radius, class_=f"point {section.bound}", data_tip=tip)
        place = _free(taken, up + 4, highest)
        if share >= _LEAST_NAMED and place is not None and len(taken) < _MOST_NAMED:
            taken.append(place)
            name = f"{section.id}  {seen.title(section)}"
            is_left = across + radius + 8 + _LETTER * len(name) > _WIDTH
            beside = across - radius - 8 if is_left else across + radius + 8
            anchor = "end" if is_left else "start"
            yield text(beside, place, name, anchor=anchor, class_="label")


def _free(taken: list[float], wanted: float, highest: float) -> float | None:
    """Returns the height nearest below a wanted one at which no label is: nothing else is below the roofs."""
    for step in range(24):
        place = max(wanted, highest) + step * _LABEL / 2
        if place < _HEIGHT - _BOTTOM - 4 and all(abs(place - other) >= _LABEL for other in taken):
            return place
    return None
