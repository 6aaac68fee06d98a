"""`plait compile`: one model in one configuration, planned: what it computes, what it needs, how long a step takes."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .options import Json
from .output import format_bytes, format_flops, format_seconds, print_facts, print_json, progress_bars

if TYPE_CHECKING:
    from ..compiler.pipeline import Compilation

__all__ = ["compile_"]

_DTYPES = {"f32": "float32", "bf16": "bfloat16"}
_DEFAULT_SEQUENCE = 2048  # tokens, if the model has so many positions


def compile_(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Named model, .gguf file or model directory.")],
    phase: Annotated[
        Literal["prefill", "decode", "embed"] | None,
        typer.Option(help="By default decode for a decoder, embed for an encoder."),
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", help="Sequences at once.")] = 1,
    sequence: Annotated[
        int | None, typer.Option(metavar="N", help="Context in tokens; 2048 or the most there is by default.")
    ] = None,
    new_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of a prefill step; the whole sequence by default.")
    ] = None,
    dtype: Annotated[Literal["f32", "bf16"], typer.Option(help="Of weights and KV cache.")] = "f32",
    target: Annotated[str, typer.Option(metavar="NAME|FILE", help="A target, or the path of a TOML file.")] = "cpu",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Save plan, graph and program here.")
    ] = None,
    stop_after: Annotated[
        Literal["trace", "plan_memory", "partition", "lower"], typer.Option(help="Last stage to run.")
    ] = "lower",
    graph: Annotated[bool, typer.Option("--graph", help="Print every operation too.")] = False,
    json: Json = False,
) -> None:
    """Plan one model in one configuration.

    It is traced, planned and lowered from its shapes alone: no weights are read.

    \b
    plait compile smollm2-135m --phase decode --batch 8 --dtype bf16
    plait compile smollm2-135m --phase prefill --new-tokens 64 --graph
    plait compile ./my-model --stop-after plan_memory --json
    """
    from ..compiler.pipeline import STAGES, compile_model, configuration_for, read_model_config
    from ..compiler.target import load_target
    from ..models.config import DecoderConfig

    machine = load_target(target)
    with progress_bars() as bars:
        model = read_model_config(
            source,
            base=Path(),
            progress=lambda done, total: bars.update(f"pull {source}", done, total, are_bytes=True),
        )
        configuration = configuration_for(
            model,
            phase=phase or ("decode" if isinstance(model, DecoderConfig) else "embed"),
            batch=batch,
            sequence=min(_DEFAULT_SEQUENCE, model.max_positions) if sequence is None else sequence,
            new_tokens=new_tokens,
        )
        compilation = compile_model(
            model,
            configuration,
            dtype=_DTYPES[dtype],
            target=machine,
            stop_after=stop_after,
            progress=lambda stage: bars.update("compile", STAGES.index(stage), STAGES.index(stop_after) + 1),
        )
    files = [] if output is None else compilation.save(output)
    if json:
        data = json_text.loads(compilation.to_json())
        if graph:
            data["operations"] = json_text.loads(compilation.traced.graph.to_json())["operations"]
        print_json({**data, "files": [str(file) for file in files]})
        return
    if graph:
        print(compilation.traced.graph.as_text())
    print_facts(_facts(compilation, dtype))
    if files:
        print(f"\nsaved to {output}: {', '.join(file.name for file in files)}")


def _facts(compilation: Compilation, dtype: str) -> list[tuple[str, str]]:
    graph, memory, cost, plan = compilation.traced.graph, compilation.memory, compilation.cost, compilation.partition
    estimate = " (an estimate: a loop or branch depends on data)" if graph.is_estimate else ""
    facts = [
        ("configuration", f"{compilation.configuration.id} {dtype} on {compilation.target.name}"),
        ("operations", f"{len(graph.operations)}"),
        ("FLOPs", f"{format_flops(graph.flops)} a step{estimate}"),
        ("weights", format_bytes(graph.parameter_bytes)),
    ]
    if memory is not None:
        facts += [
            ("KV cache", format_bytes(memory.cache_bytes)),
            ("inputs, results", format_bytes(memory.input_bytes + memory.constant_bytes + memory.output_bytes)),
            ("temporaries", f"{format_bytes(memory.temporary_bytes)}, most at {memory.peak_name or 'no operation'}"),
            ("all memory", format_bytes(memory.total_bytes)),
        ]
    if cost is not None:
        terms = (("compute", cost.compute_seconds), ("memory", cost.memory_seconds), ("launch", cost.launch_seconds))
        listed = ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in terms)
        facts.append(("step", f"{format_seconds(cost.seconds)}, bound by {cost.bound} ({listed})"))
    if plan is not None:
        bound = f"lower bound {format_seconds(plan.lower_bound)}, gap {plan.gap:.1%}"
        facts.append(("partition", f"{plan.status}: cost {format_seconds(plan.cost)}, {bound}"))
    if compilation.program is not None:
        facts.append(("program", format_bytes(len(compilation.program.to_bytes()))))
    return facts
