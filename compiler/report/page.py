"""An inspection as one page that needs nothing else: no network, no other file.

Pictures are SVG, made by `roofline.py`, `gantt.py`, `chip.py` and `occupancy.py`; words are escaped by the template.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jinja2

from ..fuse.report import report_sections
from ..partition.difference import Planned
from ..partition.report import report
from ..pipeline import VERSION
from ..text import Table, format_bytes, format_seconds
from .chip import chip_views, device_map
from .gantt import anatomy, gantt, time_bar
from .insights import insights
from .inspection import Inspection
from .occupancy import occupancies
from .roofline import roofline
from .tables import facts, reshard_table, tier_rows

__all__ = ["environment", "page"]

_MOST_RESHARDS = 20


def page(seen: Inspection) -> bytes:
    """Returns the page as a file."""
    made = seen.compilation
    planned = Planned(seen.name, made.traced, seen.partition, made.target, made.dtype)
    return (
        environment()
        .get_template("page.html")
        .render(
            title=f"{seen.name} on {made.target.name}",
            target=made.target,
            version=VERSION,
            cards=list(_cards(seen)),
            facts=facts(seen),
            insights=insights(seen),
            time_bar=time_bar(seen),
            gantt=gantt(seen),
            anatomy=anatomy(seen),
            mode=seen.sections.mode,
            orchestration=seen.sections.orchestration,
            sections=report_sections(seen.sections),
            roofline=roofline(seen),
            tiers=list(_tiers(seen)),
            devices=device_map(seen),
            chips=chip_views(seen),
            occupancies=occupancies(seen),
            reshards=reshard_table(seen, _MOST_RESHARDS),
            reports=report(planned),
        )
        .encode()
    )


@functools.cache
def environment() -> jinja2.Environment:
    """Returns the templates; what they are given is escaped."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("plait.compiler.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["alignment"] = _alignment
    return made


def _alignment(table: Table, column: int) -> str:
    return "left" if table.columns[column].endswith(" ") else "right"


def _cards(seen: Inspection) -> Iterator[tuple[str, str, str]]:
    """Yields the numbers on top: name, value, and what it is of."""
    timed, plan, shapes = seen.schedule, seen.partition, seen.compilation.configuration
    yield "a step", format_seconds(timed.seconds), f"{timed.num_launches} launches, {timed.bound} bound"
    if shapes.phase == "decode":
        yield "a user", f"{1 / timed.seconds:,.0f} tokens/s", f"batch {shapes.batch}, context {shapes.context:,}"
    yield (
        "all users",
        f"{seen.tokens_per_s:,.0f} tokens/s",
        f"{seen.num_tokens:,} new token{'s' * (seen.num_tokens > 1)} a step",
    )
    if timed.joules is not None:
        yield "energy", f"{timed.joules / seen.num_tokens:.3g} J/token", f"{timed.joules:.3g} J a step"
    limit = plan.budget_bytes or seen.compilation.target.tiers["hbm"].usable_bytes
    held = f"{format_bytes(plan.device_bytes)} of {format_bytes(limit)}"
    yield "fullest device", f"{plan.device_bytes / limit:.0%}", held
    sent = (timed.network_seconds + timed.handover_seconds) / timed.seconds if timed.seconds else 0.0
    yield "collectives", f"{sent:.0%}", f"of a step, {len(seen.reshards)} kinds of reshards"
    yield "layout", plan.status, f"gap {plan.gap:.1%} to its bound"


def _tiers(seen: Inspection) -> Iterator[tuple[str, str, str, str]]:
    """Yields of each tier its name, how full it is, in bytes and in percent, and with what."""
    for tier, held, limit, what in tier_rows(seen):
        share = min(100.0, 100 * held / limit) if limit else 0.0
        yield tier, f"{share:.2f}", f"{format_bytes(held)} of {format_bytes(limit)}", what
