"""Lowering: from a traced graph to the program that the stand-in devices run, as exported StableHLO.

Comes in: a `Traced` model in one configuration and a target. Goes out: a `Program`. The jaxpr of the graph is
evaluated equation by equation, and each named op that the target has an implementation for is replaced by it
(`implementations.py`): what is planned and what runs are one graph. The dense KV cache of the graph becomes a view of
a paged pool: an opaque value that only `attention` looks into. The pool's number of blocks stays symbolic, so that one
program serves any pool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import jax
import jax.numpy as jnp
from jax import export
from jax.extend import core
from jaxtyping import Array

from ..models.config import DecoderConfig, ModelConfig
from ..models.named_ops import parse_op_name
from .configuration import BLOCK_TOKENS, Configuration
from .implementations import PagedView, implementations_for, pool_dtype
from .target import Target
from .trace import Traced

__all__ = ["Program", "lower", "pool_shape"]

Implementations: TypeAlias = Mapping[str, Callable[..., object]]


@dataclass(frozen=True)
class Program:
    """One configuration as exported StableHLO.

    A decoder's program takes (parameters, tokens, start, lengths, pools, tables) and returns (logits, pools); an
    encoder's takes (parameters, tokens, lengths) and returns vectors.
    """

    configuration: Configuration
    exported: export.Exported
    donated: tuple[int, ...]  # positions of arguments that the program overwrites

    def to_bytes(self) -> bytes:
        """Returns the serialized program, as `bundle.programs.load_exported` reads it."""
        return bytes(self.exported.serialize())


def pool_shape(config: DecoderConfig, num_blocks: int) -> tuple[int, ...]:
    """Returns the shape of one layer's KV pool: [blocks, block tokens, keys and values, kv heads, head size].

    A latent cache has one entry, latent vector and rotary key side by side, in the place of keys and values.

    Args:
        config: The model.
        num_blocks: A number, or the dimension that stands for it while a program is exported.
    """
    (heads, size), (_, second_size) = config.cache_shapes
    entry = (2, heads, size) if config.latent is None else (1, heads, size + second_size)
    return (num_blocks, BLOCK_TOKENS, *entry)


def lower(traced: Traced, config: ModelConfig, configuration: Configuration, dtype: str, target: Target) -> Program:
    """Lowers a traced model for a target.

    Args:
        traced: The model in this configuration, from `trace_model`.
        config: Its architecture.
        configuration: The shapes to lower for.
        dtype: Of weights and KV cache.
        target: Picks the implementations of the named ops.
    """
    implementations = implementations_for(target)
    parameters, tokens, *lengths = _abstract_arguments(traced)
    if not isinstance(config, DecoderConfig):

        def encode(parameters: dict[str, Array], tokens: Array, lengths: Array) -> Array:
            (vectors,) = _evaluate_traced(traced, (parameters, tokens, lengths), implementations)
            return vectors  # type: ignore[return-value]

        return Program(configuration, _export(encode, (parameters, tokens, *lengths), ()), ())

    def step(
        parameters: dict[str, Array],
        tokens: Array,
        start: Array,
        lengths: Array,
        pools: list[Array],
        tables: Array,
    ) -> tuple[Array, list[Array]]:
        views = [PagedView(pool, tables, dtype) for pool in pools]
        cache = [(view, view) for view in views]
        logits, *extended = _evaluate_traced(traced, (parameters, tokens, start, lengths, cache), implementations)
        return logits, [view.pool for view in extended[::2]]  # type: ignore[return-value, attr-defined]

    start, lengths_argument, _ = lengths
    (num_blocks,) = export.symbolic_shape("num_blocks")
    pool = jax.ShapeDtypeStruct(pool_shape(config, cast(int, num_blocks)), pool_dtype(dtype))
    table_size = -(-configuration.context // BLOCK_TOKENS)
    tables = jax.ShapeDtypeStruct((configuration.batch, table_size), jnp.int32)
    arguments = (parameters, tokens, start, lengths_argument, [pool] * config.num_layers, tables)
    return Program(configuration, _export(step, arguments, (4,)), (4,))


def _export(function: Callable[..., object], arguments: Sequence[object], donated: tuple[int, ...]) -> export.Exported:
    return export.export(jax.jit(function, donate_argnums=donated), platforms=["cpu"])(*arguments)


def _abstract_arguments(traced: Traced):
    avals = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in traced.jaxpr.in_avals]
    return jax.tree.unflatten(traced.in_tree, avals)


def _evaluate_traced(traced: Traced, arguments: tuple[object, ...], implementations: Implementations) -> list[object]:
    flat = jax.tree.leaves(arguments, is_leaf=lambda leaf: isinstance(leaf, PagedView))
    return _evaluate(traced.jaxpr.jaxpr, traced.jaxpr.consts, flat, implementations)


def _evaluate(
    jaxpr: core.Jaxpr, consts: Sequence[object], arguments: Sequence[object], implementations: Implementations
) -> list[object]:
    """Evaluates a jaxpr, putting implementations in the place of named ops; other values may be opaque to it."""
    values: dict[core.Var, object] = {}

    def read(atom: core.Var | core.Literal) -> object:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))
    for equation in jaxpr.eqns:
        with jax.named_scope(str(equation.source_info.name_stack) or "top"):
            results = _apply(equation, [read(atom) for atom in equation.invars], implementations)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(equation: core.JaxprEqn, operands: list[object], implementations: Implementations) -> Sequence[object]:
    if equation.primitive.name == "jit":
        op = parse_op_name(equation.params["name"])
        if op is not None and op[0] in implementations:
            result = implementations[op[0]](*operands, **op[1])
            return result if isinstance(result, tuple) else (result,)
        inner = equation.params["jaxpr"]
        return _evaluate(getattr(inner, "jaxpr", inner), inner.consts, operands, implementations)
    result = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(equation.params))
    return result if equation.primitive.multiple_results else (result,)
