"""Models over several devices: the same logits as the dense model, one placement for all configurations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import jax
import numpy as np
import pytest
from decoder_variants import SMALL, VARIANTS, empty_cache, random_parameters

from plait.compiler.bundle.manifest import KVPlan
from plait.compiler.bundle.place import PlacedModel, place_model
from plait.compiler.bundle.timing import empty_pools, place_weights
from plait.compiler.configuration import BLOCK_TOKENS, Configuration
from plait.compiler.executable import Executable, compile_program
from plait.compiler.lower import PLATFORMS
from plait.compiler.mesh import Mesh
from plait.compiler.target import load_target
from plait.errors import ConfigurationError, ExecutionError
from plait.models.config import DecoderConfig, EncoderConfig, ModelConfig
from plait.models.family import build

TARGET = load_target("cpu")
CONTEXT = 96
NUM_BLOCKS = 12
PREFILL = Configuration("prefill", 1, 64, CONTEXT)
DECODE = Configuration("decode", 2, 1, CONTEXT)
ONE = Mesh((), ())
TENSOR = Mesh(("tensor",), (2,))
COLLECTIVE = re.compile(r"(all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(-start)?\(")


def kv_plan(config: ModelConfig) -> KVPlan | None:
    """Pools of NUM_BLOCKS blocks in f32."""
    if not isinstance(config, DecoderConfig):
        return None
    return KVPlan(BLOCK_TOKENS, NUM_BLOCKS, config.kv_values_per_token * 4, "float32")


def placed_model(config: ModelConfig, mesh: Mesh, num_stages: int, *configurations: Configuration) -> PlacedModel:
    """A model in f32 over a mesh."""
    kv = kv_plan(config)
    return place_model(config, configurations, "float32", TARGET, mesh=mesh, num_stages=num_stages, kv=kv)


def compiled(placed: PlacedModel, configuration: Configuration) -> Executable:
    """All stages of a configuration."""
    _, stages = placed.stages(configuration)
    programs = [placed.lower(stage, configuration, NUM_BLOCKS) for stage in stages]
    return compile_program(programs, num_blocks=NUM_BLOCKS, mesh=placed.mesh)


def assert_like_dense(config: DecoderConfig, mesh: Mesh, num_stages: int) -> PlacedModel:
    """Runs a chunk and two decode steps of two sequences over the mesh, and each sequence on the plain model."""
    placed = placed_model(config, mesh, num_stages, PREFILL, DECODE)
    parameters = random_parameters(config, "float32")
    weights = place_weights(as_numpy(parameters), placed.placement)
    pools = empty_pools(placed, kv_plan(config))
    prefill, decode = compiled(placed, PREFILL), compiled(placed, DECODE)
    dense = jax.jit(build(config, "float32").__call__)
    prompts = np.random.default_rng(2).integers(0, config.vocab_size, (2, 66)).astype(np.int32)
    tables = np.random.default_rng(1).permutation(NUM_BLOCKS).reshape(2, -1).astype(np.int32)
    lengths = (64, 37)
    caches = []
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        cache = empty_cache(config, CONTEXT, "float32")
        tokens = np.where(np.arange(64) < length, prompt[:64], 0)[None]
        one = np.array([length], np.int32)
        inputs = {"tokens": tokens, "start": np.zeros(1, np.int32), "lengths": one, "tables": tables[row : row + 1]}
        ours, pools = prefill(weights, inputs, pools)
        reference, cache = dense(parameters, tokens, inputs["start"], one, cache)
        assert_close(ours, reference)
        caches.append(cache)
    for step in range(2):
        start = np.array(lengths, np.int32) + step
        tokens = prompts[np.arange(2), start][:, None]
        inputs = {"tokens": tokens, "start": start, "lengths": np.ones(2, np.int32), "tables": tables}
        ours, pools = decode(weights, inputs, pools)
        for row in range(2):
            part = slice(row, row + 1)
            reference, caches[row] = dense(parameters, tokens[part], start[part], np.ones(1, np.int32), caches[row])
            assert_close(np.asarray(ours)[part], reference)
    return placed


def as_numpy(parameters: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """Weights as a weight file has them."""
    return {name: np.asarray(array) for name, array in parameters.items()}


def assert_close(ours: object, reference: object) -> None:
    """Compares as all numerics are compared here."""
    wanted = np.asarray(reference)
    assert np.max(np.abs(np.asarray(ours) - wanted)) <= 1e-5 * np.max(np.abs(wanted))


@pytest.mark.parametrize(
    ("mesh", "num_stages"),
    [(TENSOR, 1), (ONE, 2), (TENSOR, 2), (Mesh(("x", "y"), (2, 2)), 1)],
    ids=["tensor 2", "pipeline 2", "both", "x 2, y 2"],
)
def test_a_model_over_devices_gives_the_dense_models_logits(mesh: Mesh, num_stages: int) -> None:
    placed = assert_like_dense(SMALL, mesh, num_stages)
    assert placed.placement is not None
    assert placed.placement.num_devices == mesh.num_devices * num_stages
    assert [layer for stage in placed.placement.stages for layer in stage.layers] == [0, 1]


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_every_kind_of_decoder_runs_divided(config: DecoderConfig) -> None:
    assert_like_dense(config, TENSOR, 1)


def test_no_collective_is_in_a_branch() -> None:
    placed = placed_model(VARIANTS["fp8"], TENSOR, 1, PREFILL, DECODE)
    for configuration in (PREFILL, DECODE):
        (stage,) = compiled(placed, configuration).stages
        text = stage.compiled.as_text()
        assert text is not None
        exchanging = [part for part in text.split("\n\n") if COLLECTIVE.search(part)]
        # Two branches that run at the same time would mix up what they exchange.
        assert [part.split(maxsplit=1)[0] for part in exchanging] == ["ENTRY"]
        assert "all-gather(" in text
        assert "conditional(" in text


def test_a_program_for_several_devices_and_several_platforms_is_refused() -> None:
    placed = placed_model(SMALL, TENSOR, 1, DECODE)
    (program,) = [placed.lower(stage, DECODE, NUM_BLOCKS) for stage in placed.stages(DECODE)[1]]
    both = replace(program, exported=replace(program.exported, platforms=PLATFORMS))
    with pytest.raises(ExecutionError, match="several devices was exported for several platforms; rebuild the bundle"):
        compile_program([both], num_blocks=NUM_BLOCKS, mesh=TENSOR)


def test_attention_is_split_and_weights_are_stored_in_parts() -> None:
    placement = placed_model(SMALL, TENSOR, 1, PREFILL, DECODE).placement
    assert placement is not None
    assert placement.pool_axes == ("tensor",)
    (stage,) = placement.stages
    matrices = {name: dims for name, dims in stage.parameters.items() if len(dims) == 2}
    assert all(("tensor",) in dims for dims in matrices.values())
    assert stage.parameters["layers.0.attention.query.weight"] == (("tensor",), ())
    assert stage.parameters["layers.0.attention.output.weight"] == ((), ("tensor",))
    assert stage.kv_bytes == NUM_BLOCKS * BLOCK_TOKENS * SMALL.kv_values_per_token * 4 // 2


def test_kv_heads_that_do_not_divide_stay_whole() -> None:
    config = replace(SMALL, num_heads=3, num_kv_heads=3, hidden_size=48)
    placed = assert_like_dense(config, TENSOR, 1)
    assert placed.placement is not None
    assert placed.placement.pool_axes == ()
    assert placed.placement.stages[0].parameters["layers.0.mlp.up.weight"] == (("tensor",), ())


def test_one_device_has_no_placement() -> None:
    placed = placed_model(SMALL, ONE, 1, PREFILL, DECODE)
    assert placed.placement is None
    assert placed.mesh.num_devices == 1


def test_an_encoder_runs_over_devices() -> None:
    config = EncoderConfig(2, 64, 4, 96, 1000, 128, head="masked_lm")
    configuration = Configuration("embed", 2, 32, 32)
    parameters = random_parameters(config, "float32")
    tokens = np.random.default_rng(3).integers(0, config.vocab_size, (2, 32)).astype(np.int32)
    lengths = np.array([32, 5], np.int32)
    reference = jax.jit(build(config, "float32").__call__)(parameters, tokens, lengths)
    for mesh, num_stages in ((TENSOR, 1), (ONE, 2)):
        placed = placed_model(config, mesh, num_stages, configuration)
        executable = compiled(placed, configuration)
        ours, _ = executable(
            place_weights(as_numpy(parameters), placed.placement), {"tokens": tokens, "lengths": lengths}, []
        )
        assert_close(ours, reference)


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="of 2 layers does not make 8 pipeline stages; ask for 2"):
        placed_model(SMALL, ONE, 8, PREFILL, DECODE)
