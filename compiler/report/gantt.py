"""The schedule of a step as a picture that can be zoomed into, and its longest kernels taken apart.

The bars of one kind, section and stage are one path in a picture of its own, whose width is the step's time: zooming is
a matter of which part of it is shown, and 126 layers are as quick as one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from markupsafe import Markup

from ..fuse.sections import BOUNDS, Section
from ..schedule import Step, StepKind
from ..text import format_bytes, format_seconds
from .insights import BOUND_NAMES
from .inspection import Inspection
from .roofline import kernel_seconds
from .svg import Scale, element, number, picture, rectangles, text, ticks

__all__ = ["anatomy", "gantt", "time_bar"]

_UNITS = 100_000.0  # width of the step in coordinates of the bars
_WIDTH = 1200.0
_LEFT = 118.0
_ROWS: dict[StepKind, tuple[str, float]] = {
    "kernel": ("kernels", 24.0),
    "collective": ("collectives", 14.0),
    "launch": ("launches", 14.0),
    "handover": ("hand-over", 14.0),
    "append": ("caches", 14.0),
    "host": ("host", 14.0),
}
_GAP = 3.0
_MOST_LINED = 600  # launches up to which bars are set apart by lines
_MOST_STAGES = 4  # with rows by kind; of more stages each is one row
_MOST_ANATOMIES = 4


def gantt(seen: Inspection) -> Markup:
    """Returns the schedule: time across, a row for each pipeline stage and kind of step."""
    rows = _rows(seen)
    height = sum(size + _GAP for _, size in rows.values()) + _GAP
    bars = element(
        "svg",
        *_bars(seen, rows),
        x=_LEFT,
        y=0,
        width=_WIDTH - _LEFT,
        height=height,
        viewBox=f"0 0 {number(_UNITS)} {number(height)}",
        preserveAspectRatio="none",
        class_="bars lined" if len(seen.sections.launches) <= _MOST_LINED else "bars",
        data_seconds=repr(seen.schedule.seconds),
    )
    names: list[Markup] = []
    top = _GAP
    for label, size in rows.values():
        names.append(text(_LEFT - 10, top + size / 2 + 4, label, anchor="end", class_="tick"))
        top += size + _GAP
    back = element("rect", x=_LEFT, y=0, width=_WIDTH - _LEFT, height=height, class_="plot")
    scale = Scale(0.0, seen.schedule.seconds, _LEFT, _WIDTH)
    axis = element("g", *_time_axis(scale, height), class_="time-axis")
    return picture(_WIDTH, height + 26, back, *names, bars, axis, label="schedule of a step", class_="gantt")


def _rows(seen: Inspection) -> dict[tuple[int, StepKind | None], tuple[str, float]]:
    """Returns label and height of each row, by stage and kind; of many stages a row each."""
    stages = range(len(seen.partition.stages))
    if len(stages) > _MOST_STAGES:
        return {(stage, None): (f"stage {stage}", 18.0) for stage in stages}
    used = {(step.stage, step.kind) for step in seen.schedule.steps}
    prefix = (lambda stage: f"{stage}: ") if len(stages) > 1 else (lambda stage: "")
    return {
        (stage, kind): (f"{prefix(stage)}{label}", size)
        for stage in stages
        for kind, (label, size) in _ROWS.items()
        if (stage, kind) in used
    }


def _bars(seen: Inspection, rows: dict[tuple[int, StepKind | None], tuple[str, float]]) -> Iterator[Markup]:
    tops: dict[tuple[int, StepKind | None], float] = {}
    top = _GAP
    for key, (_, size) in rows.items():
        tops[key] = top
        top += size + _GAP
    alike: dict[tuple[int, StepKind, int | None], list[Step]] = defaultdict(list)
    for step in seen.schedule.steps:
        alike[step.stage, step.kind, step.section].append(step)
    factor = _UNITS / seen.schedule.seconds if seen.schedule.seconds else 0.0
    for (stage, kind, identity), steps in alike.items():
        key = (stage, kind) if (stage, kind) in rows else (stage, None)
        boxes = ((step.begin_seconds * factor, tops[key], step.seconds * factor, rows[key][1]) for step in steps)
        yield rectangles(boxes, class_=_class(seen, kind, identity), data_tip=_tip(seen, kind, identity, steps))


def _class(seen: Inspection, kind: StepKind, identity: int | None) -> str:
    if kind == "kernel" and identity is not None:
        section = seen.sections.sections[identity]
        longest = max(("compute", "sram", "hbm"), key=lambda term: section.terms[term])
        return f"bar kernel {longest} shade{identity % 3}"
    return f"bar {'network' if kind in ('collective', 'handover') else 'launch'}"


def _tip(seen: Inspection, kind: StepKind, identity: int | None, steps: list[Step]) -> str:
    each = format_seconds(steps[0].seconds)
    total = format_seconds(sum(step.seconds for step in steps))
    often = f"{len(steps)} times {each}, {total} in all" if len(steps) > 1 else each
    if identity is None:
        return f"{_ROWS[kind][0]}\n{often}"
    return f"section {identity}: {seen.title(seen.sections.sections[identity])}\n{kind}: {often}"


def _time_axis(scale: Scale, top: float) -> Iterator[Markup]:
    for value in ticks(scale.high, most=8):
        place = scale(value)
        anchor = "start" if value == 0 else "end" if place > scale.end - 30 else "middle"
        yield element("line", x1=place, x2=place, y1=top, y2=top + 5, class_="grid")
        yield text(place, top + 19, format_seconds(value), anchor=anchor, class_="tick")


def time_bar(seen: Inspection) -> Markup:
    """Returns one bar: a step's time, by what bounds the kernels, and what is beside them."""
    timed = seen.schedule
    parts: list[tuple[str, str, float]] = [
        (bound, f"kernels bound by {BOUND_NAMES[bound]}", timed.bound_seconds.get(bound, 0.0)) for bound in BOUNDS
    ]
    parts += [
        ("network", "hand-over between stages", timed.handover_seconds),
        ("launch", "keys and values into caches", timed.append_seconds),
        ("launch", "host", timed.host_seconds),
    ]
    scale = Scale(0.0, sum(seconds for _, _, seconds in parts) or 1.0, 0.0, _WIDTH)
    bars: list[Markup] = []
    begin = 0.0
    for kind, name, seconds in parts:
        width = scale(seconds)
        if seconds:
            share = seconds / scale.high
            tip = f"{name}: {format_seconds(seconds)}, {share:.1%}"
            bars.append(
                element("rect", x=begin, y=0, width=max(width, 1.0), height=30, class_=f"bar {kind}", data_tip=tip)
            )
            label = f"{name}  {format_seconds(seconds)}  {share:.0%}"
            if width > 7.2 * len(label) + 16:
                bars.append(text(begin + 10, 20, label, class_="on-bar"))
        begin += width
    return picture(_WIDTH, 30, *bars, label="time of a step by what bounds it")


