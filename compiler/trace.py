"""Tracing: from a JAX function or a model to a Graph, without weights or hardware.

Comes in: a function with abstract arguments, or a model's configuration. Goes out: a `Traced`: the graph, and the
jaxpr it was read from, which `lower` evaluates. The jaxpr is walked, not XLA's estimate: a loop's body is counted as
often as it runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr
from jax.tree_util import PyTreeDef, keystr, tree_flatten_with_path

from ..errors import ConfigurationError
from ..models.config import DecoderConfig, ModelConfig
from ..models.family import build
from .configuration import Configuration
from .graph import Graph, ValueKind
from .jaxpr_reader import Argument, FlatEquation, read_jaxpr

__all__ = ["Traced", "trace", "trace_model"]

AbstractArgument: TypeAlias = object  # a pytree of arrays or `jax.ShapeDtypeStruct`


@dataclass(frozen=True)
class Traced:
    """A traced function."""

    graph: Graph
    jaxpr: ClosedJaxpr
    equations: tuple[FlatEquation, ...]  # of each operation of the graph
    constants: dict[int, object]  # values of the graph's constants, by value id
    in_names: tuple[str, ...]  # of the flattened arguments
    in_tree: PyTreeDef  # pyright: ignore[reportInvalidTypeForm]  # of the tuple of arguments
    out_tree: PyTreeDef  # pyright: ignore[reportInvalidTypeForm]


def trace(
    function: Callable[..., object],
    *abstract_args: AbstractArgument,
    name: str | None = None,
    argument_kinds: Sequence[ValueKind] | None = None,
) -> Traced:
    """Traces any JAX function.

    Args:
        function: What to trace; it is called once with tracers.
        *abstract_args: Its positional arguments, pytrees of arrays or `jax.ShapeDtypeStruct`. Values are not looked at.
        name: Name of the graph; by default the function's.
        argument_kinds: "parameter", "state", "input" or "cache" for each argument; by default all are inputs.
            Parameters are named by their path within the argument, others by the argument's name and their path.

    Raises:
        ConfigurationError: if `argument_kinds` does not fit the arguments.
    """
    kinds = tuple(argument_kinds) if argument_kinds is not None else ("input",) * len(abstract_args)
    if len(kinds) != len(abstract_args):
        raise ConfigurationError(
            f"trace got {len(kinds)} argument_kinds for {len(abstract_args)} arguments; give one for each"
        )
    arguments: list[Argument] = []
    for label, kind, argument in zip(_argument_names(function, len(kinds)), kinds, abstract_args, strict=True):
        paths = [keystr(path, simple=True, separator=".") for path, _ in tree_flatten_with_path(argument)[0]]
        arguments += [Argument(kind, _leaf_name(label, kind, path)) for path in paths]
    return _trace(function, abstract_args, name or getattr(function, "__name__", "function"), arguments)


def trace_model(config: ModelConfig, configuration: Configuration, dtype: str) -> Traced:
    """Traces a model of `models.family` in one configuration.

    Decoders take (parameters, tokens [batch, new], start [batch], lengths [batch], cache), the cache a list of (keys,
    values) for each layer, each [batch, context, heads, size] as `DecoderConfig.cache_shapes` says; they return
    (logits, cache), the logits of the last new token, or in a verify step of all of them. Encoders take (parameters,
    tokens [batch, new], lengths [batch]) and return vectors.

    Args:
        config: The model's architecture.
        configuration: The shapes to trace for.
        dtype: Of weights and cache, e.g. "bfloat16".

    Raises:
        ConfigurationError: if the phase is not one of this kind of model, or the dtype is unknown.
    """
    is_decoder = isinstance(config, DecoderConfig)
    phases = ("prefill", "decode", "verify") if is_decoder else ("embed",)  # "train" is `train.trace_training`'s
    if configuration.phase not in phases:
        raise ConfigurationError(
            f"a {config.family} model has no phase {configuration.phase!r}; it has {', '.join(phases)}"
        )
    try:
        model = build(config, dtype)
    except TypeError:
        raise ConfigurationError(f"unknown dtype {dtype!r}; use float32, bfloat16 or float16") from None
    batch = jax.ShapeDtypeStruct((configuration.batch,), jnp.int32)
    tokens = jax.ShapeDtypeStruct((configuration.batch, configuration.new_tokens), jnp.int32)
    name = f"{config.architecture if isinstance(config, DecoderConfig) else config.family}/{configuration.id}"
    arguments = [Argument("parameter", path) for path in sorted(model.parameters)]
    arguments += [Argument("input", label) for label in (("tokens", "start", "lengths")[:: 1 if is_decoder else 2])]
    if not isinstance(config, DecoderConfig):
        return _trace(model, (model.parameters, tokens, batch), name, arguments)
    key, value = (
        jax.ShapeDtypeStruct((configuration.batch, configuration.context, *shape), jnp.dtype(dtype))
        for shape in config.cache_shapes
    )
    cache = [(key, value)] * config.num_layers
    arguments += [
        Argument("cache", f"cache.{layer}.{part}") for layer in range(config.num_layers) for part in ("key", "value")
    ]
    function = model.verify if configuration.phase == "verify" else model
    return _trace(function, (model.parameters, tokens, batch, batch, cache), name, arguments)


def _trace(
    function: Callable[..., object],
    abstract_args: Sequence[AbstractArgument],
    name: str,
    arguments: Sequence[Argument],
) -> Traced:
    jaxpr, results = jax.make_jaxpr(function, return_shape=True)(*abstract_args)
    reading = read_jaxpr(jaxpr, name, arguments)
    return Traced(
        graph=reading.graph,
        jaxpr=jaxpr,
        equations=reading.equations,
        constants=reading.constants,
        in_names=tuple(argument.name for argument in arguments),
        in_tree=jax.tree.structure(tuple(abstract_args)),
        out_tree=jax.tree.structure(results),
    )


def _argument_names(function: Callable[..., object], num_arguments: int) -> list[str]:
    """Names of the positional parameters of a function, or args.0, args.1, ... where it has none to tell."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        parameters = ()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in positional]
    return [*names, *(f"args.{index}" for index in range(len(names), num_arguments))][:num_arguments]


def _leaf_name(label: str, kind: ValueKind, path: str) -> str:
    if kind == "parameter" and path:
        return path
    return f"{label}.{path}" if path else label
