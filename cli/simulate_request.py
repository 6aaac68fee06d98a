"""`plait simulate request`: what one batch of like requests takes on a target that does nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .garbage import uncollected
from .options import Json, WeightsForm
from .output import format_bytes, format_seconds, print_facts, print_json, print_table, spinner

if TYPE_CHECKING:
    from ..compiler.schedule import Schedule
    from ..compiler.simulate import RequestTime

__all__ = ["request"]

_HEADS = (
    "phase ",
    "mesh ",
    "step",
    "launches",
    "HBM traffic",
    "network",
    "compute at peak",
    "HBM at its limit",
    "bound ",
    "energy",
)
_DTYPES = {"f32": "float32", "bf16": "bfloat16"}


def request(
    model: Annotated[
        str,
        typer.Option("--model", "-m", metavar="SOURCE", help="A name of `plait models`, or any source of `compile`."),
    ],
    target: Annotated[str, typer.Option(metavar="NAME", help="A target of `plait targets`, or a TOML file.")],
    input_tokens: Annotated[int, typer.Option("--input-tokens", metavar="N", help="Tokens of each prompt.")] = 1024,
    output_tokens: Annotated[int, typer.Option("--output-tokens", metavar="N", help="Tokens of each answer.")] = 256,
    batch: Annotated[int, typer.Option(metavar="N", help="Like requests at once.")] = 1,
    devices: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Devices to use; all of the target's by default.")
    ] = None,
    dtype: Annotated[
        Literal["f32", "bf16"] | None, typer.Option(help="Of products and caches; as published by default.")
    ] = None,
    weights: WeightsForm = "stored",
    mode: Annotated[
        Literal["o0", "o3"], typer.Option(help="o3 fuses operations into sections, o0 makes each one a kernel.")
    ] = "o3",
    launches: Annotated[
        Literal["hardware", "software"], typer.Option(help="Who launches kernels: the chip by a schedule, or the host.")
    ] = "hardware",
    json: Json = False,
) -> None:
    """Say what a batch of like requests takes on a target that does nothing else.

    The prompt is prefilled in one step, which gives the first token; each further token is a decode step of the whole
    batch. Both phases are partitioned over the target's devices, with weights in the same places, and fused into the
    kernels of its chips; nothing is measured.

    \b
    plait simulate request --model llama-3.1-8b --target sn40l-16 --input-tokens 8192 --output-tokens 1024
    plait simulate request -m deepseek-r1 --target sn50-64 --input-tokens 8192 --output-tokens 1024 --batch 8 --json
    plait simulate request -m llama-2-7b --target sn40l-8 --mode o0 --launches software
    """
    with uncollected(), spinner("reading the model") as progress:
        from ..compiler.simulate import simulate_request
        from ..compiler.subject import read_subject, with_weights
        from ..compiler.target import load_target

        machine = load_target(target)
        subject = read_subject(model, base=Path())
        found = simulate_request(
            with_weights(subject.config, weights),
            machine,
            name=model,
            dtype=_DTYPES[dtype] if dtype else subject.dtype,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            batch=batch,
            num_devices=devices,
            mode=mode,
            orchestration=launches,
            progress=progress,
        )
    if json:
        print_json(found.to_dict())
    else:
        _print(found)


def _print(found: RequestTime) -> None:
    print_facts(_facts(found))
    print()
    rows = [
        _row("prefill", found.prefill.first),
        _row("decode, first", found.decode.first),
        _row("decode, last", found.decode.last),
    ]
    print_table(_HEADS, rows)


def _facts(found: RequestTime) -> list[tuple[str, str]]:
    joules, per_joule = found.joules, found.tokens_per_joule
    facts = [
        (
            "requests",
            f"{found.batch} of {found.input_tokens} + {found.output_tokens} tokens, {found.model} on {found.target}",
        ),
        ("first token", format_seconds(found.ttft_seconds)),
        ("last token", format_seconds(found.latency_seconds)),
        ("a user", f"{found.output_tokens_per_s_per_user:,.1f} tokens/s after the first"),
        ("all users", f"{found.output_tokens_per_s:,.1f} tokens/s over the whole time"),
    ]
    if joules is not None and per_joule is not None:
        facts.append(("energy, modelled", f"{joules:,.1f} J, {per_joule:.3g} tokens/J"))
    return facts


def _row(name: str, step: Schedule) -> tuple[str, ...]:
    stages = f"{step.num_stages} x " if step.num_stages > 1 else ""
    return (
        name,
        f"{stages}{step.mesh}",
        format_seconds(step.seconds),
        f"{step.num_launches}",
        format_bytes(step.hbm_bytes),
        format_seconds(step.network_seconds + step.handover_seconds),
        f"{step.busy_compute:.1%}",
        f"{step.busy_memory:.1%}",
        step.bound,
        "" if step.joules is None else f"{step.joules:.3g} J",
    )
