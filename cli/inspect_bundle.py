"""What `plait inspect` says of bundles: of one for a rack its plan, of one that runs what its manifest says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .explain_bundle import accuracy_sentence, form_name
from .output import format_bytes, format_seconds, print_facts, print_json, print_table

if TYPE_CHECKING:
    from ..compiler.bundle.manifest import ModelEntry
    from ..compiler.bundle.reader import Bundle
    from ..compiler.rack.plan import RackPlan

__all__ = ["inspect_bundle"]


def inspect_bundle(path: Path, *, as_json: bool) -> None:
    """Prints what a bundle holds; its files are not verified, `plait check` does that.

    Args:
        path: Directory that `plait bundle` made.
        as_json: Print JSON alone.

    Raises:
        BundleError: if it is no bundle.
    """
    from ..compiler.rack.file import is_plan, open_plan

    if is_plan(path):
        _inspect_rack(open_plan(path)[0], as_json=as_json)
        return
    from ..compiler.bundle.reader import open_bundle

    opened = open_bundle(path)
    if as_json:
        print_json(_bundle_data(opened))
    else:
        _print_bundle(opened)


def _inspect_rack(plan: RackPlan, *, as_json: bool) -> None:
    from .legality import rack_legality
    from .rack import print_plan, verdict_data

    verdict = rack_legality(plan)
    if as_json:
        print_json(verdict_data(plan, verdict))
        return
    print_plan(plan)
    told = [*verdict.errors, *verdict.warnings, *verdict.levers]
    if told:
        print("\ninsights")
        for line in told:
            print(f"- {line}")


def _bundle_data(opened: Bundle) -> dict[str, object]:
    from .legality import legality

    manifest, verdict = opened.manifest, legality(opened)
    return {
        "name": manifest.name,
        "target": manifest.target.name,
        "digest": opened.manifest_digest,
        "budget": asdict(manifest.budget),
        "versions": manifest.versions,
        "bytes": sum(file.size_bytes for file in manifest.files.values()),
        "models": [_model_data(model) for model in manifest.models],
        "utilization": {
            tier: {**asdict(use), "utilization": use.utilization} for tier, use in verdict.utilization.items()
        },
        "switch_seconds": verdict.switch_seconds,
        "errors": verdict.errors,
        "warnings": verdict.warnings,
        "workflows": manifest.workflows,
        "routes": {name: asdict(route) for name, route in manifest.routes.items()},
    }


def _model_data(model: ModelEntry) -> dict[str, object]:
    return {
        "name": model.name,
        "aliases": model.aliases,
        "source": model.source,
        "capabilities": model.capabilities,
        "dtype": model.dtype,
        "sequence": model.sequence,
        "batch": model.batch,
        "pin": model.pin,
        "weights_bytes": model.weights_bytes,
        "mesh": {} if model.placement is None else model.placement.mesh_shape,
        "devices": [asdict(share) for share in model.shares],
        "programs": [
            {
                "configuration": program.configuration.id,
                "flops": program.flops,
                "temporary_bytes": [stage.temporary_bytes for stage in program.stages],
                "step_seconds": program.step_seconds,
            }
            for program in model.programs
        ],
        "products": [asdict(product) for product in model.products],
        "accuracy": None if model.accuracy is None else asdict(model.accuracy),
    }


def _print_bundle(opened: Bundle) -> None:
    from .legality import legality

    manifest, verdict = opened.manifest, legality(opened)
    size = sum(file.size_bytes for file in manifest.files.values())
    print_facts(
        [
            ("bundle", f"{manifest.name}, {len(manifest.models)} models for {manifest.target.name}"),
            ("files", f"{len(manifest.files)}, {format_bytes(size)} (`plait check` verifies them)"),
            ("made by", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
            ("digest", opened.manifest_digest),
            *((f"model {m.name}", accuracy_sentence(m)) for m in manifest.models if m.accuracy is not None),
            *((f"workflow {name}", " -> ".join(steps)) for name, steps in manifest.workflows.items()),
            *((f"route {name}", f"{r.policy} of {', '.join(r.models)}") for name, r in manifest.routes.items()),
        ]
    )
    print()
    print_table(
        ["model ", "source ", "answers ", "dtype ", "sequence", "batch", "weights", "KV", "workspace", "pin "],
        [_model_row(model) for model in manifest.models],
        title="models; bytes of the fullest device",
    )
    print()
    programs = [(model.name, program) for model in manifest.models for program in model.programs]
    print_table(
        ["model ", "program ", "FLOPs", "temporaries", "a step, measured"],
        [
            (
                name,
                program.configuration.id,
                f"{program.flops:,}",
                format_bytes(max(stage.temporary_bytes for stage in program.stages)),
                format_seconds(program.step_seconds),
            )
            for name, program in programs
        ],
        title="programs",
    )
    print()
    _print_products(manifest.models)
    print_table(
        ["tier ", "all models", "budget", "capacity", "utilization"],
        [
            (
                tier,
                format_bytes(use.demand_bytes),
                format_bytes(use.budget_bytes),
                format_bytes(use.capacity_bytes),
                f"{use.utilization:.0%}",
            )
            for tier, use in verdict.utilization.items()
        ],
        title="tiers",
    )
    print()
    names = list(verdict.switch_seconds)
    print_table(
        ["hot ", *names],
        [(hot, *map(format_seconds, row.values())) for hot, row in verdict.switch_seconds.items()],
        title="seconds until the model above is hot in place of the one on the left",
    )
    for line in (*verdict.errors, *verdict.warnings):
        print(f"- {line}")


def _print_products(models: Sequence[ModelEntry]) -> None:
    products = [(model.name, product) for model in models for product in model.products]
    if not products:
        return
    print_table(
        ["model ", "weight ", "form ", "measured", "in one piece"],
        [
            (
                name,
                f"[{product.out_size}, {product.in_size}]",
                form_name(product.slices),
                format_seconds(product.seconds[product.slices]),
                format_seconds(product.seconds[1]),
            )
            for name, product in products
        ],
        title="products of at most 8 rows, in the form that was fastest",
    )
    print()


def _model_row(model: ModelEntry) -> tuple[str, ...]:
    def most(kind: str) -> str:
        return format_bytes(max(int(getattr(share, f"{kind}_bytes")) for share in model.shares))

    return (
        model.name,
        model.source,
        ", ".join(model.capabilities),
        model.dtype,
        str(model.sequence),
        str(model.batch),
        most("weights"),
        most("kv"),
        most("workspace"),
        model.pin or "",
    )
