"""Pictures as text: elements of SVG with everything escaped, scales, ticks.

Pictures take their colours from the page's classes, so that they follow its theme; what an element is about is its
`data-tip`, which the page shows beside the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["Scale", "decades", "element", "number", "picture", "rectangles", "text", "ticks"]


def number(value: float) -> str:
    """Returns a coordinate in few characters."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value else "0"


def element(tag: str, *children: str | Markup, **attributes: str | float | None) -> Markup:
    """Returns an element; `class_` is class, other underscores are hyphens, None leaves an attribute out."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value if isinstance(value, str) else number(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{written}>{''.join(escape(child) for child in children)}</{tag}>")


def picture(
    width: float, height: float, *children: Markup, label: str, class_: str = "", most: float | None = None
) -> Markup:
    """Returns a whole picture, as wide as its place on the page.

    Args:
        width: Of its coordinates.
        height: Likewise.
        children: What is in it.
        label: For those who cannot see it.
        class_: Of its element.
        most: Width in pixels beyond which it does not grow.
    """
    box = f"0 0 {number(width)} {number(height)}"
    style = None if most is None else f"max-width:{number(most)}px"
    name = f"picture {class_}".strip()
    return element("svg", *children, viewBox=box, role="img", aria_label=label, class_=name, style=style)


def text(x: float, y: float, content: str, *, anchor: str = "start", class_: str = "") -> Markup:
    """Returns a text; its baseline is at y."""
    return element("text", content, x=x, y=y, text_anchor=anchor if anchor != "start" else None, class_=class_ or None)


def rectangles(boxes: Iterable[tuple[float, float, float, float]], **attributes: str | None) -> Markup:
    """Returns boxes of (x, y, width, height) as one path: as one element, thousands are fast."""
    way = "".join(f"M{number(x)} {number(y)}h{number(w)}v{number(h)}h-{number(w)}z" for x, y, w, h in boxes)
    return element("path", d=way, **attributes)


@dataclass(frozen=True)
class Scale:
    """From values to coordinates, in proportion or by their logarithms."""

    low: float
    high: float
    begin: float  # coordinate of low
    end: float  # coordinate of high
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Returns the coordinate of a value."""
        low, high = (math.log10(self.low), math.log10(self.high)) if self.is_log else (self.low, self.high)
        place = math.log10(value) if self.is_log else value
        return self.begin + (self.end - self.begin) * (place - low) / (high - low)


def ticks(high: float, most: int = 6, base: Sequence[int] = (1, 2, 5, 10)) -> list[float]:
    """Returns round numbers from 0 up to one, at most `most` steps."""
    if high <= 0:
        return [0.0]
    unit = 10 ** math.floor(math.log10(high / most))
    step = next(factor * unit for factor in (*base, 20, 50) if high / (factor * unit) <= most)
    return [step * i for i in range(math.floor(high / step + 1e-9) + 1)]


def decades(low: float, high: float) -> Iterator[float]:
    """Yields the powers of ten from one number to another."""
    for exponent in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1):
        yield 10.0**exponent
