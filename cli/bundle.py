"""`plait bundle`: a bundle file becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json
from .output import format_bytes, format_seconds, note, print_facts, print_json, print_table, progress_bars

if TYPE_CHECKING:
    from ..compiler.bundle.manifest import ModelEntry
    from ..compiler.bundle.reader import Bundle

__all__ = ["bundle"]


def bundle(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="The bundle file.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="The bundle to be; beside the file, by its name, if unsaid."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Compile the models of a bundle file into a bundle.

    A bundle of the same name is replaced once the new one is complete. Its digest is for `--digest` of `check` and
    `serve`.

    \b
    plait bundle agent.yaml                     makes agent.plait if it says `bundle: agent`
    plait bundle agent.yaml -o /srv/agent.plait --json
    """
    from ..compiler.bundle.build import build_bundle
    from ..compiler.bundle.spec import read_spec
    from .legality import legality

    spec = read_spec(file)
    with progress_bars() as bars:
        built = build_bundle(
            spec,
            file.parent / f"{spec.bundle}.plait" if output is None else output,
            base=file.parent,
            progress=lambda model, stage, done, total: bars.update(
                f"{model}: {stage}", done, total, are_bytes=stage == "pull"
            ),
        )
    errors = legality(built).errors
    if json:
        print_json(_data(built, errors))
    else:
        _print(built)
    for error in errors:
        note(f"warning: {error}")


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
