"""Building a bundle: every model of a bundle file traced, planned, lowered, compiled once and written.

Comes in: a `BundleSpec`. Goes out: a bundle on disk whose manifest is the plan: the bytes that the runtime will
charge are XLA's buffer assignment of the very programs that it will run. Weights are written once a model, however
many configurations share them.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ...errors import ConfigurationError
from ...models import registry
from ...models.checkpoint import Checkpoint, open_checkpoint
from ...models.config import DecoderConfig, StoredForm
from ...models.family import build
from ..configuration import BLOCK_TOKENS, Configuration, configurations
from ..cut import StageCut
from ..executable import Executable, compile_program, provide_devices, use_compilation_cache
from ..memory import plan_memory
from ..merge import merge_specs, merge_tensors
from ..partition.footprint import Footprints
from ..target import Target, load_target
from .accuracy import measure_accuracy
from .canary import record_canary
from .manifest import (
    Accuracy,
    Canary,
    Capability,
    KVPlan,
    Manifest,
    ModelEntry,
    ProgramEntry,
    Sampling,
    SpeculativePair,
    StageProgram,
    TierBudget,
)
from .pairs import check_pairs, verify_tokens
from .place import PlacedModel, place_model
from .reader import Bundle, open_bundle
from .segments import divide
from .spec import BundleSpec, ModelSpec, WeightForm
from .timing import empty_pools, place_weights, time_step
from .weights import MappedWeights, map_weights, write_weights
from .writer import BundleWriter

__all__ = ["BuildProgress", "build_bundle"]

_DECODER_BATCH, _ENCODER_BATCH, _DECODER_SEQUENCE = 8, 4, 2048  # where neither bundle file nor model says


class BuildProgress(Protocol):
    """Told what a build is doing."""

    def __call__(self, model: str, stage: str, done: int, total: int) -> None:
        """Reports that `done` of `total` units of a model's stage ("pull", "weights", "programs") are finished."""
        ...


@dataclass(frozen=True)
class _Sizes:
    """A model's limits, as asked for or by default."""

    sequence: int
    batch: int
    kv_tokens: int


def build_bundle(
    spec: BundleSpec, output: str | Path, *, base: str | Path = ".", progress: BuildProgress | None = None
) -> Bundle:
    """Builds a bundle and returns it, opened.

    Args:
        spec: The bundle file's content.
        output: Directory to be; a bundle that is there already is replaced when the new one is complete.
        base: Directory that relative paths in the bundle file are relative to.
        progress: Told how far the build is.

    Raises:
        ConfigurationError: if the target cannot run programs, a model's limits don't fit its architecture, or this
            process has too few devices for a model's mesh.
        PlaitError: whatever pulling, reading or writing raises.
    """
    report: BuildProgress = progress if progress is not None else _silent
    spec.check_runnable()
    check_pairs(spec, Path(base))
    target = _load_target(spec.target, Path(base))
    provide_devices(max(model.num_devices for model in spec.models.values()))
    use_compilation_cache()
    with BundleWriter(output) as writer:
        entries = tuple(
            _build_model(name, model, target, Path(base), writer, report, verify_tokens(spec, name))
            for name, model in spec.models.items()
        )
        writer.commit(
            Manifest(
                name=spec.bundle,
                target=target,
                budget=_budget(spec, target),
                models=entries,
                files={},
                versions={name: importlib.metadata.version(name) for name in ("plait", "jax", "jaxlib")},
                workflows=dict(spec.workflows),
                routes=dict(spec.routes),
                traffic=spec.traffic,
                speculative=tuple(
                    SpeculativePair(spec.name_of(pair.draft), spec.name_of(pair.target), pair.tokens)
                    for pair in spec.speculative
                ),
            )
        )
    return open_bundle(output)


def _silent(model: str, stage: str, done: int, total: int) -> None:
    del model, stage, done, total


def _load_target(name: str, base: Path) -> Target:
    target = load_target(base / name if name.endswith(".toml") else name)
    if any(tier.memory_kind is None for tier in target.tiers.values()):
        raise ConfigurationError(f"target {target.name!r} cannot run programs here; use cpu or cpu-tiered")
    return target


def _budget(spec: BundleSpec, target: Target) -> TierBudget:
    ddr = target.tiers.get("ddr")
    capacity = ddr.capacity_bytes if ddr is not None else 1
    hbm = target.tiers["hbm"].capacity_bytes
    return TierBudget(hbm=int(spec.budget.hbm or hbm), ddr=int(spec.budget.ddr or capacity))


