"""Reshards are run, and their cost is held against all ways that there are."""

import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from plait.compiler.mesh import Layout, Mesh
from plait.compiler.partition import reshard
from plait.compiler.partition.strategies import input_layouts
from plait.compiler.target import CollectiveRate, Network

NETWORK = Network(latency_seconds=1e-6, bandwidth_bytes_per_s=1e9)
MESHES = {"2": (2,), "2x2": (2, 2), "2x4": (2, 4), "2x2x2": (2, 2, 2)}


def mesh_of(sizes):
    return Mesh(("x", "y", "z")[: len(sizes)], sizes)


def layouts_of(shape, mesh):
    """All layouts, partial sums among them."""
    found = []
    for axes in itertools.chain.from_iterable(itertools.combinations(mesh.axes, n) for n in range(len(mesh.axes) + 1)):
        rest = [(axis, size) for axis, size in mesh.shape.items() if axis not in axes]
        others = Mesh(tuple(axis for axis, _ in rest), tuple(size for _, size in rest))
        found += [Layout(lay.dims, tuple((axis, "sum") for axis in axes)) for lay in input_layouts(shape, others)]
    return found


def parts_of(array, layout, mesh):
    """Returns what each device holds, [*mesh, *local shape]: of a partial sum only the first device anything."""
    parts = np.zeros((*mesh.sizes, *layout.local_shape(array.shape, mesh)), array.dtype)
    for place in itertools.product(*map(range, mesh.sizes)):
        at = dict(zip(mesh.axes, place, strict=True))
        if any(at[axis] for axis, _ in layout.partial):
            continue
        index = []
        for size, axes in zip(array.shape, layout.dims, strict=True):
            number = 0
            for axis in axes:
                number = number * mesh.shape[axis] + at[axis]
            part = size // mesh.num_shards(axes)
            index.append(slice(number * part, (number + 1) * part))
        parts[place] = array[tuple(index)]
    return parts


def run(parts, sequence, mesh):
    """Carries out steps on all devices at once."""
    rank = len(mesh.sizes)
    spec = PartitionSpec(*mesh.axes)

    def body(part):
        return reshard.apply(part.reshape(part.shape[rank:]), sequence, mesh)[(None,) * rank]

    function = jax.shard_map(body, mesh=mesh.devices(), in_specs=spec, out_specs=spec, check_vma=False)
    return np.asarray(jax.jit(function)(jnp.asarray(parts)))


@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES.keys())
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_steps_bring_an_array_to_the_layout_that_is_wanted(sizes, data):
    mesh, shape = mesh_of(sizes), data.draw(st.sampled_from([(8,), (8, 16), (4, 8, 8)]))
    layouts = layouts_of(shape, mesh)
    source, target = data.draw(st.sampled_from(layouts)), data.draw(st.sampled_from(layouts))
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    sequence = reshard.steps(shape, "float32", source, target, mesh, NETWORK)
    given_parts, wanted = parts_of(array, source, mesh), parts_of(array, target, mesh)
    assert sequence is not None
    made = run(given_parts, sequence, mesh)
    assert made.shape == wanted.shape
    if target.partial:  # which device holds what of a sum is not said
        axes = tuple(i for i, axis in enumerate(mesh.axes) if (axis, "sum") in target.partial)
        made, wanted = made.sum(axis=axes), wanted.sum(axis=axes)
    np.testing.assert_array_equal(made, wanted)


def test_a_partial_maximum_is_finished_before_anything_else():
    mesh = mesh_of((2, 2))
    sequence = reshard.steps((4, 4), "float32", Layout(((), ()), (("x", "max"),)), Layout((("x",), ())), mesh, NETWORK)
    assert sequence is not None
    assert next((step.kind, step.reduction) for step in sequence) == ("all_reduce", "max")
    parts = np.stack([np.full((4, 4), -1.0), np.arange(16.0).reshape(4, 4)])[:, None].repeat(2, axis=1)
    made = run(parts.astype(np.float32), sequence, mesh)
    np.testing.assert_array_equal(made[1, 0], np.arange(16.0).reshape(4, 4)[2:])


def test_known_reshards_take_the_steps_that_anyone_would_take():
    mesh, shape = mesh_of((2, 4)), (64, 64)

    def kinds(source, target):
        sequence = reshard.steps(shape, "float32", source, target, mesh, NETWORK)
        assert sequence is not None
        return [(step.kind, step.axes) for step in sequence]

    rows, columns, all_of_it = Layout((("y",), ())), Layout(((), ("y",))), Layout(((), ()))
    assert kinds(rows, columns) == [("all_to_all", ("y",))]
    assert kinds(rows, all_of_it) == [("all_gather", ("y",))]
    assert kinds(all_of_it, rows) == [("slice", ("y",))]
    assert kinds(Layout((("x",), ()), (("y", "sum"),)), Layout((("x",), ()))) == [("all_reduce", ("y",))]
    sums = Layout(((), ("x",)), (("y", "sum"),))
    assert kinds(sums, Layout((("y",), ("x",)))) == [("reduce_scatter", ("y",))]
    assert kinds(Layout((("x", "y"), ())), all_of_it) == [("all_gather", ("x", "y"))]
    assert kinds(Layout(((), ()), (("x", "sum"), ("y", "sum"))), all_of_it) == [("all_reduce", ("x", "y"))]


def test_devices_that_hold_the_same_share_the_work_of_an_all_reduce():
    mesh = mesh_of((2, 4))
    source, target = Layout(((), ()), (("y", "sum"),)), Layout(((), ()))
    sequence = reshard.steps((64, 64), "float32", source, target, mesh, NETWORK)
    assert sequence is not None
    assert [step.kind for step in sequence] == ["slice", "reduce_scatter", "all_gather"]
    assert reshard.seconds((64, 64), "float32", source, target, mesh, NETWORK) < 2e-6 + 2 * 0.75 * 64 * 64 * 4e-9


def test_a_dim_that_does_not_divide_cannot_be_divided():
    mesh = mesh_of((2,))
    assert reshard.steps((3, 4), "float32", Layout(((), ())), Layout((("x",), ())), mesh, NETWORK) is None
    costs = reshard.matrix((3, 4), "float32", [Layout(((), ()))], [Layout((("x",), ()))], mesh, NETWORK)
    assert np.isinf(costs).all()


def test_a_measured_rate_of_one_kind_counts_for_that_kind():
    mesh = mesh_of((4,))
    slow = Network(1e-6, 1e9, collectives={"all_gather": CollectiveRate(1.0, 1e9)})
    source, target = Layout((("x",), ())), Layout(((), ()))
    assert reshard.seconds((8, 8), "float32", source, target, mesh, NETWORK) == pytest.approx(1e-6 + 0.75 * 256e-9)
    assert reshard.seconds((8, 8), "float32", source, target, mesh, slow) == pytest.approx(1.0 + 0.75 * 256e-9)


def test_all_reshards_of_a_large_mesh_are_priced_quickly():
    mesh = Mesh(("x", "y", "z"), (4, 2, 2))
    layouts = input_layouts((64, 64, 64), mesh)
    begin = time.perf_counter()
    for size in range(64, 64 * 11, 64):
        reshard.matrix((size, 64, 64), "bfloat16", layouts, layouts, mesh, NETWORK)
    assert time.perf_counter() - begin < 3.0
