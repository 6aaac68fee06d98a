"""The compiler from end to end: the stages in their order, each verified before the next begins.

    trace -> plan_memory -> partition -> fuse -> place -> plan_tiers -> schedule
                                      -> lower

A step is mapped onto the chips of a target for plans only; for one that runs here it is lowered to a program. Comes
in: a model's configuration (`subject.py` reads it) with phase and shapes. Goes out: a `Compilation`, which holds every
stage's noun; stages can be left out from the end with `stop_after`. No weights are read: planning needs shapes only.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from ..errors import ConfigurationError
from ..models.config import DecoderConfig, ModelConfig, config_to_json
from .configuration import Configuration, Phase
from .cost import StepCost, step_cost
from .files import write_files
from .implementations import implementations_for
from .lower import lower
from .mapping import MAPPING_STAGES, Fusion, Mapped, MappingStage, map_step
from .memory import MemoryPlan, plan_memory
from .mesh import Mesh
from .partition.formulate import formulate
from .partition.pins import resolve_pins
from .partition.problem import Problem
from .partition.result import Objective, Partition
from .partition.search import partition
from .partition.skeleton import skeleton
from .program import Program
from .subject import ModelSizes, model_sizes
from .target import Target
from .trace import Traced, trace_model
from .train import Training, lower_training, trace_training
from .verify.graph import verify_graph
from .verify.memory import verify_memory_plan

__all__ = [
    "PLAN_FORMAT",
    "STAGES",
    "VERSION",
    "Compilation",
    "Parallelism",
    "Stage",
    "compile_model",
    "configuration_for",
    "sharding_problem",
]

Stage: TypeAlias = Literal["trace", "plan_memory", "partition", "fuse", "place", "plan_tiers", "schedule", "lower"]
STAGES: tuple[Stage, ...] = get_args(Stage)

PLAN_FORMAT = 1  # of plan.json, as `plan_file` reads it

_SHORT_LISTS = re.compile(r"\[\n\s*([^\[\]{}]*?)\n\s*\]")  # lists without lists in them; texts have no line ends
VERSION = importlib.metadata.version("plait")
_ATTENTION = ("attention", "latent_attention", "self_attention")  # named ops


@dataclass(frozen=True)
class Parallelism:
    """Over what a step is divided."""

    num_devices: int | None = None  # all of the target's by default
    mesh: Mesh | None = None  # of one stage; by default several shapes are tried
    num_stages: int | None = None  # pipeline stages; by default as many as are best
    objective: Objective = "latency"
    budget_bytes: int | None = None  # of each device; by default the target's memory, if it has several devices
    pins: tuple[tuple[str, str], ...] = ()  # (pattern, axes): layouts that are given
    time_limit_seconds: float = 60.0

    def to_dict(self) -> dict[str, object]:
        """Returns it as JSON has it."""
        return {**asdict(self), "mesh": self.mesh.shape if self.mesh else None}


@dataclass(frozen=True)
class Compilation:
    """What the stages made of one model in one configuration."""

    model: ModelConfig
    sizes: ModelSizes
    configuration: Configuration
    dtype: str
    target: Target
    traced: Traced
    training: Training | None = None  # of phase "train"
    parallelism: Parallelism = field(default_factory=Parallelism)  # as it was asked for
    fusion: Fusion = field(default_factory=Fusion)  # likewise
    memory: MemoryPlan | None = None
    cost: StepCost | None = None
    partition: Partition | None = None
    mapped: Mapped | None = None  # onto the target's chips
    program: Program | None = None

    @property
    def new_tokens(self) -> int:
        """Tokens that one step computes, of all sequences."""
        return self.configuration.batch * self.configuration.new_tokens

    @property
    def flops_per_token(self) -> float:
        """FLOPs of the step's matrix products, divided by its new tokens."""
        return self.traced.graph.product_flops / self.new_tokens

    @property
    def attention_flops_per_token(self) -> float:
        """The part of `flops_per_token` that is in attention: queries with keys, and weights with values."""
        operations = self.traced.graph.operations
        flops = sum(operation.product_flops for operation in operations if operation.name in _ATTENTION)
        return flops / self.new_tokens

    def to_json(self) -> str:
        """Returns the plan, without the operations of the graph, as JSON text; `plan_file.read_plan` reads it."""
        graph = self.traced.graph
        data = {
            "plait": VERSION,
            "format": PLAN_FORMAT,
            "model": {
                **asdict(self.sizes),
                "per_token": {"flops": self.flops_per_token, "attention_flops": self.attention_flops_per_token},
                "config": config_to_json(self.model),
            },
            "configuration": {"id": self.configuration.id, **asdict(self.configuration)},
            "training": asdict(self.training) if self.training else None,
            "dtype": self.dtype,
            "target": asdict(self.target),
            "parallelism": self.parallelism.to_dict(),
            "fusion": asdict(self.fusion),
            "graph": {
                "operations": len(graph.operations),
                "flops": graph.flops,
                "product_flops": graph.product_flops,
                "is_estimate": graph.is_estimate,
                "bytes_accessed_unfused": graph.bytes_accessed,
                "parameter_bytes": graph.parameter_bytes,
                "parameter_bytes_read": graph.parameter_bytes_read,
            },
            "memory": json.loads(self.memory.to_json()) if self.memory else None,
            "cost": {**asdict(self.cost), "seconds": self.cost.seconds, "bound": self.cost.bound}
            if self.cost
            else None,
            "partition": self.partition.to_dict() if self.partition else None,
            "schedule": self.mapped.schedule.to_dict() if self.mapped and self.mapped.schedule else None,
            "program_bytes": len(self.program.to_bytes()) if self.program else None,
        }
        return _SHORT_LISTS.sub(_on_one_line, json.dumps(data, indent=1))

    def save(self, directory: str | Path) -> list[Path]:
        """Writes plan.json, graph.json, graph.txt and what else there is; returns the paths.

        If mapped: sections.json, placement.json, tiers.json, schedule.json. If lowered: program.stablehlo.

        Raises:
            ConfigurationError: if the directory cannot be written.
        """
        files: dict[str, bytes] = {
            "plan.json": self.to_json().encode(),
            "graph.json": self.traced.graph.to_json().encode(),
            "graph.txt": self.traced.graph.as_text().encode(),
        }
        if (mapped := self.mapped) is not None:
            for name in ("sections", "placement", "tiers", "schedule"):
                if (noun := getattr(mapped, name)) is not None:
                    files[f"{name}.json"] = noun.to_json().encode()
        if self.program is not None:
            files["program.stablehlo"] = self.program.to_bytes()
        return write_files(Path(directory), files)


