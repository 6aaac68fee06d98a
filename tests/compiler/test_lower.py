"""Lowered programs against plain `jax.jit` of the same model, and against transformers on the same weights."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_variants import SMALL, VARIANTS, empty_cache, random_parameters

from plait.compiler.configuration import BLOCK_TOKENS, Configuration
from plait.compiler.executable import Executable, compile_program
from plait.compiler.kv_pool import pool_dtype, pool_shape
from plait.compiler.lower import lower
from plait.compiler.merge import find_merges, merge_tensors
from plait.compiler.target import load_target
from plait.compiler.trace import trace_model
from plait.models.checkpoint import open_checkpoint
from plait.models.config import DecoderConfig, EncoderConfig
from plait.models.family import build

TARGET = load_target("cpu")
GOLDEN = Path(__file__).parents[1] / "golden"


@dataclass
class Paged:
    """Runs lowered programs of a decoder on one sequence, whose blocks are scattered over the pool."""

    config: DecoderConfig
    dtype: str
    context: int
    parameters: dict[str, jax.Array]
    num_blocks: int = 40
    executables: dict[Configuration, Executable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.merges = find_merges(
            trace_model(self.config, Configuration("decode", 1, 1, self.context), self.dtype).graph
        )
        held = ((name, np.asarray(values)) for name, values in self.parameters.items())
        self.parameters = {name: jnp.asarray(values) for name, values in merge_tensors(held, self.merges)}
        shape = pool_shape(self.config, self.num_blocks)
        self.pools = [jnp.zeros(shape, pool_dtype(self.dtype)) for _ in range(self.config.num_layers)]
        self.blocks = np.random.default_rng(1).permutation(self.num_blocks)[: -(-self.context // BLOCK_TOKENS)]

    def run(self, configuration: Configuration, tokens: np.ndarray, start: int, row: int = 0) -> np.ndarray:
        """Returns the logits after the last token, computed in one row of the batch; the others stay empty."""
        executable = self.executable(configuration)
        rows = np.zeros((configuration.batch, configuration.new_tokens), np.int32)
        rows[row, : len(tokens)] = tokens
        starts = np.zeros(configuration.batch, np.int32)
        starts[row] = start
        lengths = np.ones(configuration.batch, np.int32)
        lengths[row] = len(tokens)
        tables = np.full((configuration.batch, len(self.blocks)), self.num_blocks, np.int32)
        tables[row] = self.blocks
        inputs = {"tokens": rows, "start": starts, "lengths": lengths, "tables": tables}
        logits, self.pools = executable([self.parameters], inputs, self.pools)
        return np.asarray(logits)[row]

    def executable(self, configuration: Configuration) -> Executable:
        """Returns the compiled program of a configuration."""
        if configuration not in self.executables:
            traced = trace_model(self.config, configuration, self.dtype)
            program = lower(traced, self.config, configuration, self.dtype, TARGET, merges=self.merges)
            self.executables[configuration] = compile_program([program], num_blocks=self.num_blocks)
        return self.executables[configuration]


# Both round attention's result to bf16, the reference its inner steps in another order: a rounding apart at most.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 1e-2)], ids=["f32", "bf16"])
def test_paged_prefill_and_decode_equal_the_dense_model(dtype: str, tolerance: float) -> None:
    context = 304  # more than one chunk of attention, and no multiple of it
    parameters = random_parameters(SMALL, dtype)
    paged = Paged(SMALL, dtype, context, parameters)
    dense = jax.jit(build(SMALL, dtype).__call__)
    cache = empty_cache(SMALL, context, dtype)
    tokens = np.random.default_rng(2).integers(0, SMALL.vocab_size, 296)
    position = 0
    for count in (64, 64, 64, 64, 30, 1, 1, 1):
        phase = "decode" if count == 1 else "prefill"
        configuration = Configuration(phase, 2 if count == 1 else 1, 1 if count == 1 else 64, context)
        new = tokens[position : position + count]
        ours = paged.run(configuration, new, position)
        reference, cache = dense(
            parameters, jnp.asarray(new)[None], jnp.array([position]), jnp.array([len(new)]), cache
        )
        assert np.max(np.abs(ours - reference[0])) <= tolerance * np.max(np.abs(reference))
        position += len(new)


@pytest.mark.parametrize(
    ("config", "dtype"),
    [(SMALL, "float32"), (SMALL, "bfloat16"), (VARIANTS["latent"], "bfloat16")],
    ids=["llama f32", "llama bf16", "latent bf16"],
)
def test_a_verify_step_gives_the_bits_of_decode_steps(config: DecoderConfig, dtype: str) -> None:
    context = 160  # more than one chunk of attention
    paged = Paged(config, dtype, context, random_parameters(config, dtype))
    tokens = np.random.default_rng(2).integers(0, config.vocab_size, 135)
    for first in (0, 64):
        paged.run(Configuration("prefill", 1, 64, context), tokens[first : first + 64], first)
    verified = [
        paged.run(Configuration("verify", batch, 5, context), tokens[first:last], first, row)
        for first, last, batch, row in ((126, 131, 1, 0), (131, 133, 4, 2), (133, 135, 4, 3))  # over a chunk's end
    ]
    rows = np.concatenate([logits[:count] for logits, count in zip(verified, (5, 2, 2), strict=True)])
    for position, row in enumerate(rows, 126):
        decoded = paged.run(Configuration("decode", 4, 1, context), tokens[position : position + 1], position, 1)
        assert np.array_equal(decoded, row), position


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_paged_steps_of_every_kind_of_decoder_equal_the_dense_model(config: DecoderConfig) -> None:
    context = 304
    parameters = random_parameters(config, "float32")
    paged = Paged(config, "float32", context, parameters)
    dense = jax.jit(build(config, "float32").__call__)
    cache = empty_cache(config, context, "float32")
    tokens = np.random.default_rng(2).integers(0, config.vocab_size, 296)
    position = 0
    for count in (64, 64, 64, 64, 30, 1, 1):
        phase = "decode" if count == 1 else "prefill"
        new = tokens[position : position + count]
        ours = paged.run(Configuration(phase, 1, 1 if count == 1 else 64, context), new, position)
        reference, cache = dense(
            parameters, jnp.asarray(new)[None], jnp.array([position]), jnp.array([len(new)]), cache
        )
        assert np.max(np.abs(ours - reference[0])) <= 1e-5 * np.max(np.abs(reference))
        position += len(new)


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        (SMALL, "float32"),
        (SMALL, "bfloat16"),
        (VARIANTS["latent"], "bfloat16"),
        (SMALL.stored_as("int8"), "bfloat16"),
    ],
    ids=["llama f32", "llama bf16", "latent bf16", "llama int8"],
)
def test_logits_are_the_same_bit_for_bit_however_a_sequence_is_cut_and_whatever_shares_the_step(config, dtype) -> None:
    context, length = 304, 290
    parameters = random_parameters(config, dtype)
    tokens = np.random.default_rng(4).integers(0, config.vocab_size, length)

    def last_logits(chunk: int, num_decoded: int, batch: int, row: int) -> np.ndarray:
        paged = Paged(config, dtype, context, parameters)
        logits = np.zeros(0)
        for position in range(0, length - num_decoded, chunk):
            new = tokens[position : min(position + chunk, length - num_decoded)]
            logits = paged.run(Configuration("prefill", 1, chunk, context), new, position)
        for position in range(length - num_decoded, length):
            decode = Configuration("decode", batch, 1, context)
            logits = paged.run(decode, tokens[position : position + 1], position, row)
        return logits

    expected = last_logits(64, 0, 1, 0)
    for chunk, num_decoded, batch, row in (
        (16, 0, 1, 0),
        (256, 0, 1, 0),
        (64, 40, 1, 0),
        (256, 150, 2, 1),
        (16, 3, 8, 5),
    ):
        assert np.array_equal(last_logits(chunk, num_decoded, batch, row), expected), (chunk, num_decoded, batch)


def test_products_that_share_their_input_are_merged() -> None:
    graph = trace_model(SMALL, Configuration("decode", 1, 1, 64), "float32").graph
    layer = "layers.1."
    assert [merge.name for merge in find_merges(graph) if merge.name.startswith(layer)] == [
        "+".join(f"{layer}attention.{name}.weight" for name in ("query", "key", "value")),
        "+".join(f"{layer}mlp.{name}.weight" for name in ("gate", "up")),
    ]
    compiled = Paged(SMALL, "float32", 64, random_parameters(SMALL, "float32")).executable(
        Configuration("decode", 8, 1, 64)
    )
    products = re.findall(r" dot\(.*oi->", compiled.stages[0].compiled.as_text() or "")
    assert len(products) == 4 * SMALL.num_layers + 1  # and the head


@pytest.mark.parametrize("head", ["embedding", "masked_lm"])
def test_lowered_encoders_equal_the_plain_model(head) -> None:
    config = EncoderConfig(2, 64, 4, 96, 1000, 128, head=head)
    parameters = random_parameters(config, "float32")
    configuration = Configuration("embed", 4, 32, 32)
    traced = trace_model(config, configuration, "float32")
    merges = find_merges(traced.graph)
    program = lower(traced, config, configuration, "float32", TARGET, merges=merges)
    tensors = merge_tensors(((name, np.asarray(values)) for name, values in parameters.items()), merges)
    merged = {name: jnp.asarray(values) for name, values in tensors}
    assert len(merged) < len(parameters)  # query, key and value, and their biases
    tokens = np.random.default_rng(3).integers(0, config.vocab_size, (4, 32)).astype(np.int32)
    lengths = np.array([32, 5, 0, 9], np.int32)
    ours = np.asarray(compile_program([program])([merged], {"tokens": tokens, "lengths": lengths}, [])[0])
    reference = np.asarray(jax.jit(build(config, "float32").__call__)(parameters, tokens, lengths))
    assert np.max(np.abs(ours - reference)) <= 2e-6 * np.max(np.abs(reference))
    assert not ours[2].any()


def test_a_decode_step_leaves_the_pool_in_place() -> None:
    configuration = Configuration("decode", 1, 1, 512)
    paged = Paged(SMALL, "bfloat16", 512, random_parameters(SMALL, "bfloat16"), num_blocks=4096)
    pool_bytes = sum(pool.nbytes for pool in paged.pools)
    addresses = [pool.unsafe_buffer_pointer() for pool in paged.pools]
    paged.run(configuration, np.array([1]), 0)
    assert paged.executable(configuration).stages[0].temporary_bytes < pool_bytes / 100
    assert [pool.unsafe_buffer_pointer() for pool in paged.pools] == addresses


@pytest.mark.weights
def test_lowered_smollm2_agrees_with_transformers(smollm2: Path) -> None:
    """What runs, not only what is traced: paged programs in f32 over prefill and 32 decode steps."""
    reference = np.load(GOLDEN / "reference_smollm2.npz")
    checkpoint = open_checkpoint(smollm2)
    assert isinstance(checkpoint.config, DecoderConfig)
    parameters = {name: jnp.asarray(checkpoint.read(name)) for name in checkpoint.tensor_names}
    paged = Paged(checkpoint.config, "float32", 256, parameters)
    prompt, greedy = reference["capital_prompt_ids"], reference["capital_greedy_ids"]
    rows = [paged.run(Configuration("prefill", 1, 64, 256), prompt, 0)]
    for step, token in enumerate(greedy[:-1]):
        rows.append(paged.run(Configuration("decode", 1, 1, 256), np.array([token]), len(prompt) + step))
    assert [int(np.argmax(row)) for row in rows] == greedy.tolist()
    ours = np.stack(rows)[:, reference["vocabulary_ids"]]
    theirs = reference["capital_logits"][len(prompt) - 1 :][: len(rows)]
    assert np.max(np.abs(ours - theirs)) <= 1e-4 * np.max(np.abs(theirs))
