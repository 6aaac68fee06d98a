from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bundle_factory import exported_program
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export, lax

from plait.compiler.bundle.programs import ALLOWED_CUSTOM_CALLS, check_custom_calls, load_exported
from plait.errors import BundleIntegrityError

MATRIX = jax.ShapeDtypeStruct((4, 4), jnp.float32)


def test_program_runs_after_loading() -> None:
    loaded = load_exported(exported_program())
    np.testing.assert_array_equal(loaded.call(jnp.array([1.0, 2.0])), [2.0, 4.0])


def rows() -> jax.ShapeDtypeStruct:
    (num_rows,) = export.symbolic_shape("num_rows")
    return jax.ShapeDtypeStruct((num_rows, 8), jnp.float32)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jax.nn.gelu(x, approximate=False),
        lambda x: lax.top_k(x, 2),
        lambda x: lax.approx_max_k(x, 2),
        lambda x: jnp.cumsum(x, 0),
        lambda x: jax.random.uniform(jax.random.key(0, impl="rbg"), x.shape),
        lambda x: lax.cond(x[0, 0] > 0, lax.erf, jnp.sort, x),
    ],
    ids=["gelu", "top_k", "approx_max_k", "cumsum", "random", "cond"],
)
def test_programs_over_symbolic_shapes_are_allowed(function) -> None:
    exported = export.export(jax.jit(function), platforms=["cpu", "cuda"])(rows())
    load_exported(bytes(exported.serialize()))


def export_with(function, target: str) -> export.Exported:
    return export.export(jax.jit(function), disabled_checks=[export.DisabledSafetyCheck.custom_call(target)])(MATRIX)


@pytest.mark.parametrize(
    ("function", "target"),
    [
        (jnp.linalg.cholesky, "lapack_spotrf_ffi"),
        (lambda x: lax.fori_loop(0, 3, lambda _, y: jnp.linalg.cholesky(y), x), "lapack_spotrf_ffi"),
        (lambda x: jax.ffi.ffi_call("run_anything", MATRIX)(x), "run_anything"),
    ],
    ids=["cholesky", "inside a loop", "foreign function"],
)
def test_custom_call_that_is_not_on_the_list_is_refused(function, target: str) -> None:
    data = bytes(export_with(function, target).serialize())
    with pytest.raises(BundleIntegrityError, match=f"decode.stablehlo calls '{target}', which is not among the custom"):
        load_exported(data, name="decode.stablehlo")


def module_of(body: str) -> bytes:
    """A module as text, which the reader of modules takes as well."""
    return (
        f"module {{ func.func @main(%a: tensor<f32>) -> tensor<f32> {{ {body}\n return %a : tensor<f32> }} }}".encode()
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('%0 = "stablehlo.custom_call"(%a) {call_target_name = "x"} : (tensor<f32>) -> tensor<f32>', "calls 'x'"),
        ('%0 = stablehlo.custom_call @"x y"(%a) : (tensor<f32>) -> tensor<f32>', "calls 'x y'"),
        (
            '%0 = "mhlo.custom_call"(%a) {call_target_name = "Sharding"} : (tensor<f32>) -> tensor<f32>',
            "has the operation 'mhlo.custom_call'",
        ),
        (
            '%t = stablehlo.create_token : !stablehlo.token\n %0 = "stablehlo.outfeed"(%a, %t) '
            ": (tensor<f32>, !stablehlo.token) -> !stablehlo.token",
            "has the operation 'stablehlo.outfeed'",
        ),
    ],
    ids=["generic form", "quoted name", "other dialect", "host channel"],
)
def test_ways_around_the_list_are_closed(body: str, message: str) -> None:
    exported = replace(export.deserialize(bytearray(exported_program())), mlir_module_serialized=module_of(body))
    with pytest.raises(BundleIntegrityError, match=message):
        check_custom_calls(exported)


def test_allowed_call_in_a_hand_written_module_passes() -> None:
    body = "%0 = stablehlo.custom_call @Sharding(%a) : (tensor<f32>) -> tensor<f32>"
    exported = replace(export.deserialize(bytearray(exported_program())), mlir_module_serialized=module_of(body))
    check_custom_calls(exported)
    assert "Sharding" in ALLOWED_CUSTOM_CALLS


def test_damaged_module_is_refused() -> None:
    exported = export.deserialize(bytearray(exported_program()))
    cut = replace(exported, mlir_module_serialized=exported.mlir_module_serialized[:-50])
    with pytest.raises(BundleIntegrityError, match="program has a damaged module"):
        check_custom_calls(cut)


def test_program_with_a_gradient_is_refused() -> None:
    exported = export.export(jax.jit(jnp.sin))(MATRIX)
    with pytest.raises(BundleIntegrityError, match="carries its gradient"):
        load_exported(bytes(exported.serialize(vjp_order=1)))


@pytest.mark.parametrize("data", [b"", b"abc", bytes(200), b"\xff" * 200, b"PK\x03\x04" * 50], ids=repr)
def test_junk_is_refused(data: bytes) -> None:
    with pytest.raises(BundleIntegrityError, match="is no exported program that this jax can read"):
        load_exported(data)


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 0.98))  # the last few bytes are padding
def test_program_cut_off_anywhere_is_refused(fraction: float) -> None:
    data = exported_program()
    with pytest.raises(BundleIntegrityError, match="program"):
        load_exported(data[: int(len(data) * fraction)])
