"""`plait top`: a running server, live: its models, tiers, queues and switches."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json
from .output import format_bytes, format_seconds, print_json

if TYPE_CHECKING:
    import httpx
    from rich.console import Group, RenderableType
    from rich.table import Table

    from .server_reading import Reading, TierReading

__all__ = ["top"]

_SHOWN_SWITCHES = 8
_COLORS = {"hot": "green", "warm": "yellow", "cold": "dim"}


def top(
    url: Annotated[str, typer.Argument(metavar="[URL]", help="Of the server.")] = "http://127.0.0.1:8000",
    interval: Annotated[float, typer.Option(metavar="S", min=0.1, help="Seconds between two readings.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame, with the rates of one interval.")] = False,
    api_key: Annotated[
        str | None, typer.Option(metavar="KEY", envvar="PLAIT_API_KEY", help="Key of the server, if it wants one.")
    ] = None,
    json: Json = False,
) -> None:
    """Show what a running server does: models, tiers, queues and the last switches. Ctrl-C ends it.

    \b
    plait top
    plait top http://127.0.0.1:8000 --interval 0.5
    plait top http://127.0.0.1:8000 --once
    plait top http://127.0.0.1:8000 --json | jq '.models[] | {name, residency, waiting}'
    """
    from .server_reading import connect_to

    key = api_key.split()[0] if api_key and api_key.split() else None  # `plait serve` takes several from the variable
    with connect_to(url, key) as http:
        if json:
            print_json(dataclasses.asdict(_after(http, interval)))
        elif once or not sys.stdout.isatty():
            _print(_frame(_after(http, interval)))
        else:
            _watch(http, interval)


def _after(http: httpx.Client, interval: float) -> Reading:
    """Returns a reading with the rates of one interval."""
    from .server_reading import read_server

    before = read_server(http)
    time.sleep(interval)
    return read_server(http).since(before)


def _watch(http: httpx.Client, interval: float) -> None:
    from rich.live import Live

    from .server_reading import read_server

    reading = read_server(http)
    with Live(_frame(reading), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            reading = read_server(http).since(reading)
            live.update(_frame(reading), refresh=True)


def _print(frame: RenderableType) -> None:
    from rich.console import Console

    Console(markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else 100).print(frame)


def _frame(reading: Reading) -> Group:
    from rich.console import Group
    from rich.text import Text

    running, waiting = (sum(getattr(model, what) for model in reading.models) for what in ("running", "waiting"))
    clock = time.strftime("%H:%M:%S", time.localtime(reading.at_seconds))
    head = f"{reading.url}  {clock}  {running} running, {waiting} waiting, {reading.num_switches} switches"
    return Group(Text(head, style="bold"), "", _models(reading), "", _tiers(reading), "", _switches(reading))


def _models(reading: Reading) -> Table:
    from rich.text import Text

    table = _table("model", *["tier", "hbm", "ddr", "running", "waiting", "tok/s"])
    for model in reading.models:
        is_sick = model.health == "unhealthy"
        table.add_row(
            Text(model.name),
            Text("unhealthy" if is_sick else model.residency, style="red" if is_sick else _COLORS[model.residency]),
            *(format_bytes(model.tier_bytes[tier]) if tier in model.tier_bytes else "-" for tier in ("hbm", "ddr")),
            str(model.running),
            str(model.waiting),
            "-" if model.tokens_per_s is None else f"{model.tokens_per_s:.1f}",
        )
    return table


def _tiers(reading: Reading) -> Table:
    table = _table("tier", "", "used", "peak", "budget")
    for tier in reading.tiers:
        table.add_row(tier.tier, _bar(tier), *map(format_bytes, (tier.used_bytes, tier.peak_bytes, tier.budget_bytes)))
    return table


def _bar(tier: TierReading) -> RenderableType:
    from rich.progress_bar import ProgressBar

    return ProgressBar(total=tier.budget_bytes, completed=tier.used_bytes, width=40)


def _switches(reading: Reading) -> Table:
    table = _table("last move", "way", "bytes", "took", "ago")
    for switch in reading.switches[:_SHOWN_SWITCHES]:
        ago = max(0.0, reading.at_seconds - switch.ended_at)
        way = f"{switch.source} -> {switch.destination}"
        table.add_row(
            switch.model, way, format_bytes(switch.bytes), format_seconds(switch.seconds), f"{format_seconds(ago)}"
        )
    return table


def _table(first: str, *others: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="left" if name in ("tier", "way", "") else "right")
    return table