def anatomy(seen: Inspection) -> Markup:
    """Returns one launch of each of the sections that take most time, taken apart: what overlaps is side by side."""
    shown = seen.by_time[:_MOST_ANATOMIES]
    longest = max(section.seconds for section in shown)
    scale = Scale(0.0, longest, 230.0, _WIDTH - 90)
    parts: list[Markup] = []
    top = 4.0
    for section in shown:
        parts += _apart(seen, section, scale, top)
        top += 54
    axis = element("g", *_time_axis(scale, top - 4))
    return picture(_WIDTH, top + 20, *parts, axis, label="kernels taken apart")


def _apart(seen: Inspection, section: Section, scale: Scale, top: float) -> Iterator[Markup]:
    count = seen.sections.counts[section.id]
    yield text(0, top + 18, f"section {section.id}  {_short(seen.title(section), 24)}", class_="label strong")
    yield text(0, top + 35, f"{count} x {format_seconds(section.seconds)}, {seen.share(section):.1%}", class_="tick")
    begin, kernel = section.launch_seconds, kernel_seconds(section)
    yield _piece(section, "launch", 0.0, begin, scale, top + 2, 40)
    rows = (("hbm", section.hbm_seconds), ("sram", section.sram_seconds), ("compute", section.compute_seconds))
    for row, (term, seconds) in enumerate(rows):
        yield _piece(section, term, begin, seconds, scale, top + 2 + row * 13.5, 13)
    yield _piece(section, "network", begin + kernel, section.network_seconds, scale, top + 2, 40)
    end = scale(section.seconds)
    yield text(end + 8, top + 26, format_seconds(section.seconds), class_="tick")


def _piece(
    section: Section, term: str, begin: float, seconds: float, scale: Scale, top: float, height: float
) -> Markup:
    if not seconds:
        return Markup()
    width = max(scale(seconds) - scale.begin, 0.75)
    name = {"network": "collectives", "launch": "launch"}.get(term, term)
    tip = f"section {section.id}, {name}: {format_seconds(seconds)}"
    if term == "hbm":
        tip += f"\n{format_bytes(section.read_bytes)} read, {format_bytes(section.written_bytes)} written"
    bar = element("rect", x=scale(begin), y=top, width=width, height=height, class_=f"bar {term}", data_tip=tip)
    label = f"{name.upper() if term in ('hbm', 'sram') else name} {format_seconds(seconds)}"
    if width < 6.6 * len(label) + 12 or height > 20:
        return bar
    return bar + text(scale(begin) + 6, top + height - 3, label, class_="on-bar small")


def _short(content: str, most: int) -> str:
    return content if len(content) <= most else f"{content[: most - 1]}…"
