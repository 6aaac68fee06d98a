"""`plait targets`: the machines that plait can plan for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigurationError
from .options import Json
from .output import format_bytes, format_seconds, note, print_json, print_table

if TYPE_CHECKING:
    from ..compiler.target import Network
    from ..compiler.target_sources import TargetNumber

__all__ = ["targets"]


def targets(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|show|schema",
            help="A target by name or a TOML file: print it. `schema`: print what such a file may have.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="After `show`: a target by name, or a TOML file.")
    ] = None,
    json: Json = False,
) -> None:
    """List the targets, or show where the numbers of one are from.

    A name alone prints the target as the TOML that it is.

    Between devices a collective takes a latency for each of its steps and its bytes at a bandwidth, none of it hidden
    behind compute but the share that the table names. A target that was calibrated has a rate for each collective.

    \b
    plait targets
    plait targets show sn40l-16             every number, where it is from, and what is only assumed
    plait targets cpu-tiered > mine.toml    a copy to be changed, for `target: mine.toml` in a bundle file
    plait targets show mine.toml --json
    plait targets schema                    JSON schema of a target file, for an editor
    """
    match what, name:
        case None, _:
            _list(json)
        case "schema", None:
            _print_schema()
        case "show", None:
            raise ConfigurationError("plait targets show needs a name, or the path of a TOML file; see plait targets")
        case "show", str():
            _show(name, json)
        case _, None:
            _print_file(what, json)
        case _:
            raise ConfigurationError(f"plait targets takes one name, and got {what!r} and {name!r}; see --help")


def _list(json: bool) -> None:
    from ..compiler.target import load_target, target_names

    known = [load_target(each) for each in target_names()]
    if json:
        print_json([asdict(target) for target in known])
        return
    rows = [
        (
            target.name,
            target.kind,
            target.num_devices,
            _network(target.network),
            ", ".join(f"{tier} {format_bytes(it.capacity_bytes)}" for tier, it in target.tiers.items()),
            target.description,
        )
        for target in known
    ]
    print_table(["target ", "kind ", "devices", "network ", "capacity ", "description "], rows)


def _print_file(name: str, json: bool) -> None:
    from ..compiler.target import load_target
    from ..compiler.target_file import target_to_toml

    target = load_target(name)
    if json:
        print_json(asdict(target))
    else:
        print(target_to_toml(target), end="")


def _print_schema() -> None:
    from ..compiler.target_sources import target_schema

    print_json(target_schema())


def _show(name: str, json: bool) -> None:
    from ..compiler.target import load_target
    from ..compiler.target_sources import target_numbers, unused_sources

    target = load_target(name)
    numbers = target_numbers(target)
    if json:
        about = {"name": target.name, "description": target.description, "source": target.source}
        print_json({**about, "numbers": [_data(number) for number in numbers]})
    else:
        title = f"{target.name}: {target.description}"
        rows = [(number.key, _value(number), number.source) for number in numbers]
        print_table(["number ", "value", "source "], rows, title=title)
        num_assumed = sum(number.is_assumed for number in numbers)
        print(f"{len(numbers)} numbers, of one device unless their name says otherwise; {num_assumed} assumed")
    for key in unused_sources(target):
        note(f"target {target.name!r}: sources has {key!r}, which is the source of no number")


def _data(number: TargetNumber) -> dict[str, object]:
    return {
        "key": number.key,
        "value": number.value,
        "text": _value(number),
        "source": number.source,
        "assumed": number.is_assumed,
    }


def _value(number: TargetNumber) -> str:
    """Returns a number in the unit that its name ends in."""
    for ending, text in _UNITS.items():
        if re.search(rf"{ending}$", number.key):
            return text(number.value)
    return f"{number.value:,}" if isinstance(number.value, int) else f"{number.value:.4g}"


def _bytes(value: float) -> str:
    # Capacities are published in both: 64 GiB of one memory, 80 GB of another.
    return format_bytes(value) if value % (1 << 20) == 0 or value < 1 << 20 else _decimal(value, "B")


def _decimal(value: float, unit: str) -> str:
    """Returns a number with a decimal prefix, as data sheets have it."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 1000:
            return f"{value:.4g} {prefix}{unit}"
        value /= 1000
    return f"{value:.4g} P{unit}"


_UNITS: dict[str, Callable[[float], str]] = {  # by a pattern of the end of a name
    r"\.flops_per_s\.\w+": lambda value: _decimal(value, "FLOP/s"),
    "_bytes_per_s": lambda value: _decimal(value, "B/s"),
    "_bytes_per_cycle": lambda value: f"{value:g} B",
    "_bytes": _bytes,
    "_seconds": format_seconds,
    "_hz": lambda value: _decimal(value, "Hz"),
    "_watts": lambda value: f"{value:,.5g} W",
}


def _network(network: Network) -> str:
    """Returns what a collective takes between devices, in a few words."""
    overlap = f", {network.overlap:.0%} hidden" if network.overlap else ""
    rate = f"{format_bytes(network.bandwidth_bytes_per_s)}/s, {format_seconds(network.latency_seconds)}"
    return f"{rate}, {network.topology.replace('_', ' ')}{overlap}"
