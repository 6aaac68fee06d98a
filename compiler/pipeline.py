"""The compiler from end to end: the stages in their order, each verified before the next begins.

    trace -> plan_memory -> partition -> lower

Comes in: a model's source (a named model or a path), or its configuration, with phase and shapes. Goes out: a
`Compilation`, which holds every stage's noun; stages can be left out from the end with `stop_after`. No weights are
read: planning needs shapes only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from ..errors import ConfigurationError
from ..models import registry
from ..models.checkpoint import open_checkpoint
from ..models.config import DecoderConfig, ModelConfig, config_to_json
from .configuration import Configuration, Phase
from .cost import StepCost, step_cost
from .lower import Program, lower
from .memory import MemoryPlan, plan_memory
from .partition import Partition, partition
from .target import Target
from .trace import Traced, trace_model
from .verify.graph import verify_graph
from .verify.memory import verify_memory_plan

__all__ = ["STAGES", "Compilation", "Stage", "compile_model", "configuration_for", "read_model_config"]

Stage: TypeAlias = Literal["trace", "plan_memory", "partition", "lower"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class Compilation:
    """What the stages made of one model in one configuration."""

    model: ModelConfig
    configuration: Configuration
    dtype: str
    target: Target
    traced: Traced
    memory: MemoryPlan | None = None
    cost: StepCost | None = None
    partition: Partition | None = None
    program: Program | None = None

    def to_json(self) -> str:
        """Returns the plan, without the operations of the graph, as JSON text."""
        graph = self.traced.graph
        data = {
            "model": config_to_json(self.model),
            "configuration": {"id": self.configuration.id, **asdict(self.configuration)},
            "dtype": self.dtype,
            "target": self.target.name,
            "graph": {
                "operations": len(graph.operations),
                "flops": graph.flops,
                "is_estimate": graph.is_estimate,
                "bytes_accessed_unfused": graph.bytes_accessed,
                "parameter_bytes": graph.parameter_bytes,
            },
            "memory": json.loads(self.memory.to_json()) if self.memory else None,
            "cost": {**asdict(self.cost), "seconds": self.cost.seconds, "bound": self.cost.bound}
            if self.cost
            else None,
            "partition": {**asdict(self.partition), "gap": self.partition.gap} if self.partition else None,
            "program_bytes": len(self.program.to_bytes()) if self.program else None,
        }
        return json.dumps(data, indent=1)

    def save(self, directory: str | Path) -> list[Path]:
        """Writes plan.json, graph.json, graph.txt and, if lowered, program.stablehlo; returns their paths.

        Raises:
            ConfigurationError: if the directory cannot be written.
        """
        root = Path(directory)
        files: dict[str, bytes] = {
            "plan.json": self.to_json().encode(),
            "graph.json": self.traced.graph.to_json().encode(),
            "graph.txt": self.traced.graph.as_text().encode(),
        }
        if self.program is not None:
            files["program.stablehlo"] = self.program.to_bytes()
        try:
            root.mkdir(parents=True, exist_ok=True)
            for name, data in files.items():
                temporary = root / f".{name}.part"
                temporary.write_bytes(data)
                temporary.replace(root / name)
        except OSError as error:
            raise ConfigurationError(f"cannot write {root}: {error.strerror}") from None
        return [root / name for name in files]


def compile_model(
    model: ModelConfig,
    configuration: Configuration,
    *,
    dtype: str,
    target: Target,
    stop_after: Stage = "lower",
    progress: Callable[[Stage], None] | None = None,
) -> Compilation:
    """Compiles one model in one configuration for a target.

    Args:
        model: The architecture.
        configuration: Phase and shapes.
        dtype: Of weights and KV cache.
        target: The machine.
        stop_after: The last stage to run.
        progress: Told each stage before it runs.

    Raises:
        ConfigurationError: if phase, shapes or dtype don't fit the model, or the target cannot be planned for.
    """
    wanted = STAGES[: STAGES.index(stop_after) + 1]
    memory = cost = plan = program = None
    report = progress or (lambda stage: None)
    report("trace")
    traced = trace_model(model, configuration, dtype)
    verify_graph(traced.graph)
    if "plan_memory" in wanted:
        report("plan_memory")
        memory = plan_memory(traced)
        verify_memory_plan(memory, traced.graph)
    if "partition" in wanted and memory is not None:
        report("partition")
        cost = step_cost(traced.graph.flops, memory, dtype, target)
        plan = partition(cost, target.num_devices)
    if "lower" in wanted:
        report("lower")
        program = lower(traced, model, configuration, dtype, target)
    return Compilation(model, configuration, dtype, target, traced, memory, cost, plan, program)


def read_model_config(source: str, *, base: Path, progress: registry.Progress | None = None) -> ModelConfig:
    """Returns the architecture of a named model (pulled if need be) or of a checkpoint on disk."""
    return open_checkpoint(registry.resolve(source, base=base, progress=progress)).config


def configuration_for(
    model: ModelConfig, *, phase: Phase, batch: int, sequence: int, new_tokens: int | None = None
) -> Configuration:
    """Returns the configuration that a phase, a batch and a context length mean for a model.

    Args:
        model: The architecture.
        phase: "prefill", "decode" or "embed".
        batch: Sequences at once.
        sequence: Context in tokens, new ones included.
        new_tokens: Of a prefill chunk; the whole sequence by default.

    Raises:
        ConfigurationError: if the model has no such phase or not so many positions.
    """
    if (phase == "embed") == isinstance(model, DecoderConfig):
        phases = "prefill and decode" if isinstance(model, DecoderConfig) else "embed"
        raise ConfigurationError(f"a {model.family} model has no phase {phase!r}; it has {phases}")
    if batch < 1 or not 1 <= sequence <= model.max_positions:
        raise ConfigurationError(
            f"batch {batch} and sequence {sequence} don't fit: batch is at least 1, and the model has "
            f"{model.max_positions} positions"
        )
    computed = 1 if phase == "decode" else sequence if new_tokens is None or phase == "embed" else new_tokens
    if not 1 <= computed <= sequence:
        raise ConfigurationError(f"new_tokens {computed} must be between 1 and the sequence of {sequence}")
    return Configuration(phase, batch, computed, sequence)
