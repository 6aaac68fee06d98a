"""From a configuration to a model without weights, and to the abstract arguments of each phase.

`build` gives a `ModelFunction`: a pure function of (parameters, inputs) that any JAX transformation takes, with the
shapes of its parameters. Nothing is initialized, so a 405-billion-parameter model costs as little as a small one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array

from .bert import Bert
from .config import DecoderConfig, ModelConfig
from .decoder import Decoder
from .layers import abstract_parameter

__all__ = ["ModelFunction", "Parameters", "build"]

Parameters = Mapping[str, jax.ShapeDtypeStruct | Array]  # by dotted Flax path, e.g. "layers.0.mlp.up.weight"


@dataclass(frozen=True, eq=False)  # hashed by identity, as `jax.jit` wants its functions
class ModelFunction:
    """A model as a pure function of its parameters."""

    config: ModelConfig
    parameters: dict[str, jax.ShapeDtypeStruct]  # shape and dtype by dotted Flax path, in order of first use
    module: Callable[[Parameters], nnx.Module]  # the NNX module holding given parameters

    def __call__(self, parameters: Parameters, *inputs):
        """Runs the model: `Decoder.__call__` or `Bert.__call__` with these parameters."""
        return self.module(parameters)(*inputs)  # type: ignore[operator]

    def verify(self, parameters: Parameters, *inputs):
        """Runs a decoder: `Decoder.verify` with these parameters."""
        return self.module(parameters).verify(*inputs)  # type: ignore[operator]


@functools.lru_cache(maxsize=8)  # making the modules of a hundred layers takes a second
def build(config: ModelConfig, dtype: DTypeLike) -> ModelFunction:
    """Returns the model of a configuration, its weights abstract: of `dtype`, or as their stored form has them."""
    make = abstract_parameter(dtype)
    model = Decoder(config, make) if isinstance(config, DecoderConfig) else Bert(config, make)
    graphdef, state = nnx.split(model)
    paths = [path for path, _ in nnx.to_flat_state(state)]
    abstract = {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}

    def module(parameters: Parameters) -> nnx.Module:
        flat = {path: parameters[".".join(map(str, path))] for path in paths}
        return nnx.merge(graphdef, nnx.traversals.unflatten_mapping(flat))

    return ModelFunction(config=config, parameters=abstract, module=module)
