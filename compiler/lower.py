"""Lowering: from a traced graph to the programs that the stand-in devices run, as exported StableHLO.

Comes in: a `Traced` model in one configuration and a target, and its stages if it is partitioned. Goes out: a
`Program` for each stage. The equations of the graph are evaluated one by one, and each named op that the target has an
implementation for is replaced by it (`implementations.py`): what is planned and what runs are one graph. The dense KV
cache of the graph becomes a view of a paged pool: an opaque value that only `attention` looks into.

On one device the pool's number of blocks stays symbolic, so that one program serves any pool. Over a mesh each device
evaluates its parts inside `shard_map` (`apply.py`), where XLA has no symbolic sizes; of a pool it has some KV heads.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import jax
import jax.numpy as jnp
from jax import export
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array

from ..errors import ConfigurationError
from ..models.config import DecoderConfig, ModelConfig
from .apply import local_function
from .configuration import BLOCK_TOKENS, Configuration
from .cut import StageCut, one_stage
from .evaluate import evaluate_graph
from .graph import Value
from .implementations import implementations_for
from .kernels import FEW_ROWS_PRODUCT, PAGED_ATTENTION
from .kv_pool import pool_dtype, pool_layout, pool_shape
from .merge import Merge, merge_specs
from .mesh import Mesh
from .paged_attention import PagedView
from .partition.plan import Sharding
from .product_form import ProductForm
from .program import Program
from .target import Target
from .trace import Traced

__all__ = ["PLATFORMS", "lower", "lower_stage", "pool_axes"]

PLATFORMS = ("cpu", "cuda")  # that programs for one device are exported for
_DONATED_POOLS = (2,)
_OWN_CALLS = [  # whoever runs a program has them
    export.DisabledSafetyCheck.custom_call(name) for name in (FEW_ROWS_PRODUCT, PAGED_ATTENTION)
]
_CACHE_HEADS_DIM = 2
_WITH_MORE_PRODUCTS = ("rms_norm", "layer_norm", "rope")  # implementations that compute by products what the op doesn't


def pool_axes(sharding: Sharding, values: Sequence[Value]) -> tuple[str, ...]:
    """Returns the mesh axes that divide the KV heads of a sharding's caches, and so of all pools.

    Args:
        sharding: Of a model.
        values: The inputs of its graph, in order.

    Raises:
        ConfigurationError: if caches are divided in another way, or not all alike.
    """
    layouts = {layout for value, layout in zip(values, sharding.inputs, strict=True) if value.kind == "cache"}
    heads = {layout.dims[_CACHE_HEADS_DIM] for layout in layouts}
    if len(heads) > 1 or any(layout.axes != layout.dims[_CACHE_HEADS_DIM] for layout in layouts):
        found = ", ".join(sorted(map(str, layouts)))
        raise ConfigurationError(
            f"KV caches of a served model are divided over their heads alone, and all alike; the plan has {found}: "
            "pin the caches to one such layout"
        )
    return next(iter(heads), ())


def lower(
    traced: Traced,
    config: ModelConfig,
    configuration: Configuration,
    dtype: str,
    target: Target,
    *,
    merges: Sequence[Merge] = (),
    products: Sequence[ProductForm] = (),
) -> Program:
    """Lowers a traced model for one device of a target.

    Args:
        traced: The model in this configuration, from `trace_model`.
        config: Its architecture.
        configuration: The shapes to lower for.
        dtype: Of weights and KV cache.
        target: Picks the implementations of the named ops.
        merges: Parameters that are stored as one.
        products: The forms in which products of a few rows are fastest.
    """
    stage = one_stage(traced)
    return lower_stage(stage, config, configuration, dtype, target, merges=merges, products=products)


def lower_stage(
    stage: StageCut,
    config: ModelConfig,
    configuration: Configuration,
    dtype: str,
    target: Target,
    *,
    num_blocks: int | None = None,
    merges: Sequence[Merge] = (),
    products: Sequence[ProductForm] = (),
) -> Program:
    """Lowers one stage of a traced model, for one device or for a mesh.

    Args:
        stage: The stage, from `cut`.
        config: The model's architecture.
        configuration: The shapes to lower for.
        dtype: Of weights and KV cache.
        target: Picks the implementations of the named ops.
        num_blocks: Of each KV pool; None for a number that is chosen when the program is compiled, on one device only.
        merges: Parameters that are stored as one, on one device only.
        products: The forms in which products of a few rows are fastest.

    Raises:
        ConfigurationError: if the sharding divides KV caches other than over their heads.
    """
    step = _Step(stage, dtype, target, merges, products)
    arguments = _arguments(stage, config, configuration, dtype, num_blocks, merges)
    function, platforms = step.run, PLATFORMS
    if stage.sharding is not None:
        # For several platforms, JAX makes each all-gather a branch for each of them. XLA's CPU devices then exchange
        # what two such branches gather at the same time, and write past the ends of arrays.
        platforms = (export.default_export_platform(),)
        mesh = _abstract_mesh(stage.sharding.mesh)
        in_specs, out_specs = _specs(stage, arguments)
        arguments = jax.tree.map(
            lambda aval, spec: jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=NamedSharding(mesh, spec)),
            arguments,
            in_specs,
        )
        function = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    exported = export.export(
        jax.jit(function, donate_argnums=_DONATED_POOLS), platforms=platforms, disabled_checks=_OWN_CALLS
    )(*arguments)
    return Program(configuration, exported, _DONATED_POOLS, stage.takes, stage.gives)


_Arguments: TypeAlias = tuple[dict[str, object], dict[str, object], list[object], list[object]]


@dataclass(frozen=True)
class _Step:
    """What one device computes of a stage."""

    stage: StageCut
    dtype: str
    target: Target
    merges: Sequence[Merge]
    products: Sequence[ProductForm]

    def run(
        self, parameters: dict[str, Array], inputs: dict[str, Array], pools: list[Array], handed: list[Array]
    ) -> tuple[list[Array], list[Array]]:
        """Returns what the stage hands on and its pools, from arguments as `Program` has them."""
        stage, graph = self.stage, self.stage.traced.graph
        views = {
            layer: PagedView(pool, inputs["tables"], self.dtype)
            for layer, pool in zip(_layers(stage), pools, strict=True)
        }
        handed_values = dict(zip(stage.takes, handed, strict=True))
        parts = {name: part for merge in self.merges for name, part in merge.parts(parameters[merge.name]).items()}

        def content(value: Value) -> object:
            if value.id in handed_values:
                return handed_values[value.id]
            if value.kind == "cache":
                return views[_layer(value)]
            if value.name in parts:
                return parts[value.name]
            return parameters[value.name] if value.kind == "parameter" else inputs[value.name]

        results = self._evaluate([content(graph.values[value]) for value in graph.inputs])
        given, extended = results[: len(stage.gives)], results[len(stage.gives) :]
        return cast(list[Array], given), [cast(PagedView, view).pool for view in extended[::2]]

    def _evaluate(self, arguments: list[object]) -> list[object]:
        traced, sharding = self.stage.traced, self.stage.sharding
        implementations = implementations_for(self.target, self.products)
        if sharding is None:
            return evaluate_graph(traced, arguments, implementations)
        if "attention" in implementations:
            # Products between collectives can hold each other up for ever on a CPU's few threads: no more than need be.
            paged = functools.partial(
                implementations["attention"], head_axes=_head_axes(traced, sharding), sum_rows=_plain_sums
            )
            implementations = {name: each for name, each in implementations.items() if name not in _WITH_MORE_PRODUCTS}
            implementations["attention"] = paged
        evaluate = local_function(traced, sharding, self.target.network, implementations=implementations)
        return list(evaluate(*arguments))


def _plain_sums(x: Array) -> Array:
    return jnp.sum(x, axis=-1)


def _head_axes(traced: Traced, sharding: Sharding) -> tuple[str, ...]:
    """Returns the mesh axes that divide the heads of attention.

    Raises:
        ConfigurationError: if anything else of it is divided, or not all layers alike: a view of a pool cannot be.
    """
    pairs = zip(traced.graph.operations, sharding.operations, strict=True)
    queries = {division.operands[0] for operation, division in pairs if operation.name == "attention"}
    heads = {layout.dims[_CACHE_HEADS_DIM] for layout in queries}
    if len(heads) > 1 or any(layout.axes != layout.dims[_CACHE_HEADS_DIM] for layout in queries):
        raise ConfigurationError(
            "attention of a served model is divided over its heads alone, and in all layers alike; the plan has "
            f"queries {', '.join(sorted(map(str, queries)))}"
        )
    return next(iter(heads), ())


def _layer(cache: Value) -> int:
    return int(cache.name.split(".")[1])


def _layers(stage: StageCut) -> tuple[int, ...]:
    """Layers whose caches the stage has, ascending."""
    graph = stage.traced.graph
    caches = (graph.values[value] for value in graph.inputs if graph.values[value].kind == "cache")
    return tuple(sorted({_layer(cache) for cache in caches}))


def _arguments(
    stage: StageCut,
    config: ModelConfig,
    configuration: Configuration,
    dtype: str,
    num_blocks: int | None,
    merges: Sequence[Merge],
) -> _Arguments:
    """Abstract arguments of a stage's program."""
    values = stage.traced.graph.values
    inputs = [values[value] for value in stage.traced.graph.inputs]
    integers = {"tokens": (configuration.batch, configuration.new_tokens), "lengths": (configuration.batch,)}
    pools: list[object] = []
    if isinstance(config, DecoderConfig):
        integers["start"] = (configuration.batch,)
        integers["tables"] = (configuration.batch, -(-configuration.context // BLOCK_TOKENS))
        size = cast(int, export.symbolic_shape("num_blocks")[0]) if num_blocks is None else num_blocks
        pool = jax.ShapeDtypeStruct(pool_shape(config, size), pool_dtype(dtype))
        pools = [pool] * len(_layers(stage))
    specs = {value.name: (value.shape, jnp.dtype(value.dtype)) for value in inputs if value.kind == "parameter"}
    return (
        {name: jax.ShapeDtypeStruct(*spec) for name, spec in merge_specs(specs, merges).items()},
        {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in integers.items()},
        pools,
        [_abstract(values[value]) for value in stage.takes],
    )


def _abstract_mesh(mesh: Mesh) -> AbstractMesh:
    return AbstractMesh(mesh.sizes, mesh.axes, axis_types=(AxisType.Auto,) * len(mesh.axes))


def _abstract(value: Value) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(value.shape, jnp.dtype(value.dtype))


def _specs(stage: StageCut, arguments: _Arguments) -> tuple[object, object]:
    """How the arguments and the results of a stage's program lie over the mesh, as `shard_map` has it."""
    sharding, graph = stage.sharding, stage.traced.graph
    assert sharding is not None
    values = [graph.values[value] for value in graph.inputs]
    specs = {v.id: layout.partition_spec() for v, layout in zip(values, sharding.inputs, strict=True)}
    by_name = {value.name: specs[value.id] for value in values if value.name}
    pools = [pool_layout(pool_axes(sharding, values)).partition_spec()] * len(arguments[2])
    in_specs = (
        {name: by_name[name] for name in arguments[0]},
        {name: by_name.get(name, PartitionSpec()) for name in arguments[1]},
        pools,
        [specs[value] for value in stage.takes],
    )
    given = zip(stage.gives, sharding.outputs, strict=False)  # caches follow
    return in_specs, ([layout.partition_spec() for _, layout in given], pools)
