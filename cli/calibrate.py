"""`plait calibrate`: this machine, measured, as a target file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json
from .output import format_bytes, format_flops, format_seconds, print_facts, print_json, progress_bars

if TYPE_CHECKING:
    from ..compiler.target import Target

__all__ = ["calibrate"]


def calibrate(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.toml", help="Write the target here.")
    ] = None,
    target: Annotated[str, typer.Option(metavar="NAME|FILE", help="The target to start from.")] = "cpu-tiered",
    pace: Annotated[
        bool | None,
        typer.Option("--pace/--no-pace", help="Keep copies to the links' rates; as in the target by default."),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(
            min=2, max=64, metavar="N", help="Measure collectives between so many devices too, virtual ones on a CPU."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Measure this machine and write it as a target file.

    Compute, memory and links are measured in some seconds; the machine should be idle otherwise. Capacities are kept
    from the target that it starts from. Without -o the file goes to standard output.

    \b
    plait calibrate -o mine.toml
    plait calibrate --target cpu --devices 8 -o eight.toml    collectives between 8 devices, for plans of meshes
    plait serve agent.plait --target mine.toml
    """
    from ..compiler.calibrate import NUM_MEASUREMENTS
    from ..compiler.calibrate import calibrate as measure
    from ..compiler.target import load_target
    from ..compiler.target_file import target_to_toml, write_target

    base = load_target(target)
    if devices is not None:
        from ..compiler.executable import provide_devices

        provide_devices(devices)
    with progress_bars() as bars:
        measured = measure(
            base,
            pace=pace,
            num_devices=devices,
            progress=lambda done: bars.update("measure", done, NUM_MEASUREMENTS),
        )
    if output is not None:
        write_target(measured, output)
    if json:
        print_json(asdict(measured))
    elif output is None:
        print(target_to_toml(measured), end="")
    else:
        print_facts([*_facts(measured), ("written to", output)])


def _facts(target: Target) -> list[tuple[str, str]]:
    rates = ", ".join(f"{dtype} {format_flops(rate)}/s" for dtype, rate in target.compute.flops_per_s.items())
    facts = [("compute", rates), ("launch", format_seconds(target.compute.launch_seconds))]
    facts += [(name, f"read at {format_bytes(tier.bandwidth_bytes_per_s)}/s") for name, tier in target.tiers.items()]
    for name, link in target.links.items():
        paced = ", paced" if link.pace else ""
        latency = f", latency {format_seconds(link.latency_seconds)}"
        facts.append((name, f"{format_bytes(link.bandwidth_bytes_per_s)}/s{latency}{paced}"))
    for kind, rate in target.network.collectives.items():
        latency = f", latency {format_seconds(rate.latency_seconds)} a step"
        facts.append((kind.replace("_", "-"), f"{format_bytes(rate.bandwidth_bytes_per_s)}/s{latency}"))
    return facts
