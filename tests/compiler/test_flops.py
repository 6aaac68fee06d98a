"""FLOP counts against closed forms, and against XLA's where XLA counts right and where it does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from plait.compiler.trace import trace

F32 = jnp.float32


def abstract(*shape, dtype=F32):
    return jax.ShapeDtypeStruct(shape, dtype)


def flops(function, *arguments):
    return trace(function, *arguments).graph.flops


def xla_flops(function, *arguments):
    analysis = jax.jit(function).lower(*arguments).compile().cost_analysis()
    assert analysis is not None
    return analysis["flops"]


def scan_of_products(x, weights):
    return lax.scan(lambda carry, weight: (carry @ weight, None), x, weights)[0]


def nested_scan(x, weights):
    def outer(carry, weight):
        return lax.scan(lambda inner, _: (inner @ weight, None), carry, None, length=5)[0], None

    return lax.scan(outer, x, weights)[0]


def cond_of_products(predicate, x):
    return lax.cond(predicate, lambda a: a @ a @ a, lambda a: a @ a, x)


def counted_while(x):
    return lax.while_loop(lambda state: state[0] < 20, lambda state: (state[0] + 3, state[1] @ state[1]), (0, x))[1]


def fori_with_bound_in_carry(x):
    return lax.fori_loop(0, jnp.int32(6), lambda _, a: a @ a, x)


def while_counting_down(x):
    return lax.while_loop(lambda s: s[0] >= 1, lambda s: (s[0] - 1, s[1] @ s[1]), (jnp.int32(4), x))[1]


def while_in_scan(x):
    return lax.scan(lambda a, _: (counted_while(a), None), x, None, length=3)[0]


PRODUCT = 2 * 16**3

LOOPS = {
    "scan": (scan_of_products, (abstract(16, 16), abstract(9, 16, 16)), 9 * PRODUCT),
    "nested scan": (nested_scan, (abstract(16, 16), abstract(4, 16, 16)), 4 * 5 * PRODUCT),
    "while with a step of 3": (counted_while, (abstract(16, 16),), 7 * PRODUCT),
    "fori_loop": (fori_with_bound_in_carry, (abstract(16, 16),), 6 * PRODUCT),
    "while counting down": (while_counting_down, (abstract(16, 16),), 4 * PRODUCT),
    "while in scan": (while_in_scan, (abstract(16, 16),), 3 * 7 * PRODUCT),
    "cond": (cond_of_products, (abstract(dtype=bool), abstract(16, 16)), 2 * PRODUCT),
}


@pytest.mark.parametrize(("function", "arguments", "expected"), LOOPS.values(), ids=LOOPS)
def test_counts_loops_and_branches_exactly_where_xla_does_not(function, arguments, expected):
    assert flops(function, *arguments) == expected
    assert xla_flops(function, *arguments) != expected


def mlp(x, up, down):
    return jnp.dot(x @ up, down)


def test_agrees_with_xla_on_plain_products():
    arguments = (abstract(8, 32), abstract(32, 64), abstract(64, 16))
    expected = 2 * 8 * 32 * 64 + 2 * 8 * 64 * 16
    assert flops(mlp, *arguments) == expected == xla_flops(mlp, *arguments)


CONVOLUTIONS = {
    "valid": {"window_strides": (1, 1), "padding": "VALID"},
    "same": {"window_strides": (1, 1), "padding": "SAME"},
    "strided": {"window_strides": (2, 2), "padding": "SAME"},
    "transposed": {"window_strides": (1, 1), "padding": ((1, 2), (2, 1)), "lhs_dilation": (2, 2)},
    "dilated kernel": {"window_strides": (1, 1), "padding": "SAME", "rhs_dilation": (2, 2)},
}


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_counts_convolutions_as_xla_does(options):
    arguments = (abstract(2, 3, 12, 12), abstract(5, 3, 3, 3))

    def convolve(x, kernel):
        return lax.conv_general_dilated(x, kernel, **options)

    assert flops(convolve, *arguments) == xla_flops(convolve, *arguments)


def test_counts_a_valid_convolution_by_its_closed_form():
    def grouped(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", feature_group_count=3)

    assert flops(grouped, abstract(2, 6, 10, 10), abstract(9, 2, 3, 3)) == 2 * (2 * 9 * 8 * 8) * (2 * 3 * 3)


SINGLE = {
    "add": (lambda x: x + 1.0, 24),
    "exp is one": (jnp.exp, 24),
    "comparison": (lambda x: x > 0.0, 24),
    "select is movement": (lambda x: lax.select(jnp.ones((4, 6), bool), x, x), 0),
    "convert is movement": (lambda x: x.astype(jnp.bfloat16), 0),
    "transpose is movement": (lambda x: x.T, 0),
    "integer arithmetic": (lambda x: lax.iota(jnp.int32, 24) * 2 + 1, 0),
    "sum": (lambda x: jnp.sum(x, axis=1), 24 - 4),
    "sum of all": (jnp.sum, 23),
    "max": (lambda x: jnp.max(x, axis=0), 24 - 6),
    "argmax": (lambda x: jnp.argmax(x, axis=1), 24 - 4),
    "cumsum": (lambda x: jnp.cumsum(x, axis=1), 4 * 5),
    "reduce with a function": (lambda x: lax.reduce(x, 0.0, lambda a, b: a * b + b, (1,)), 2 * (24 - 4)),
    "window sum": (lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 3), (1, 1), "VALID"), 4 * 4 * 2),
    "scatter": (lambda x: x.at[0].set(1.0), 0),
    "scatter-add": (lambda x: x.at[0].add(1.0), 6),
    "cond of equals": (lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x), 1 + 24),
    "remat": (jax.checkpoint(lambda x: jnp.sin(x) * x), 48),
    "custom jvp": (jax.nn.relu, 24),
    "jit in jit": (jax.jit(jax.jit(jnp.tanh)), 24),
}


@pytest.mark.parametrize(("function", "expected"), SINGLE.values(), ids=SINGLE)
def test_counts_by_the_stated_convention(function, expected):
    graph = trace(function, abstract(4, 6)).graph
    assert graph.flops == expected
    assert not graph.is_estimate


def test_counts_an_int8_product_like_any_other():
    def product(x, y):
        return lax.dot(x, y, preferred_element_type=jnp.int32)

    assert flops(product, abstract(3, 5, dtype=jnp.int8), abstract(5, 7, dtype=jnp.int8)) == 2 * 3 * 5 * 7


def test_counts_a_complex_product_as_four_real_ones():
    assert flops(jnp.dot, abstract(3, 5, dtype=jnp.complex64), abstract(5, 7, dtype=jnp.complex64)) == 8 * 3 * 5 * 7


def test_counts_a_ragged_product_once_a_row_however_many_groups():
    sizes = abstract(4, dtype=jnp.int32)
    assert flops(lax.ragged_dot, abstract(10, 3), abstract(4, 3, 7), sizes) == 2 * 10 * 3 * 7


def test_backward_pass_of_a_ragged_product_costs_twice_the_forward_pass():
    def loss(x, weights, sizes):
        return jnp.sum(lax.ragged_dot(x, weights, sizes))

    arguments = (abstract(10, 3), abstract(4, 3, 7), abstract(4, dtype=jnp.int32))
    graph = trace(jax.grad(loss, argnums=(0, 1)), *arguments).graph
    products = [operation.flops for operation in graph.operations if operation.name == "ragged_dot_general"]
    assert products == [2 * 10 * 3 * 7] * 3


def while_until_small(x):
    return lax.while_loop(lambda a: jnp.sum(a) > 1.0, lambda a: a @ a, x)


def while_with_a_bound_from_data(x, bound):
    return lax.fori_loop(0, bound, lambda _, a: a @ a, x)


def while_that_wraps_around(x):
    start = jnp.int8(100)
    return lax.while_loop(lambda s: s[0] > 0, lambda s: (s[0] + jnp.int8(50), s[1] @ s[1]), (start, x))[1]


UNKNOWN = {
    "test on data": (while_until_small, (abstract(4, 4),)),
    "bound from data": (while_with_a_bound_from_data, (abstract(4, 4), abstract(dtype=jnp.int32))),
    "counter that wraps": (while_that_wraps_around, (abstract(4, 4),)),
    "branches that differ": (cond_of_products, (abstract(dtype=bool), abstract(4, 4))),
    "sort": (jnp.sort, (abstract(8),)),
}


@pytest.mark.parametrize(("function", "arguments"), UNKNOWN.values(), ids=UNKNOWN)
def test_flags_what_depends_on_data_as_an_estimate(function, arguments):
    assert trace(function, *arguments).graph.is_estimate


def test_counts_one_trip_of_a_loop_of_unknown_length():
    (loop,) = trace(while_with_a_bound_from_data, abstract(4, 4), abstract(dtype=jnp.int32)).graph.operations
    assert (loop.trip_count, loop.flops) == (1, 2 * 4**3)


@settings(deadline=None, max_examples=40)
@given(
    start=st.integers(-20, 20),
    bound=st.integers(-20, 20),
    step=st.sampled_from([-3, -1, 1, 2, 5]),
    test=st.sampled_from(["lt", "le", "gt", "ge", "ne"]),
    is_flipped=st.booleans(),
)
def test_trip_counts_agree_with_running_the_loop(start, bound, step, test, is_flipped):
    compare = {"lt": int.__lt__, "le": int.__le__, "gt": int.__gt__, "ge": int.__ge__, "ne": int.__ne__}[test]
    primitive = getattr(lax, test)

    def condition(state):
        sides = (state[0], jnp.int32(bound))
        return primitive(*(reversed(sides) if is_flipped else sides))

    def loop(x):
        return lax.while_loop(condition, lambda s: (s[0] + step, s[1] * 2.0), (jnp.int32(start), x))[1]

    counter, trips = start, 0
    while (compare(bound, counter) if is_flipped else compare(counter, bound)) and trips < 100:
        counter, trips = counter + step, trips + 1
    (operation,) = trace(loop, abstract(4)).graph.operations
    assert operation.is_estimate == (trips == 100)
    assert operation.is_estimate or operation.flops == 4 * trips


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_products_of_two_operands_cost_two_flops_an_index_tuple(data):
    letters = data.draw(st.lists(st.sampled_from("abcde"), min_size=1, max_size=5, unique=True))
    sizes = {letter: data.draw(st.integers(1, 4)) for letter in letters}
    left = data.draw(st.permutations(letters))
    # Every letter is on both sides or kept: else einsum sums it away before the product.
    right = data.draw(st.lists(st.sampled_from(letters), unique=True))
    both = [letter for letter in letters if letter in right]
    out = [letter for letter in letters if letter not in both or data.draw(st.booleans())]
    spec = f"{''.join(left)},{''.join(right)}->{''.join(out)}"
    arrays = [np.ones([sizes[letter] for letter in side], np.float32) for side in (left, right)]
    graph = trace(lambda x, y: jnp.einsum(spec, x, y), *arrays).graph
    products = [operation for operation in graph.operations if operation.name == "dot_general"]
    multiply_adds = np.einsum(f"{''.join(left)},{''.join(right)}->", *arrays)
    assert sum(operation.flops for operation in products) == 2 * int(multiply_adds)


def test_shard_map_counts_every_shard():
    mesh = jax.make_mesh((len(jax.devices()),), ("x",), axis_types=(AxisType.Auto,))
    rows = 2 * len(jax.devices())
    sharded = jax.shard_map(
        lambda x, y: x @ y, mesh=mesh, in_specs=(PartitionSpec("x"), PartitionSpec()), out_specs=PartitionSpec("x")
    )
    assert flops(sharded, abstract(rows, 3), abstract(3, 5)) == 2 * rows * 3 * 5


def test_gradient_of_a_product_costs_twice_the_product():
    def loss(x, weight):
        return jnp.sum(x @ weight)

    graph = trace(jax.grad(loss, argnums=(0, 1)), abstract(4, 8), abstract(8, 16)).graph
    products = [operation.flops for operation in graph.operations if operation.name == "dot_general"]
    assert products == [2 * 4 * 8 * 16] * 3


def test_a_primitive_without_a_rule_is_an_estimate():
    graph = trace(lambda x: jax.pure_callback(np.sin, x, x), abstract(8)).graph
    assert graph.is_estimate
