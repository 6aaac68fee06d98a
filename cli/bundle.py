"""`plait bundle`: a bundle file becomes a bundle, or for a rack the plan of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .garbage import uncollected
from .options import Json
from .output import format_bytes, format_seconds, note, print_facts, print_json, print_table, progress_bars, spinner

if TYPE_CHECKING:
    from ..compiler.bundle.manifest import ModelEntry
    from ..compiler.bundle.reader import Bundle
    from ..compiler.bundle.spec import BundleSpec

__all__ = ["bundle"]


def bundle(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="The bundle file.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="The bundle to be; beside the file, by its name, if unsaid."
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Target, instead of the one that the file names.")
    ] = None,
    json: Json = False,
) -> None:
    """Compile the models of a bundle file into a bundle.

    A bundle of the same name is replaced once the new one is complete. Its digest is for `--digest` of `check` and
    `serve`.

    For a rack, whose programs cannot run here, the bundle is plan-only: which models are hot together, what a switch
    costs, what requests take. Files of SambaStack (ModelBundle, or BundleTemplate with Bundle) are read too.

    \b
    plait bundle agent.yaml                     makes agent.plait if it says `bundle: agent`
    plait bundle agent.yaml -o /srv/agent.plait --json
    plait bundle rack.yaml                      a plan, if its target is a rack
    plait bundle modelbundle.yaml --target sn40l-16
    """
    from ..compiler.rack.bundle_file import read_bundle_file
    from ..compiler.rack.planner import is_planned_only, target_of

    spec = read_bundle_file(file, target=target)
    destination = file.parent / f"{spec.bundle}.plait" if output is None else output
    if is_planned_only(target_of(spec, file.parent)):
        _plan(spec, destination, file.parent, as_json=json)
    else:
        _build(spec, destination, file.parent, as_json=json)


def _plan(spec: BundleSpec, destination: Path, base: Path, *, as_json: bool) -> None:
    from ..compiler.rack.file import write_plan
    from ..compiler.rack.planner import plan_rack
    from ..compiler.verify.residency import verify_rack_plan
    from .rack import plan_data, print_plan

    with uncollected(), spinner(f"planning {spec.bundle}") as show:
        plan = plan_rack(spec, base=base, progress=show)
    if plan.shortages:
        raise plan.shortages[0].error()
    verify_rack_plan(plan)
    digest = write_plan(plan, destination)
    if as_json:
        print_json({"path": str(destination), "digest": digest, **plan_data(plan)})
    else:
        print_plan(plan)
        print_facts([("digest", digest), ("plan-only", destination)])


def _build(spec: BundleSpec, destination: Path, base: Path, *, as_json: bool) -> None:
    from ..compiler.bundle.build import build_bundle
    from .legality import legality

    with progress_bars() as bars:
        built = build_bundle(
            spec,
            destination,
            base=base,
            progress=lambda model, stage, done, total: bars.update(
                f"{model}: {stage}", done, total, are_bytes=stage == "pull"
            ),
        )
    errors = legality(built).errors
    if as_json:
        print_json(_data(built, errors))
    else:
        _print(built)
    for warning in (*errors, *_made_dense(spec, built)):
        note(f"warning: {warning}")


def _made_dense(spec: BundleSpec, built: Bundle) -> Iterator[str]:
    """Yields a line for each model whose weights were to stay as they are stored, and could not."""
    for model in built.manifest.models:
        if spec.models[model.name].weights == "stored" and getattr(model.config, "stored_form", None) is None:
            yield f"model {model.name!r}: its weights are dense; {model.source} stores them in no form that is kept"


def _data(built: Bundle, errors: tuple[str, ...]) -> dict[str, object]:
    manifest = built.manifest
    return {
        "path": str(built.path),
        "digest": built.manifest_digest,
        "bytes": sum(file.size_bytes for file in manifest.files.values()),
        "budget": {"hbm": manifest.budget.hbm, "ddr": manifest.budget.ddr},
        "all_hot_hbm_bytes": _all_hot_bytes(built),
        "models": [
            {
                "name": model.name,
                "weights_bytes": model.weights_bytes,
                "kv_bytes": model.kv_bytes,
                "workspace_bytes": model.workspace_bytes,
                "num_devices": model.num_devices,
                "step_seconds": {program.configuration.id: program.step_seconds for program in model.programs},
            }
            for model in manifest.models
        ],
        "errors": list(errors),
    }


def _print(built: Bundle) -> None:
    manifest = built.manifest
    rows = [
        (
            model.name,
            model.source,
            model.num_devices,
            format_bytes(model.weights_bytes),
            format_bytes(model.kv_bytes),
            format_bytes(model.workspace_bytes),
            len(model.programs),
            _steps(model),
        )
        for model in manifest.models
    ]
    print_table(["model ", "source ", "devices", "weights", "KV", "workspace", "programs", "step "], rows)
    print()
    weights = sum(model.weights_bytes for model in manifest.models)
    hbm, ddr = (format_bytes(limit) for limit in (manifest.budget.hbm, manifest.budget.ddr))
    facts = [("hbm", f"{format_bytes(_all_hot_bytes(built))} with all models hot, budget {hbm}")]
    if "ddr" in manifest.target.tiers:
        facts.append(("ddr", f"{format_bytes(weights)} with all models warm, budget {ddr}"))
    facts.append(("disk", format_bytes(sum(file.size_bytes for file in manifest.files.values()))))
    print_facts([*facts, ("digest", built.manifest_digest), ("bundle", built.path)])


def _all_hot_bytes(built: Bundle) -> int:
    from ..runtime.residency import hbm_bytes

    return hbm_bytes(built.manifest.models)


def _steps(model: ModelEntry) -> str:
    """Returns the time of the shortest and of the longest step, with their configurations."""
    by_time = sorted(model.programs, key=lambda program: program.step_seconds)
    ends = dict.fromkeys((by_time[0], by_time[-1]))
    return ", ".join(f"{format_seconds(program.step_seconds)} {program.configuration.id}" for program in ends)
