"""A tiny bundle of two models, for tests: a decoder with a KV cache and an encoder, each with a program that runs."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from plait.compiler.bundle.manifest import KVPlan, Manifest, ModelEntry, ProgramEntry, StageProgram, TierBudget
from plait.compiler.bundle.weights import TensorSpec, write_weights
from plait.compiler.bundle.writer import BundleWriter
from plait.compiler.configuration import Configuration
from plait.compiler.target import load_target
from plait.models.config import DecoderConfig, EncoderConfig

DECODER = DecoderConfig(
    num_layers=1,
    hidden_size=8,
    num_heads=2,
    num_kv_heads=1,
    head_size=4,
    intermediate_size=16,
    vocab_size=32,
    max_positions=64,
)
ENCODER = EncoderConfig(num_layers=1, hidden_size=8, num_heads=2, intermediate_size=16, vocab_size=32, max_positions=64)
SPECS: dict[str, TensorSpec] = {
    "layers.0.weight": ((5, 7), np.dtype(ml_dtypes.bfloat16)),
    "layers.0.bias": ((7,), np.dtype(np.float32)),
    "scale": ((), np.dtype(np.float32)),
}
WEIGHTS_BYTES = 5 * 7 * 2 + 7 * 4 + 4
WEIGHTS = "models/chat/weights.safetensors"


def flip_byte(path: Path, position: int) -> None:
    """Changes one bit of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def tensors(seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Yields values for `SPECS`."""
    generator = np.random.default_rng(seed)
    for name, (shape, dtype) in SPECS.items():
        yield name, generator.normal(size=shape).astype(dtype)


@functools.cache  # exporting twice gives different bytes: they name the source lines that led here
def exported_program() -> bytes:
    """An exported program that doubles two numbers."""
    exported = jax.export.export(jax.jit(lambda x: x * 2))(jax.ShapeDtypeStruct((2,), jnp.float32))
    return bytes(exported.serialize())


def make_model(name: str = "chat", config: DecoderConfig | EncoderConfig = DECODER) -> ModelEntry:
    """A model whose numbers are small and consistent."""
    is_decoder = isinstance(config, DecoderConfig)
    configuration = Configuration("decode", 1, 1, 64) if is_decoder else Configuration("embed", 1, 64, 64)
    program = ProgramEntry(
        configuration=configuration,
        stages=(
            StageProgram(
                file=f"models/{name}/programs/{configuration.id}.stablehlo",
                temporary_bytes=64,
                output_bytes=32,
                donated=(2,),
                gives=(7,),
            ),
        ),
        flops=100,
        predicted_temporary_bytes=64,
        step_seconds=0.001,
    )
    return ModelEntry(
        name=name,
        aliases=(f"{name}-alias",),
        source="tiny",
        capabilities=("chat", "completion") if is_decoder else ("embedding",),
        architecture=ModelEntry.architecture_of(config),
        dtype="bf16",
        sequence=64,
        batch=1,
        pin=None,
        weights=f"models/{name}/weights.safetensors",
        weights_bytes=WEIGHTS_BYTES,
        kv=KVPlan(16, 4, 16, "f32") if is_decoder else None,
        programs=(program,),
        tokenizer=f"models/{name}/tokenizer.json",
        chat_template=f"models/{name}/chat_template.jinja" if is_decoder else None,
        bos_token=None,
        eos_token="<end>",
        eos_token_ids=(2,),
    )


def make_manifest(*models: ModelEntry) -> Manifest:
    """A manifest without files, of the given models or of one decoder and one encoder."""
    return Manifest(
        name="agent",
        target=load_target("cpu-tiered"),
        budget=TierBudget(hbm=2**20, ddr=2**21),
        models=models or (make_model("chat"), make_model("embed", ENCODER)),
        files={},
        versions={"plait": "0.1.0", "jax": jax.__version__},
        workflows={"answer": ("embed", "chat-alias")},
        traffic={"chat": 2.0},
    )


def add_files(writer: BundleWriter, manifest: Manifest, *, seed: int = 0) -> None:
    """Adds every file that the manifest's models refer to."""
    program = exported_program()
    for model in manifest.models:
        write_weights(writer.weights_path(model.weights), tensors(seed), SPECS)
        writer.add_bytes(model.tokenizer, b'{"version": "1.0"}')
        if model.chat_template is not None:
            writer.add_bytes(model.chat_template, b"{{ messages }}")
        for entry in model.programs:
            for stage in entry.stages:
                writer.add_bytes(stage.file, program)


def write_bundle(path: Path, manifest: Manifest | None = None, *, seed: int = 0) -> Manifest:
    """Writes a whole bundle and returns its manifest."""
    manifest = manifest or make_manifest()
    with BundleWriter(path) as writer:
        add_files(writer, manifest, seed=seed)
        return writer.commit(manifest)


def rewrite_manifest(path: Path, manifest: Manifest, **changes: object) -> None:
    """Replaces fields of a bundle's manifest in place, as an attacker would."""
    (path / "manifest.json").write_text(replace(manifest, **changes).to_json())  # type: ignore[arg-type]