def compile_model(
    model: ModelConfig,
    configuration: Configuration,
    *,
    dtype: str,
    target: Target,
    training: Training | None = None,
    parallelism: Parallelism | None = None,
    fusion: Fusion | None = None,
    stop_after: Stage = "lower",
    progress: Callable[[Stage], None] | None = None,
    searching: Callable[[str], None] | None = None,
) -> Compilation:
    """Compiles one model in one configuration for a target.

    Args:
        model: The architecture.
        configuration: Phase and shapes.
        dtype: That the model is computed in, and of its KV cache; weights without a stored form have it too.
        target: The machine.
        training: Optimizer and options of phase "train", by default `Training()`.
        parallelism: Over what the step is divided; by default over the target's devices.
        fusion: How operations become kernels of the target's chips; by search by default.
        stop_after: The last stage to run. A program is lowered without a mapping, and a mapping needs none.
        progress: Told each stage before it runs.
        searching: Told each mesh before it is tried.

    Raises:
        ConfigurationError: if phase, shapes or dtype don't fit the model, or the target cannot be planned for.
    """
    wanted = STAGES[: STAGES.index(stop_after) + 1]
    if "lower" in wanted and not implementations_for(target):
        raise ConfigurationError(
            f"target {target.name!r} is for plans only: no program is made for it; stop before lower"
        )
    report = progress or (lambda stage: None)
    report("trace")
    how = (training or Training()) if configuration.phase == "train" else None
    made = Compilation(
        model=model,
        sizes=model_sizes(model, dtype),
        configuration=configuration,
        dtype=dtype,
        target=target,
        traced=_traced(model, configuration, dtype, how),
        training=how,
        parallelism=parallelism or Parallelism(),
        fusion=fusion or Fusion(),
    )
    if "plan_memory" in wanted:
        report("plan_memory")
        memory = plan_memory(made.traced)
        verify_memory_plan(memory, made.traced.graph)
        made = replace(made, memory=memory)
    if "partition" in wanted:
        report("partition")
        made = _partitioned(made, searching)
    if stop_after in MAPPING_STAGES:
        made = _mapped(made, stop_after, report)
    if "lower" in wanted:
        report("lower")
        made = replace(made, program=_lowered(made))
    return made