def _build_model(
    name: str,
    spec: ModelSpec,
    target: Target,
    base: Path,
    writer: BundleWriter,
    report: BuildProgress,
    verified: tuple[int, ...],
) -> ModelEntry:
    path = registry.resolve(spec.source, base=base, progress=lambda done, total: report(name, "pull", done, total))
    checkpoint = _stored_as(name, open_checkpoint(path), spec.weights)
    sizes = _sizes(name, spec, checkpoint)
    folder = f"models/{name}"
    kv = _kv_plan(checkpoint, spec, sizes)
    wanted = configurations(checkpoint.config, sequence=sizes.sequence, batch=sizes.batch, verify_tokens=verified)
    placed = place_model(
        checkpoint.config, wanted, spec.dtype, target, mesh=spec.stage_mesh, num_stages=spec.num_stages, kv=kv
    )
    weights = writer.weights_path(f"{folder}/weights.safetensors")
    _write_weights(weights, checkpoint, placed, lambda done, total: report(name, "weights", done, total))
    writer.add_bytes(f"{folder}/tokenizer.json", checkpoint.tokenizer_json.encode())
    if checkpoint.chat_template is not None:
        writer.add_bytes(f"{folder}/chat_template.jinja", checkpoint.chat_template.encode())
    mapped = map_weights(weights)
    quantized = checkpoint if spec.weights not in ("dense", "stored") else None
    programs, canary, accuracy = _build_programs(name, placed, wanted, kv, mapped, quantized, writer, report)
    return ModelEntry(
        name=name,
        aliases=spec.aliases,
        source=spec.source,
        capabilities=_capabilities(checkpoint),
        architecture=ModelEntry.architecture_of(checkpoint.config),
        dtype=spec.dtype,
        sequence=sizes.sequence,
        batch=sizes.batch,
        pin=spec.pin,
        weights=f"{folder}/weights.safetensors",
        weights_bytes=mapped.num_bytes,
        kv=kv,
        programs=programs,
        tokenizer=f"{folder}/tokenizer.json",
        chat_template=f"{folder}/chat_template.jinja" if checkpoint.chat_template is not None else None,
        bos_token=checkpoint.bos_token,
        eos_token=checkpoint.eos_token,
        eos_token_ids=checkpoint.eos_token_ids,
        sampling=_sampling(spec),
        placement=placed.placement,
        products=placed.products,
        canary=canary,
        accuracy=accuracy,
        segments=divide({tensor: values.nbytes for tensor, values in mapped.items()}, placed.placement),
    )


def _stored_as(name: str, checkpoint: Checkpoint, weights: WeightForm) -> Checkpoint:
    """Returns the checkpoint with the form in its configuration that its weights get in the bundle."""
    if weights == "stored":
        return checkpoint
    if weights == "dense":
        return replace(checkpoint, config=checkpoint.config.dense)
    if not isinstance(checkpoint.config, DecoderConfig):
        raise ConfigurationError(f"model {name!r} is an encoder; its weights cannot be stored as {weights}, use dense")
    return replace(checkpoint, config=checkpoint.config.stored_as(weights))


def _sizes(name: str, spec: ModelSpec, checkpoint: Checkpoint) -> _Sizes:
    config = checkpoint.config
    is_decoder = isinstance(config, DecoderConfig)
    meant_for = checkpoint.max_sequence
    sequence = spec.sequence or (min(_DECODER_SEQUENCE, meant_for) if is_decoder else meant_for)
    if sequence > config.max_positions:
        raise ConfigurationError(
            f"model {name!r}: sequence {sequence} is more than the {config.max_positions} positions it has"
        )
    if spec.kv_tokens is not None and not is_decoder:
        raise ConfigurationError(f"model {name!r} is an encoder and has no KV cache; leave kv_tokens out")
    kv_tokens = spec.kv_tokens or 2 * sequence
    if is_decoder and kv_tokens < sequence:
        raise ConfigurationError(
            f"model {name!r}: kv_tokens {kv_tokens} cannot hold one sequence of {sequence} tokens; "
            f"raise kv_tokens or lower sequence"
        )
    return _Sizes(sequence, spec.batch or (_DECODER_BATCH if is_decoder else _ENCODER_BATCH), kv_tokens)


def _capabilities(checkpoint: Checkpoint) -> tuple[Capability, ...]:
    if isinstance(checkpoint.config, DecoderConfig):
        return ("completion",) if checkpoint.chat_template is None else ("chat", "completion")
    match checkpoint.config.head:
        case "embedding":
            return ("embedding",)
        case "masked_lm":
            return ("sparse_embedding",)
        case "classification":
            return ("score",) if len(checkpoint.config.labels) == 1 else ("classification",)


