"""`plait verify`: a plan, run on virtual devices and held against the unsharded step."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigurationError
from .garbage import uncollected
from .options import Json, PlanPath
from .output import format_seconds, note, print_facts, print_json, spinner

if TYPE_CHECKING:
    from ..compiler.pipeline import Compilation
    from ..compiler.verify.partition import CollectiveCounts
    from ..compiler.verify.twin import PlanVerification

__all__ = ["verify"]

_SIZES = ("num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_size", "intermediate_size", "vocab_size")


def verify(
    plan: PlanPath,
    twin: Annotated[bool, typer.Option("--twin", help="Run a narrow twin though the step fits this machine.")] = False,
    devices: Annotated[
        int, typer.Option(min=1, max=4096, metavar="N", help="Most virtual devices to make; a plan has its own number.")
    ] = 64,
    json: Json = False,
) -> None:
    """Run a plan on virtual devices and compare it with the unsharded step.

    Results must agree to 1e-5 in f32, whatever type the plan computes in (training in bf16: to 1e-2 in bf16), and the
    compiled program must send what was predicted, in kind, number and elements. A step of more than 4 GiB or 2e11 FLOPs
    is not run itself, but a narrow twin of it: some layers of each kind in small sizes, divided as the plan says. Exit
    code 1: something differs.

    \b
    plait compile llama-3.1-405b --target sn40l-16 -o plan
    plait verify plan
    plait verify plan --json
    """
    with uncollected(), spinner("reading the plan") as progress:
        from ..compiler.executable import provide_devices
        from ..compiler.plan_file import open_plan
        from ..compiler.verify.twin import verify_plan

        file = open_plan(plan)
        if file.partition is None:
            raise ConfigurationError(f"{plan} divides nothing; compile it up to its stage 'partition'")
        if file.partition.num_devices > devices:
            raise ConfigurationError(
                f"{plan} is for {file.partition.num_devices} devices, which are more than {devices}: raise --devices"
            )
        provide_devices(file.partition.num_devices)  # before JAX starts
        compilation = file.compilation()
        found = verify_plan(compilation, is_twin=twin, progress=progress)
    if json:
        print_json(_data(compilation, found))
    else:
        print_facts(_facts(compilation, found))
    if not found.is_verified:
        note(f"{plan} is not verified: {_differs(found)}")
        raise typer.Exit(1)


def _data(compilation: Compilation, found: PlanVerification) -> dict[str, object]:
    from ..models.config import config_to_json

    return {
        "verified": found.is_verified,
        "graph": compilation.traced.graph.name,
        "twin": {"reason": found.reason, "config": config_to_json(found.model), "layers": list(found.layers)}
        if found.is_twin
        else None,
        "configuration": found.configuration.id,
        "dtype": found.dtype,
        "num_devices": found.num_devices,
        "num_stages": found.num_stages,
        "difference": found.seen.difference,
        "tolerance": found.tolerance,
        "worst_result": found.wrong_result,
        "collectives": {"predicted": _counts(found.seen.predicted), "compiled": _counts(found.seen.compiled)},
        "wrong_collectives": list(found.wrong_collectives),
        "seconds": found.seconds,
    }


def _counts(counts: CollectiveCounts) -> list[dict[str, object]]:
    return [{"kind": kind, "elements": elements, "count": count} for (kind, elements), count in sorted(counts.items())]


def _facts(compilation: Compilation, found: PlanVerification) -> list[tuple[str, object]]:
    plan = compilation.partition
    assert plan is not None
    stages = f"{found.num_stages} stages of " if found.num_stages > 1 else ""
    facts: list[tuple[str, object]] = [
        ("plan", f"{compilation.traced.graph.name}, {stages}{plan.mesh} of {compilation.target.name}"),
        (
            "run",
            f"{_run(found)} in {found.dtype} on {found.num_devices} virtual devices, {format_seconds(found.seconds)}",
        ),
    ]
    if found.is_twin:
        facts += _twin_facts(compilation, found)
    facts += [
        ("difference", f"{found.seen.difference:.1e} of the largest value at most, {found.tolerance:g} allowed"),
        ("collectives", f"{_kinds(found.seen.predicted)} predicted"),
        ("", f"{_kinds(found.seen.compiled)} in the program; elements {'agree' if found.seen.agrees else 'differ'}"),
        ("verified", "yes" if found.is_verified else "no"),
    ]
    return facts


def _run(found: PlanVerification) -> str:
    return f"a narrow twin, as {found.reason}," if found.is_twin else "the step itself"


def _twin_facts(compilation: Compilation, found: PlanVerification) -> list[tuple[str, object]]:
    """Says how the twin's sizes follow from the model's."""
    pairs = [(name, getattr(compilation.model, name, None), getattr(found.model, name, None)) for name in _SIZES]
    sizes = [f"{name.removeprefix('num_')} {old} -> {new}" for name, old, new in pairs if old is not None]
    return [
        ("twin", f"layers {', '.join(map(str, found.layers))} stand for all {compilation.model.num_layers}"),
        ("sizes", ", ".join(sizes)),
        ("shapes", f"{compilation.configuration.id} -> {found.configuration.id}"),
    ]


def _kinds(counts: CollectiveCounts) -> str:
    kinds: Counter[str] = Counter()
    for (kind, _), count in counts.items():
        kinds[kind] += count
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"


def _differs(found: PlanVerification) -> str:
    if found.wrong_collectives:
        return found.wrong_collectives[0]
    if not found.seen.smallest:
        return "a result is all zeros and shows nothing"
    return f"{found.wrong_result} differs by {found.seen.difference:.1e}"
