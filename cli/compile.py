"""`plait compile`: one model in one configuration, planned: what it computes, what it needs, how long a step takes."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from ..errors import ConfigurationError
from .garbage import uncollected
from .options import Json, WeightsForm
from .output import (
    format_bytes,
    format_count,
    format_flops,
    format_seconds,
    print_facts,
    print_json,
    print_tables,
    spinner,
)

if TYPE_CHECKING:
    from ..compiler.configuration import Phase
    from ..compiler.fuse import Mode
    from ..compiler.fuse.sections import Orchestration
    from ..compiler.mapping import Fusion
    from ..compiler.memory import MemoryPlan
    from ..compiler.partition.result import Partition
    from ..compiler.pipeline import Compilation, Stage
    from ..compiler.target import Target
    from ..compiler.text import Table
    from ..compiler.train import Optimizer, Training

__all__ = ["compile_"]

_DTYPES = {"f32": "float32", "bf16": "bfloat16"}
_DEFAULT_SEQUENCE = 2048  # tokens, if the model has so many positions


_Source: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="A name of `plait models`, hf:ORG/NAME, a config.json or its directory, a .gguf file."
    ),
]
_Phase: TypeAlias = Annotated[
    Literal["prefill", "decode", "train", "embed"] | None,
    typer.Option(help="By default decode for a decoder, embed for an encoder."),
]
_Batch: TypeAlias = Annotated[int, typer.Option(metavar="N", help="Sequences at once.")]
_Sequence: TypeAlias = Annotated[
    int | None, typer.Option(metavar="N", help="Context in tokens; 2048 or the most there is by default.")
]
_NewTokens: TypeAlias = Annotated[
    int | None, typer.Option(metavar="N", help="Tokens of a prefill step; the whole sequence by default.")
]
_Dtype: TypeAlias = Annotated[
    Literal["f32", "bf16"] | None,
    typer.Option(
        help="Of products, KV cache and dense weights; bf16 by default if the model was published in 16 bits."
    ),
]
_Optimizer: TypeAlias = Annotated[
    Literal["adamw", "sgd", "adafactor", "lion"] | None, typer.Option(help="Of phase train; adamw by default.")
]
_Remat: TypeAlias = Annotated[
    bool, typer.Option("--remat", help="In phase train, compute each layer again for its gradient.")
]
_Target: TypeAlias = Annotated[str, typer.Option(metavar="NAME|FILE", help="A target, or the path of a TOML file.")]
_Output: TypeAlias = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="DIR", help="Save plan, graph and program here.")
]
_StopAfter: TypeAlias = Annotated[
    Literal["trace", "plan_memory", "partition", "fuse", "place", "plan_tiers", "schedule", "lower"] | None,
    typer.Option(
        help="Last stage to run; by default schedule for a target of plans only, else partition, and lower with -o if "
        "one device is planned for."
    ),
]
_Devices: TypeAlias = Annotated[
    int | None, typer.Option(min=1, max=1 << 16, metavar="N", help="Devices to use; all of the target's by default.")
]
_Mesh: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="AxB", help="Mesh of a stage, as 2x4 or data=2,tensor=4; by default several are tried."),
]
_Stages: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Pipeline stages; by default as many as are best.")
]
_Objective: TypeAlias = Annotated[
    Literal["latency", "throughput", "memory"],
    typer.Option(help="What is least: a step's time, the time between steps, or what the fullest device holds."),
]
_Budget: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="BYTES", help="What each device may hold, e.g. 24GiB; the memory of the target by default."),
]
_Pin: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN=AXES",
        help="Give a layout: a glob over weights and operations, and for each dim an axis or -; may be repeated.",
    ),
]
_TimeLimit: TypeAlias = Annotated[float, typer.Option(min=0.1, metavar="S", help="Seconds that the search may take.")]
_Export: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--export-problem",
        metavar="FILE",
        help="Write the sharding problem of the chosen mesh, .json or .json.gz, for `plait solve sharding`.",
    ),
]
_Mode: TypeAlias = Annotated[
    Literal["o0", "o1", "o3"],
    typer.Option(
        help="How operations become kernels: o0 one each, o1 by --rules, o3 by a search over the whole graph."
    ),
]
_Rules: TypeAlias = Annotated[
    Path | None, typer.Option(metavar="FILE.yaml", help="Fusion rules of mode o1, in SambaFlow's form.")
]
_Launches: TypeAlias = Annotated[
    Literal["hardware", "software"], typer.Option(help="Who launches kernels: the chip by a schedule, or the host.")
]
_Graph: TypeAlias = Annotated[bool, typer.Option("--graph", help="Print every operation too.")]


def compile_(
    source: _Source,
    phase: _Phase = None,
    batch: _Batch = 1,
    sequence: _Sequence = None,
    new_tokens: _NewTokens = None,
    dtype: _Dtype = None,
    weights: WeightsForm = "stored",
    optimizer: _Optimizer = None,
    remat: _Remat = False,
    target: _Target = "cpu",
    devices: _Devices = None,
    mesh: _Mesh = None,
    stages: _Stages = None,
    objective: _Objective = "latency",
    budget: _Budget = None,
    pin: _Pin = None,
    time_limit: _TimeLimit = 60.0,
    mode: _Mode = "o3",
    rules: _Rules = None,
    launches: _Launches = "hardware",
    output: _Output = None,
    stop_after: _StopAfter = None,
    export_problem: _Export = None,
    graph: _Graph = False,
    json: Json = False,
) -> None:
    """Plan one model in one configuration.

    It is traced and planned from its shapes alone: no weights are read, and models of the zoo have none.

    \b
    plait compile smollm2-135m --phase prefill --new-tokens 64 --graph
    plait compile deepseek-r1 --phase decode --batch 8 --sequence 8192
    plait compile llama-3.1-70b --weights q4_0 --json
    plait compile llama-3.1-405b --phase train --sequence 4096 --remat
    plait compile llama-3.1-405b --target sn40l-16 -o plan && plait inspect plan --html plan.html
    plait compile llama-2-7b --target sn40l-8 --phase prefill --mode o1 --rules rules.yaml
    plait compile llama-3.1-405b --target sn40l-16 --export-problem llama.json.gz
    plait compile smollm2-135m --mesh data=2,tensor=3 --pin 'layers.*.mlp.up.weight=tensor,-'
    plait compile ./my-model/config.json -o plan
    """
    from ..compiler.bundle.spec import parse_bytes
    from ..compiler.partition.pins import parse_mesh
    from ..compiler.partition.problem import write_problem
    from ..compiler.pipeline import Parallelism, compile_model, configuration_for, sharding_problem
    from ..compiler.subject import read_subject, with_weights
    from ..compiler.target import load_target
    from ..models.config import DecoderConfig

    machine = load_target(target)
    layout = parse_mesh(mesh) if mesh else None
    makes_program = output is not None and layout is None and (devices or machine.num_devices) == 1
    last: Stage = stop_after or _last_stage(machine, makes_program=makes_program)
    fusion = _fusion(mode, rules, launches)
    with uncollected(), spinner("reading the model") as show:
        subject = read_subject(
            source,
            base=Path(),
            progress=lambda done, total: show(f"pull {source}: {format_bytes(done)} of {format_bytes(total)}"),
        )
        model = with_weights(subject.config, weights)
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
            dtype=_DTYPES[dtype] if dtype else subject.dtype,
            target=machine,
            training=_training(configuration.phase, optimizer, remat=remat),
            parallelism=Parallelism(
                num_devices=devices,
                mesh=layout,
                num_stages=stages,
                objective=objective,
                budget_bytes=parse_bytes(budget) if budget else None,
                pins=tuple(_pin(text) for text in pin or ()),
                time_limit_seconds=time_limit,
            ),
            fusion=fusion,
            stop_after=last,
            progress=lambda stage: show(stage),
            searching=lambda tried: show(f"partition: {tried}"),
        )
        if export_problem is not None:
            write_problem(sharding_problem(compilation), export_problem)
    files = [] if output is None else compilation.save(output)
    if json:
        _print_json(compilation, files, graph=graph)
        return
    if graph:
        print(compilation.traced.graph.as_text())
    print_facts(_facts(compilation))
    print_tables(_report(compilation))
    if export_problem is not None:
        print(f"\nsharding problem written to {export_problem}")
    if files:
        print(f"\nsaved to {output}: {', '.join(file.name for file in files)}")


def _last_stage(machine: Target, *, makes_program: bool) -> Stage:
    from ..compiler.implementations import implementations_for

    if not implementations_for(machine):
        return "schedule"
    return "lower" if makes_program else "partition"


def _fusion(mode: Mode, rules: Path | None, launches: Orchestration) -> Fusion:
    from ..compiler.fuse.rules import read_rules
    from ..compiler.mapping import Fusion

    if (mode == "o1") != (rules is not None):
        raise ConfigurationError(
            "mode o1 fuses by rules and the others don't; give --rules with --mode o1, and only there"
        )
    return Fusion(mode, launches, read_rules(rules) if rules else ())


def _print_json(compilation: Compilation, files: list[Path], *, graph: bool) -> None:
    data = json_text.loads(compilation.to_json())
    if graph:
        data["operations"] = json_text.loads(compilation.traced.graph.to_json())["operations"]
    print_json({**data, "files": [str(file) for file in files]})


def _pin(text: str) -> tuple[str, str]:
    pattern, found, axes = text.rpartition("=")
    if not found or not pattern or not axes:
        raise ConfigurationError(f"pin {text!r} is none: write PATTERN=AXES, e.g. 'layers.*.mlp.up.weight=tensor,-'")
    return pattern, axes


def _training(phase: Phase, optimizer: Optimizer | None, *, remat: bool) -> Training | None:
    from ..compiler.train import Training

    if phase == "train":
        return Training(optimizer=optimizer or "adamw", rematerializes=remat)
    if optimizer is not None or remat:
        raise ConfigurationError(f"--optimizer and --remat are for phase train, not {phase}")
    return None


def _facts(compilation: Compilation) -> list[tuple[str, str]]:
    sizes = compilation.sizes
    dtype = {long: short for short, long in _DTYPES.items()}[compilation.dtype]
    graph, memory, cost, plan = compilation.traced.graph, compilation.memory, compilation.cost, compilation.partition
    estimate = " (an estimate: a sort, loop or branch depends on data)" if graph.is_estimate else ""
    share = compilation.attention_flops_per_token / max(compilation.flops_per_token, 1)
    facts = [
        ("configuration", f"{compilation.configuration.id} {dtype} on {compilation.target.name}"),
        ("parameters", f"{format_count(sizes.parameters)}, {format_count(sizes.active_parameters)} active"),
        ("operations", f"{len(graph.operations)}"),
        ("FLOPs", f"{format_flops(graph.flops)} a step{estimate}"),
        ("FLOPs a token", f"{format_flops(compilation.flops_per_token)} in products, {share:.1%} of it attention"),
        ("weights", f"{format_bytes(graph.parameter_bytes)}, a step reads {format_bytes(graph.parameter_bytes_read)}"),
    ]
    if memory is not None:
        facts += [
            *_held(compilation, memory),
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
        if plan.num_devices > 1:
            facts += _divided(plan)
    mapped = compilation.mapped
    if mapped is not None and mapped.schedule is not None:
        timed = mapped.schedule
        energy = "" if timed.joules is None else f", {timed.joules:.3g} J"
        busy = f"compute {timed.busy_compute:.0%} of its peak, HBM {timed.busy_memory:.0%} of what it sustains"
        facts.append(("schedule", f"{format_seconds(timed.seconds)}, {timed.bound} bound ({busy}){energy}"))
        if mapped.tiers is not None:
            facts += [("tiers", line.strip()) for line in mapped.tiers.as_text().splitlines()[1:]]
        facts.append(("kernels", f"{timed.num_launches} launches of {len(mapped.sections.sections)} sections"))
    if compilation.program is not None:
        facts.append(("program", format_bytes(len(compilation.program.to_bytes()))))
    return facts


def _divided(plan: Partition) -> list[tuple[str, str]]:
    """Says over what a step is divided, and what the fullest device holds."""
    stages = f"{len(plan.stages)} stages of " if len(plan.stages) > 1 else ""
    budget = "" if plan.budget_bytes is None else f" of {format_bytes(plan.budget_bytes)}"
    return [
        ("mesh", f"{stages}{plan.mesh}"),
        ("fullest device", f"{format_bytes(plan.device_bytes)}{budget}"),
        ("search", f"{format_seconds(plan.seconds)}, {len(plan.tried)} tried"),
    ]


def _report(compilation: Compilation) -> list[Table]:
    """Returns the tables of a step that is divided over several devices, and of its kernels."""
    from ..compiler.fuse.report import report_sections
    from ..compiler.partition.difference import Planned
    from ..compiler.partition.report import report

    plan, name = compilation.partition, compilation.traced.graph.name
    tables: list[Table] = []
    if plan is not None and plan.num_devices > 1:
        tables += report(Planned(name, compilation.traced, plan, compilation.target, compilation.dtype))
    if compilation.mapped is not None:
        tables.append(report_sections(compilation.mapped.sections))
    return tables


def _held(compilation: Compilation, memory: MemoryPlan) -> list[tuple[str, str]]:
    """Says what a step keeps besides the weights: the KV cache, or in training the optimizer's state."""
    if compilation.training is not None:
        return [("optimizer", f"{compilation.training.optimizer}, {format_bytes(memory.state_bytes)} of state")]
    per_token = format_bytes(compilation.sizes.kv_bytes_per_token)
    return [("KV cache", f"{format_bytes(memory.cache_bytes)}, {per_token} a token")]
