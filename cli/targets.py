"""`plait targets`: the machines that plait can plan for."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json
from .output import format_bytes, format_seconds, print_json, print_table

if TYPE_CHECKING:
    from ..compiler.target import Network

__all__ = ["targets"]


def targets(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A target, or the path of a TOML file.")] = None,
    json: Json = False,
) -> None:
    """List the targets, or show one as the TOML that it is.

    Between devices a collective takes a latency for each of its steps and its bytes at a bandwidth, none of it hidden
    behind compute but the share that the table names. A target that was calibrated has a rate for each collective.

    \b
    plait targets
    plait targets cpu-tiered > mine.toml    a copy to be changed, for `target: mine.toml` in a bundle file
    """
    from ..compiler.target import load_target, target_names

    if name is not None:
        from ..compiler.target_file import target_to_toml

        target = load_target(name)
        if json:
            print_json(asdict(target))
        else:
            print(target_to_toml(target), end="")
        return
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


def _network(network: Network) -> str:
    """Returns what a collective takes between devices, in a few words."""
    overlap = f", {network.overlap:.0%} hidden" if network.overlap else ""
    rate = f"{format_bytes(network.bandwidth_bytes_per_s)}/s, {format_seconds(network.latency_seconds)}"
    return f"{rate}, {network.topology.replace('_', ' ')}{overlap}"
