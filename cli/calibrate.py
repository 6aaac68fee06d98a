"""`plait calibrate`: this machine, measured, as a target file."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigurationError
from .options import Json
from .output import format_bytes, format_flops, format_seconds, print_facts, print_json, progress_bars

if TYPE_CHECKING:
    from ..compiler.bundle.reader import Bundle
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
    bundle: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Measure its programs and what serving it adds, too.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure this machine and write it as a target file.

    Compute, memory and links are measured in some seconds; the machine should be idle otherwise. Capacities are kept
    from the target that it starts from. Without -o the file goes to standard output.

    With --bundle each of its programs is run, and it is served and asked for some minutes: `plait simulate trace` then
    knows what a step takes here, and what the host adds to a step, a token and a request.

    \b
    plait calibrate -o mine.toml
    plait calibrate --target cpu --devices 8 -o eight.toml    collectives between 8 devices, for plans of meshes
    plait serve agent.plait --target mine.toml
    plait calibrate --bundle agent.plait -o mine.toml         for simulations of this bundle on this machine
    """
    from ..compiler.calibrate import NUM_MEASUREMENTS
    from ..compiler.calibrate import calibrate as measure
    from ..compiler.target import load_target
    from ..compiler.target_file import target_to_toml, write_target

    base = load_target(target)
    opened = None if bundle is None else _open(bundle)
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
        if opened is not None:
            measured = _with_serving(measured, opened, bars.update)
    if output is not None:
        write_target(measured, output)
    if json:
        print_json(asdict(measured))
    elif output is None:
        print(target_to_toml(measured), end="")
    else:
        print_facts([*_facts(measured), ("written to", output)])


def _open(path: Path) -> Bundle:
    """Returns a bundle that serving can be measured with.

    Raises:
        ConfigurationError: if none of its models generates text.
    """
    from ..compiler.bundle.reader import open_bundle

    bundle = open_bundle(path)
    if all(entry.kv is None for entry in bundle.manifest.models):
        raise ConfigurationError("no model of this bundle generates text, which is what serving is measured with")
    return bundle


def _with_serving(target: Target, bundle: Bundle, report: Callable[[str, int, int], None]) -> Target:
    """Returns a target with what serving a bundle takes on it."""
    from dataclasses import replace

    from ..compiler.calibrate import measured_when
    from ..compiler.target_file import write_target
    from ..runtime.bench.programs import measure_programs
    from ..runtime.bench.serving import measure_serving
    from .bench_child import served

    times = measure_programs(bundle, target, progress=functools.partial(report, "run programs"))
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "target.toml"
        write_target(target, file)
        with served(bundle.path, ["--target", str(file)]) as url:
            found = measure_serving(url, bundle.manifest, times, progress=functools.partial(report, "serve"))
    source = f"{measured_when()}: bundle {bundle.manifest.name!r}, run and served"
    return replace(target, serving=found, sources={**target.sources, "serving": source})


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
    if (serving := target.serving) is not None:
        parts = (serving.step_seconds, serving.sequence_seconds, serving.request_seconds)
        step, token, request = map(format_seconds, parts)
        facts.append(("serving", f"{step} a step, {token} a token, {request} a request beside the programs"))
        facts += [(name, f"{format_seconds(found.seconds)} a step") for name, found in serving.programs.items()]
    return facts