def _sampling(spec: ModelSpec) -> Sampling:
    if spec.sampling is not None:
        return spec.sampling
    recommended = registry.default_sampling(spec.source)
    return Sampling() if recommended is None else Sampling(*recommended)


def _kv_plan(checkpoint: Checkpoint, spec: ModelSpec, sizes: _Sizes) -> KVPlan | None:
    if not isinstance(checkpoint.config, DecoderConfig):
        return None
    num_blocks = -(-sizes.kv_tokens // BLOCK_TOKENS)
    bytes_per_token = checkpoint.config.kv_values_per_token * jnp.dtype(spec.dtype).itemsize
    return KVPlan(BLOCK_TOKENS, num_blocks, bytes_per_token, spec.dtype)


def _write_weights(path: Path, checkpoint: Checkpoint, placed: PlacedModel, report: registry.Progress) -> None:
    parameters = build(checkpoint.config, placed.dtype).parameters
    specs = {name: (tuple(p.shape), np.dtype(p.dtype)) for name, p in parameters.items()}
    form: StoredForm | None = checkpoint.config.stored_form if isinstance(checkpoint.config, DecoderConfig) else None

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        names = checkpoint.tensor_names
        for index, name in enumerate(names):
            report(index, len(names))
            scales = f"{name.removesuffix('weight')}scales"
            if form is not None and scales in specs:
                yield from zip((name, scales), checkpoint.read_stored(name, form), strict=True)
            else:
                yield name, checkpoint.read(name).astype(specs[name][1])
        report(len(names), len(names))

    write_weights(path, merge_tensors(tensors(), placed.merges), merge_specs(specs, placed.merges))


def _build_programs(
    name: str,
    placed: PlacedModel,
    wanted: Sequence[Configuration],
    kv: KVPlan | None,
    weights: MappedWeights,
    quantized: Checkpoint | None,
    writer: BundleWriter,
    report: BuildProgress,
) -> tuple[tuple[ProgramEntry, ...], Canary, Accuracy | None]:
    """Builds a model's programs and asks them what they answer; `quantized` is where weights come from that are not."""
    parameters = place_weights(weights, placed.placement)
    entries: list[ProgramEntry] = []
    executables: dict[Configuration, Executable] = {}
    try:
        for index, configuration in enumerate(wanted):
            report(name, "programs", index, len(wanted))
            entry, executable = _build_program(f"models/{name}/programs", placed, configuration, kv, parameters, writer)
            entries.append(entry)
            executables[configuration] = executable
        canary = record_canary(executables, placed.config.vocab_size, parameters, empty_pools(placed, kv))
        pools = empty_pools(placed, kv)
        accuracy = quantized and measure_accuracy(quantized, placed.dtype, executables, parameters, pools)
        report(name, "programs", len(wanted), len(wanted))
        return tuple(entries), canary, accuracy
    finally:
        # At once, rather than with the frames that tracing keeps in cycles: what is built here may be run here next.
        for array in (array for stage in parameters for array in stage.values()):
            array.delete()


def _build_program(
    folder: str,
    placed: PlacedModel,
    configuration: Configuration,
    kv: KVPlan | None,
    parameters: Sequence[dict[str, jax.Array]],
    writer: BundleWriter,
) -> tuple[ProgramEntry, Executable]:
    traced, cuts = placed.stages(configuration)
    num_blocks = kv.num_blocks if kv else 0
    programs = [placed.lower(stage, configuration, num_blocks) for stage in cuts]
    executable = compile_program(programs, num_blocks=num_blocks, mesh=placed.mesh)
    entries: list[StageProgram] = []
    for number, (program, compiled) in enumerate(zip(programs, executable.stages, strict=True)):
        file = f"{folder}/{configuration.id}{f'-stage{number}' if len(cuts) > 1 else ''}.stablehlo"
        writer.add_bytes(file, program.to_bytes())
        entries.append(
            StageProgram(
                file=file,
                temporary_bytes=compiled.temporary_bytes,
                output_bytes=compiled.output_bytes,
                donated=program.donated,
                takes=program.takes,
                gives=program.gives,
            )
        )
    pools = empty_pools(placed, kv)
    entry = ProgramEntry(
        configuration=configuration,
        stages=tuple(entries),
        flops=traced.graph.flops,
        predicted_temporary_bytes=max(map(_predicted_temporary_bytes, cuts)),
        step_seconds=time_step(executable, configuration, parameters, pools),
    )
    return entry, executable


def _predicted_temporary_bytes(stage: StageCut) -> int:
    if stage.sharding is None:
        return plan_memory(stage.traced.graph).temporary_bytes
    return Footprints(stage.traced, stage.sharding).of().temporaries