def _traced(model: ModelConfig, configuration: Configuration, dtype: str, training: Training | None) -> Traced:
    if training is None:
        traced = trace_model(model, configuration, dtype)
    else:
        traced = trace_training(model, configuration, dtype, training)
    verify_graph(traced.graph)
    return traced


def _mapped(made: Compilation, last: MappingStage, progress: Callable[[Stage], None]) -> Compilation:
    assert made.partition is not None
    mapped = map_step(
        made.traced,
        made.partition,
        made.target,
        made.dtype,
        configuration=made.configuration,
        fusion=made.fusion,
        stop_after=last,
        progress=progress,
    )
    return replace(made, mapped=mapped)


def _lowered(made: Compilation) -> Program:
    if made.training is not None:
        return lower_training(made.traced, made.configuration)
    return lower(made.traced, made.model, made.configuration, made.dtype, made.target)


def _on_one_line(found: re.Match[str]) -> str:
    return f"[{' '.join(found[1].split())}]" if '"' not in found[1] else found[0]


def _partitioned(made: Compilation, searching: Callable[[str], None] | None) -> Compilation:
    assert made.memory is not None
    traced, target, wanted = made.traced, made.target, made.parallelism
    num_devices = wanted.num_devices or target.num_devices
    has_several = num_devices > 1 or wanted.mesh is not None
    capacity = target.tiers["hbm"].usable_bytes if has_several else None  # one device may spill, and is only told
    plan = partition(
        traced,
        target,
        dtype=made.dtype,
        num_devices=num_devices,
        mesh=wanted.mesh,
        num_stages=wanted.num_stages,
        budget_bytes=wanted.budget_bytes or capacity,
        objective=wanted.objective,
        pins=resolve_pins(traced.graph, wanted.pins, wanted.mesh),
        time_limit_seconds=wanted.time_limit_seconds,
        progress=searching,
    )
    return replace(made, cost=step_cost(traced.graph, made.memory, made.dtype, target), partition=plan)


def sharding_problem(compilation: Compilation) -> Problem:
    """Returns the sharding problem that a compilation's partition is an answer to: that of the mesh it chose.

    Raises:
        ConfigurationError: if nothing was partitioned.
    """
    plan, traced = compilation.partition, compilation.traced
    if plan is None:
        raise ConfigurationError(f"{traced.graph.name} was not partitioned; compile it up to its stage 'partition'")
    formulation = formulate(
        skeleton(traced),
        plan.mesh,
        compilation.target,
        compilation.dtype,
        budget_bytes=plan.limit_bytes,
        pins=resolve_pins(traced.graph, compilation.parallelism.pins, plan.mesh),
    )
    names = [
        tuple(layout.as_text() for layout in node.layouts) or tuple(division.as_text() for division in node.divisions)
        for node in formulation.nodes
    ]
    return replace(formulation.problem, strategy_names=tuple(names))


def configuration_for(
    model: ModelConfig, *, phase: Phase, batch: int, sequence: int, new_tokens: int | None = None
) -> Configuration:
    """Returns the configuration that a phase, a batch and a context length mean for a model.

    Args:
        model: The architecture.
        phase: "prefill", "decode" or "train" of a decoder, "embed" of an encoder.
        batch: Sequences at once.
        sequence: Context in tokens, new ones included.
        new_tokens: Of a prefill chunk; the whole sequence by default.

    Raises:
        ConfigurationError: if the model has no such phase or not so many positions.
    """
    phases = ("prefill", "decode", "train") if isinstance(model, DecoderConfig) else ("embed",)
    if phase not in phases:
        raise ConfigurationError(f"a {model.family} model has no phase {phase!r}; it has {', '.join(phases)}")
    if new_tokens is not None and phase != "prefill":
        raise ConfigurationError(f"new_tokens {new_tokens} is for prefill; {phase} has no choice of it")
    if batch < 1 or not 1 <= sequence <= model.max_positions:
        raise ConfigurationError(
            f"batch {batch} and sequence {sequence} don't fit: batch is at least 1, and the model has "
            f"{model.max_positions} positions"
        )
    computed = 1 if phase == "decode" else sequence if new_tokens is None else new_tokens
    if not 1 <= computed <= sequence:
        raise ConfigurationError(f"new_tokens {computed} must be between 1 and the sequence of {sequence}")
    return Configuration(phase, batch, computed, sequence)
