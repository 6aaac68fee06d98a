"""Placing a model over several devices: one placement, which all its configurations keep.

Comes in: a model, its configurations, and the mesh that the bundle file asks for. Goes out: its `Placement`, and of
each configuration the stages to lower. The configuration that runs most is planned first (`partition/search.py`); it
decides where parameters and KV pools are, and the others are planned with these pinned. Of the KV caches only the
heads may be divided, and they are as far as they divide: a sequence's blocks lie anywhere in a pool.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from ...errors import ConfigurationError
from ...models.config import ModelConfig
from ..configuration import Configuration
from ..cut import StageCut, cut, one_stage
from ..graph import Graph, Operation, Value
from ..lower import lower_stage, pool_axes
from ..merge import Merge, find_merges
from ..mesh import Layout, Mesh, whole
from ..partition.plan import Sharding
from ..partition.search import partition
from ..product_form import ProductForm
from ..products import measure_products, product_shapes
from ..program import Program
from ..target import Target
from ..trace import Traced, trace_model
from .manifest import KVPlan
from .placement import Placement, StagePlacement

__all__ = ["PlacedModel", "place", "place_model", "stages_of"]

_LARGE_SHARE = 0.01  # of a model's parameters


@dataclass(frozen=True)
class PlacedModel:
    """A model and where it goes."""

    config: ModelConfig
    dtype: str
    target: Target
    placement: Placement | None  # None: whole on one device
    merges: tuple[Merge, ...] = ()  # parameters that are stored as one
    products: tuple[ProductForm, ...] = ()  # the forms in which products of a few rows are fastest here

    @property
    def mesh(self) -> Mesh:
        """The mesh of one stage."""
        return Mesh((), ()) if self.placement is None else self.placement.mesh

    def lower(self, stage: StageCut, configuration: Configuration, num_blocks: int) -> Program:
        """Returns the program of one stage of a configuration; over a mesh it is for pools of so many blocks only."""
        blocks = num_blocks if self.mesh.num_devices > 1 else None
        return lower_stage(
            stage,
            self.config,
            configuration,
            self.dtype,
            self.target,
            num_blocks=blocks,
            merges=self.merges,
            products=self.products,
        )

    def stages(self, configuration: Configuration) -> tuple[Traced, tuple[StageCut, ...]]:
        """Returns one configuration as traced, and its stages.

        Raises:
            ConfigurationError: if it has no plan with parameters and caches where they are.
        """
        traced = trace_model(self.config, configuration, self.dtype)
        if self.placement is None:
            return traced, (one_stage(traced),)
        sharding = None
        if self.mesh.num_devices > 1:
            pins = dict(_pins(traced, self.placement))
            plan = partition(traced, self.target, dtype=self.dtype, mesh=self.mesh, num_stages=1, pins=pins)
            sharding = plan.sharding
        return traced, stages_of(traced, self.placement, sharding)


def place_model(
    config: ModelConfig,
    configurations: Sequence[Configuration],
    dtype: str,
    target: Target,
    *,
    mesh: Mesh,
    num_stages: int,
    kv: KVPlan | None,
) -> PlacedModel:
    """Decides where a model's parameters and KV pools go.

    Args:
        config: The architecture.
        configurations: All that it is served in.
        dtype: Of weights and KV cache.
        target: The machine.
        mesh: Of one stage.
        num_stages: Pipeline stages.
        kv: The KV pool, of a decoder.

    Raises:
        ConfigurationError: if the model does not divide so.
        DoesNotFitError: if a device cannot hold its part.
    """
    if mesh.num_devices * num_stages == 1:
        graph = trace_model(config, configurations[0], dtype).graph
        merges = find_merges(graph)
        products = measure_products(product_shapes(graph, merges)) if kv else ()
        return PlacedModel(config, dtype, target, None, merges, products)
    if num_stages > config.num_layers:
        raise ConfigurationError(
            f"{config.family} model of {config.num_layers} layers does not make {num_stages} pipeline stages; "
            f"ask for {config.num_layers} at most"
        )
    busiest = max(configurations, key=lambda each: (each.phase in ("decode", "embed"), each.batch * each.new_tokens))
    traced = trace_model(config, busiest, dtype)
    pins = {**_cache_pins(traced, mesh), **_table_pins(traced, mesh)}
    plan = partition(traced, target, dtype=dtype, mesh=mesh, num_stages=num_stages, pins=pins)
    points = (*(stage.begin for stage in plan.stages), len(traced.graph.operations))
    return PlacedModel(config, dtype, target, place(traced, points, plan.sharding, kv))


def place(traced: Traced, points: Sequence[int], sharding: Sharding, kv: KVPlan | None) -> Placement:
    """Returns the placement that a plan of one configuration means for the model.

    Args:
        traced: The configuration.
        points: Operations before which stages begin, and the number of operations.
        sharding: Over one stage's mesh.
        kv: The KV pool, of a decoder.
    """
    graph, mesh = traced.graph, sharding.mesh
    inputs = [graph.values[value] for value in graph.inputs]
    layouts = dict(zip(graph.inputs, sharding.inputs, strict=True))
    heads = pool_axes(sharding, inputs)
    num_layers = len({_layer(value) for value in inputs if value.kind == "cache"})
    pool_bytes = kv.pool_bytes // num_layers // mesh.num_shards(heads) if kv else 0
    stages: list[StagePlacement] = []
    for begin, end in pairwise(points):
        read = {value for operation in graph.operations[begin:end] for value in operation.inputs}
        parameters = [value for value in inputs if value.kind == "parameter" and value.id in read]
        layers = sorted({_layer(value) for value in inputs if value.kind == "cache" and value.id in read})
        stages.append(
            StagePlacement(
                parameters={value.name: layouts[value.id].dims for value in parameters},
                layers=tuple(layers),
                weights_bytes=sum(value.bytes // mesh.num_shards(layouts[value.id].axes) for value in parameters),
                kv_bytes=len(layers) * pool_bytes,
            )
        )
    return Placement(mesh.shape, heads, tuple(stages))


def stages_of(traced: Traced, placement: Placement, sharding: Sharding | None) -> tuple[StageCut, ...]:
    """Returns the stages of one configuration of a placed model: each begins with the first operation that needs it.

    Args:
        traced: The configuration.
        placement: The model's.
        sharding: Of the configuration over one stage's mesh; None if that is one device.

    Raises:
        ConfigurationError: if an operation needs what two stages have.
    """
    graph = traced.graph
    needs = [_stored(operation, graph) for operation in graph.operations]
    points = [0]
    passed: set[str] = set()
    for stage in placement.stages[:-1]:
        passed |= _names(stage)
        points.append(next((i for i, names in enumerate(needs) if names - passed), len(needs)))
    points.append(len(needs))
    for stage, (begin, end) in zip(placement.stages, pairwise(points), strict=True):
        missing = set().union(*needs[begin:end]) - _names(stage)
        if missing or begin >= end:
            what = f"{min(missing)!r} is not" if missing else "nothing is"
            raise ConfigurationError(f"{graph.name} cannot be cut into its model's stages: {what} in one of them")
    return cut(traced, points, sharding)


def _names(stage: StagePlacement) -> set[str]:
    return {*stage.parameters, *(_cache_name(layer) for layer in stage.layers)}


def _stored(operation: Operation, graph: Graph) -> set[str]:
    """Returns the names of the parameters and caches that an operation reads; both caches of a layer have one."""
    values = (graph.values[value] for value in operation.inputs)
    return {
        _cache_name(_layer(value)) if value.kind == "cache" else value.name
        for value in values
        if value.kind in ("parameter", "cache")
    }


def _cache_name(layer: int) -> str:
    return f"cache.{layer}"


def _layer(cache: Value) -> int:
    return int(cache.name.split(".")[1])


def _cache_pins(traced: Traced, mesh: Mesh) -> dict[int, tuple[Layout, ...]]:
    """Allows caches, before and after the step, the layouts that divide their heads over most devices."""
    caches = [value for value in traced.graph.inputs if traced.graph.values[value].kind == "cache"]
    pins: dict[int, tuple[Layout, ...]] = {}
    for value in (*caches, *traced.graph.outputs[1:]):
        heads = traced.graph.values[value].shape[2]
        pins[value] = tuple(Layout(((), (), axes, ())) for axes in _widest(heads, mesh))
    return pins


def _table_pins(traced: Traced, mesh: Mesh) -> dict[int, tuple[Layout, ...]]:
    """Allows large parameters, those of vocabularies, the layouts that divide one dim over most devices.

    To look rows up in a whole table sends nothing, so a plan that has memory left would keep it on every device, where
    other models could be.
    """
    graph = traced.graph
    pins: dict[int, tuple[Layout, ...]] = {}
    for value in (graph.values[value] for value in graph.inputs):
        if value.kind == "parameter" and value.bytes >= _LARGE_SHARE * graph.parameter_bytes:
            each = [(dim, axes) for dim, size in enumerate(value.shape) for axes in _widest(size, mesh)]
            most = max(mesh.num_shards(axes) for _, axes in each)
            rank = len(value.shape)
            pins[value.id] = tuple(
                Layout(tuple(axes if i == dim else () for i in range(rank)))
                for dim, axes in each
                if mesh.num_shards(axes) == most
            )
    return pins


def _widest(size: int, mesh: Mesh) -> list[tuple[str, ...]]:
    """Returns the sets of axes that divide a size into most parts."""
    sets = [axes for count in range(len(mesh.axes) + 1) for axes in combinations(mesh.axes, count)]
    able = [axes for axes in sets if size % mesh.num_shards(axes) == 0]
    most = max(mesh.num_shards(axes) for axes in able)
    return [axes for axes in able if mesh.num_shards(axes) == most]


def _pins(traced: Traced, placement: Placement) -> Iterator[tuple[int, tuple[Layout, ...]]]:
    """Yields of each parameter and each cache, before and after the step, the one layout that it has."""
    graph = traced.graph
    dims = {name: axes for stage in placement.stages for name, axes in stage.parameters.items()}
    cache = Layout(((), (), placement.pool_axes, ()))
    for value in graph.inputs:
        about = graph.values[value]
        if about.kind == "parameter":
            yield value, (Layout(dims[about.name]) if about.name in dims else whole(len(about.shape)),)
        elif about.kind == "cache":
            yield value, (cache,)
    yield from ((value, (cache,)) for value in graph.outputs[1:])
