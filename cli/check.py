"""`plait check`: is a bundle whole, or the plan of one, does it fit, and what does a switch cost?"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigurationError
from .garbage import uncollected
from .options import Json
from .output import format_bytes, format_seconds, note, print_facts, print_json, print_table, progress_bars, spinner

if TYPE_CHECKING:
    from ..compiler.bundle.manifest import ModelEntry
    from ..compiler.bundle.placement import DeviceShare
    from ..compiler.bundle.reader import Bundle
    from ..compiler.rack.plan import RackPlan
    from .legality import Legality

__all__ = ["Digest", "check"]

Digest = Annotated[
    str | None, typer.Option("--digest", metavar="SHA256", help="Digest that the bundle must have, from a safe place.")
]


_Checked = Annotated[
    Path,
    typer.Argument(metavar="BUNDLE|FILE.yaml", help="Directory that `plait bundle` made, or a bundle file for a rack."),
]


def check(
    bundle: _Checked,
    digest: Digest = None,
    target: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Of a bundle file: target, instead of its own.")
    ] = None,
    json: Json = False,
) -> None:
    """Verify every byte of a bundle, then its budgets.

    Errors are models that can never be hot: exit code 2. Warnings are models that exclude each other, or budgets beyond
    the machine. Budgets are those of each device, and what is held against them are the fullest one's bytes. The matrix
    says how long it takes, by the plan, to make one model hot in place of another.

    Of a bundle for a rack the plan is verified; a bundle file is planned in memory. What does not fit comes with what
    would make it fit, and of models with copies it is said how many there could be.

    \b
    plait check agent.plait
    plait check agent.plait --digest 7f3a... --json
    plait check rack.yaml --target sn40l-16
    """
    from ..compiler.rack.file import is_plan, open_plan

    if bundle.is_file():
        if digest is not None:
            raise ConfigurationError("--digest is for a bundle; a bundle file is planned anew")
        _check_plan(*_planned(bundle, target), as_json=json)
    elif target is not None:
        raise ConfigurationError("--target is for a bundle file; a bundle has the target that it was made for")
    elif is_plan(bundle):
        _check_plan(*open_plan(bundle, digest=digest), as_json=json)
    else:
        _check_bundle(bundle, digest, as_json=json)


def _planned(file: Path, target: str | None) -> tuple[RackPlan, None]:
    from ..compiler.rack.bundle_file import read_bundle_file
    from ..compiler.rack.planner import is_planned_only, plan_rack, target_of
    from ..compiler.verify.residency import verify_rack_plan

    spec = read_bundle_file(file, target=target)
    if not is_planned_only(target_of(spec, file.parent)):
        raise ConfigurationError(f"{file} is for target {spec.target!r}, which runs: make the bundle, and check that")
    with uncollected(), spinner(f"planning {spec.bundle}") as show:
        plan = plan_rack(spec, base=file.parent, progress=show)
    verify_rack_plan(plan)
    return plan, None


def _check_plan(plan: RackPlan, digest: str | None, *, as_json: bool) -> None:
    from .legality import rack_legality
    from .rack import print_plan, verdict_data

    verdict = rack_legality(plan)
    if as_json:
        print_json({"digest": digest, **verdict_data(plan, verdict)})
    else:
        print_plan(plan)
        for kind, messages in (("error", verdict.errors), ("warning", verdict.warnings), ("lever", verdict.levers)):
            for message in messages:
                print(f"{kind}: {message}")
        if not verdict.errors:
            print("every model can be hot within the budget")
    if verdict.errors:
        note(f"Bundle exceeds memory constraints: {verdict.errors[0]}")
        raise typer.Exit(2)


def _check_bundle(bundle: Path, digest: str | None, *, as_json: bool) -> None:
    from ..compiler.bundle.reader import open_bundle
    from .legality import legality

    opened = open_bundle(bundle, digest=digest)
    _verify(opened)
    verdict = legality(opened)
    if as_json:
        print_json(
            {
                "digest": opened.manifest_digest,
                "errors": verdict.errors,
                "warnings": verdict.warnings,
                "levers": verdict.levers,
                "utilization": {
                    tier: {**asdict(use), "utilization": use.utilization} for tier, use in verdict.utilization.items()
                },
                "switch_seconds": verdict.switch_seconds,
                "models": {model.name: _placement(model) for model in opened.manifest.models},
            }
        )
    else:
        _print(opened, verdict)
    if verdict.errors:
        note(f"{len(verdict.errors)} of the bundle's models can never be hot: {verdict.errors[0]}")
        raise typer.Exit(2)


def _verify(opened: Bundle) -> None:
    total = sum(file.size_bytes for file in opened.manifest.files.values())
    done = Counter[str]()
    with progress_bars() as bars:

        def report(relative: str, num_bytes: int) -> None:
            done[relative] += num_bytes
            bars.update("verify", done.total(), total, are_bytes=True)

        opened.verify(report)


def _placement(model: ModelEntry) -> dict[str, object]:
    """Returns over which devices a model goes and what each of them holds."""
    mesh = {} if model.placement is None else model.placement.mesh_shape
    stages = 1 if model.placement is None else len(model.placement.stages)
    return {"mesh": mesh, "stages": stages, "devices": [asdict(share) for share in model.shares]}


def _alike(model: ModelEntry) -> Iterator[tuple[int, int, DeviceShare]]:
    """Yields devices in a row that hold the same: the first, how many, and what each holds."""
    first = 0
    for share, group in itertools.groupby(model.shares):
        count = len(list(group))
        yield first, count, share
        first += count


def _mesh(model: ModelEntry) -> str:
    """Returns a model's devices as text, e.g. `2 stages of tensor=3`."""
    placement = model.placement
    if placement is None:
        return "one device"
    num_stages = len(placement.stages)
    return f"{num_stages} stages of {placement.mesh}" if num_stages > 1 else str(placement.mesh)


def _print(opened: Bundle, verdict: Legality) -> None:
    files = opened.manifest.files
    size = format_bytes(sum(file.size_bytes for file in files.values()))
    print_facts([("verified", f"{len(files)} files, {size}"), ("digest", opened.manifest_digest)])
    print()
    rows = [
        (
            tier,
            format_bytes(use.demand_bytes),
            format_bytes(use.pinned_bytes),
            format_bytes(use.budget_bytes),
            format_bytes(use.capacity_bytes),
            f"{use.utilization:.0%}",
        )
        for tier, use in verdict.utilization.items()
    ]
    print_table(["tier ", "all models", "pinned", "budget", "capacity", "utilization"], rows)
    print()
    rows = [
        (
            model.name if first == 0 else "",
            _mesh(model) if first == 0 else "",
            str(first) if count == 1 else f"{first}-{first + count - 1}",
            format_bytes(share.weights_bytes),
            format_bytes(share.kv_bytes),
            format_bytes(share.workspace_bytes),
        )
        for model in opened.manifest.models
        for first, count, share in _alike(model)
    ]
    print_table(["model ", "mesh ", "devices", "weights", "KV", "workspace"], rows, title="bytes of each device, hot")
    print()
    names = list(verdict.switch_seconds)
    rows = [
        (hot, *(format_seconds(seconds) for seconds in switches.values()))
        for hot, switches in verdict.switch_seconds.items()
    ]
    print_table(["hot ", *names], rows, title="seconds until the model above is hot in place of the one on the left")
    print()
    for kind, messages in (("error", verdict.errors), ("warning", verdict.warnings)):
        for message in messages:
            print(f"{kind}: {message}")
    if not verdict.errors:
        print("every model can be hot within the budget")
