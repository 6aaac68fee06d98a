"""A sweep as a table, and as one page with the Pareto front drawn."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from ..pipeline import VERSION
from ..text import Table, format_bytes, format_seconds
from .page import environment
from .svg import Scale, element, number, picture, text
from .sweep import Metric, Point, Sweep

__all__ = ["format_metric", "metric_name", "scatter", "sweep_page", "sweep_table"]

_WIDTH, _HEIGHT = 1100.0, 480.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 76.0, 24.0, 20.0, 48.0
_ROOM = 1.25  # around the points, as a factor
_LABEL = 14.0
_MOST_LABELS = 30
_NAMES: dict[Metric, str] = {
    "tokens_per_s_per_user": "tokens/s a user",
    "tokens_per_s_per_socket": "tokens/s a socket",
    "tokens_per_s": "tokens/s",
    "joules_per_token": "J/token",
    "step_seconds": "step",
    "device_bytes": "bytes of a device",
}


def metric_name(metric: Metric) -> str:
    """Returns what people call a metric."""
    return _NAMES[metric]


def format_metric(metric: Metric, value: float | None) -> str:
    """Returns a metric with its unit, or nothing if it is not known."""
    if value is None:
        return ""
    if metric == "step_seconds":
        return format_seconds(value)
    if metric == "device_bytes":
        return format_bytes(value)
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}" if value >= 100 else f"{value:.3g}"


def sweep_table(made: Sweep) -> Table:
    """Returns all points, those on the front marked, and of those without a plan why."""
    front = set(made.front)
    shown: tuple[Metric, ...] = tuple(_NAMES)
    rows = tuple(
        (
            "*" if place in front else "",
            *point.settings.values(),
            *(format_metric(metric, point.metric(metric)) for metric in shown),
            _mesh(point),
            point.why if point.outcome is None else point.outcome.bound,
        )
        for place, point in enumerate(made.points)
    )
    heads = ("", *made.varied, *map(metric_name, shown), "mesh ", "bound by, or why not ")
    x, y = map(metric_name, made.metrics)
    note = f"* no other is as good in {x} and in {y} and better in one" if front else ""
    return Table(f"{made.model}, {made.phase}", heads, rows, note)


def _mesh(point: Point) -> str:
    if point.outcome is None:
        return ""
    stages = f"{point.outcome.num_stages} x " if point.outcome.num_stages > 1 else ""
    return f"{stages}{point.outcome.mesh}"


def sweep_page(made: Sweep) -> bytes:
    """Returns the page as a file."""
    return (
        environment()
        .get_template("sweep.html")
        .render(
            title=f"{made.model}, {made.phase}: {', '.join(made.varied) or 'as it is'}",
            version=VERSION,
            made=made,
            plot=scatter(made),
            names=[metric_name(metric) for metric in made.metrics],
            table=sweep_table(made),
            colours=list(_colours(made).items()),
        )
        .encode()
    )


def _colours(made: Sweep) -> dict[str, int]:
    """Returns a hue for each value of what is varied first."""
    values = next(iter(made.varied.values()), ())
    return {value: round(i * 137.508 + 215) % 360 for i, value in enumerate(values)}


def scatter(made: Sweep) -> Markup | None:
    """Returns the points by both metrics, as logarithms, with the front; None if there are none."""
    x_metric, y_metric = made.metrics
    found = [
        (place, x, y)
        for place, point in enumerate(made.points)
        if (x := point.metric(x_metric)) and (y := point.metric(y_metric))
    ]
    if not found:
        return None
    x = _scale([across for _, across, _ in found], _LEFT, _WIDTH - _RIGHT)
    y = _scale([up for _, _, up in found], _HEIGHT - _BOTTOM, _TOP)
    front = sorted((across, up) for place, across, up in found if place in set(made.front))
    line = " ".join(f"{number(x(across))},{number(y(up))}" for across, up in front)
    return picture(
        _WIDTH,
        _HEIGHT,
        *_axes(x, y, made),
        element("polyline", points=line, class_="front"),
        *_dots(made, found, x, y),
        label="points by both metrics",
    )


def _scale(values: list[float], begin: float, end: float) -> Scale:
    return Scale(min(values) / _ROOM, max(values) * _ROOM, begin, end, is_log=True)


def _axes(x: Scale, y: Scale, made: Sweep) -> Iterator[Markup]:
    x_metric, y_metric = made.metrics
    for value in _marks(x):
        yield element("line", x1=x(value), x2=x(value), y1=y.begin, y2=y.end, class_="grid")
        yield text(x(value), y.begin + 17, format_metric(x_metric, value), anchor="middle", class_="tick")
    for value in _marks(y):
        yield element("line", x1=x.begin, x2=x.end, y1=y(value), y2=y(value), class_="grid")
        yield text(x.begin - 8, y(value) + 4, format_metric(y_metric, value), anchor="end", class_="tick")
    yield text((x.begin + x.end) / 2, _HEIGHT - 8, metric_name(x_metric), anchor="middle", class_="axis")
    yield text(x.begin + 6, _TOP + 6, metric_name(y_metric), class_="axis")


def _marks(scale: Scale) -> list[float]:
    """Returns round numbers on a logarithmic scale: 1, 2 and 5 of each decade, or fewer over many."""
    factors = (1.0, 2.0, 5.0) if scale.high / scale.low < 2000 else (1.0,)
    found = [factor * 10.0**power for power in range(-15, 16) for factor in factors]
    return [value for value in found if scale.low <= value <= scale.high]


def _dots(made: Sweep, found: list[tuple[int, float, float]], x: Scale, y: Scale) -> Iterator[Markup]:
    front, colours = set(made.front), _colours(made)
    first = next(iter(made.varied), None)
    taken: list[tuple[float, float]] = []
    for place, across, up in sorted(found, key=lambda each: each[0] not in front):
        point = made.points[place]
        named = ", ".join(f"{name} {value}" for name, value in point.settings.items()) or "as it is"
        lines = [named, *(f"{_NAMES[metric]} {format_metric(metric, point.metric(metric))}" for metric in _NAMES)]
        hue = colours.get(point.settings[first], 215) if first is not None else 215
        yield element(
            "circle",
            cx=x(across),
            cy=y(up),
            r=7 if place in front else 4.5,
            class_="dot on" if place in front else "dot",
            style=f"--hue:{hue}",
            data_tip="\n".join([*lines, _mesh(point)]),
        )
        if place in front and len(taken) < _MOST_LABELS:
            label = " / ".join(point.settings.values()) or "as it is"
            yield from _label(label, x(across), y(up), taken)


def _label(content: str, across: float, up: float, taken: list[tuple[float, float]]) -> Iterator[Markup]:
    """Yields a label beside a point unless there is no room among the others."""
    width = 6.6 * len(content)
    is_left = across + 12 + width > _WIDTH
    begin = across - 12 - width if is_left else across + 12
    for place in (up - 9, up + 17, up + 4):
        apart = all(abs(place - other) >= _LABEL or abs(begin - start) >= 150 for start, other in taken)
        if apart and _TOP + 14 < place < _HEIGHT - _BOTTOM - 2:
            taken.append((begin, place))
            yield text(
                across - 12 if is_left else begin, place, content, anchor="end" if is_left else "start", class_="label"
            )
            return
