"""Exported programs: StableHLO that is looked through before it is run.

`jax.export.deserialize` accepts any program, also one whose custom calls run host code. `load_exported` therefore
parses the program's module and walks every operation in it: only the dialects that JAX exports to, no channel to the
host, and custom calls only from `ALLOWED_CUSTOM_CALLS`.
"""

from __future__ import annotations

from collections.abc import Iterator

from jax import export
from jax.extend.mlir import deserialize_portable_artifact, ir
from jax.interpreters.mlir import make_ir_context

from ...errors import BundleIntegrityError
from ..kernels import FEW_ROWS_PRODUCT, PAGED_ATTENTION

__all__ = ["ALLOWED_CUSTOM_CALLS", "check_custom_calls", "load_exported"]

ALLOWED_CUSTOM_CALLS = frozenset(
    {
        # annotations, which the compiler consumes
        "Sharding",
        "SPMDFullToShardShape",
        "SPMDShardToFullShape",
        "annotate_device_placement",
        "shape_assertion",
        # operations over dimensions that are symbolic in the export
        "stablehlo.dynamic_reduce_window",
        "stablehlo.dynamic_rng_bit_generator",
        "stablehlo.dynamic_top_k",
        # kernels that come with jaxlib: top-k and JAX's random numbers on GPUs
        "ApproxTopK",
        "stablehlo.dynamic_approx_top_k",
        "cu_threefry2x32_ffi",
        # kernels that come with plait, and look at what they are called with
        FEW_ROWS_PRODUCT,
        PAGED_ATTENTION,
    }
)

_DIALECTS = frozenset({"builtin", "func", "stablehlo", "chlo", "sdy"})
_HOST_CHANNELS = frozenset({"stablehlo.infeed", "stablehlo.outfeed", "stablehlo.send", "stablehlo.recv"})


def load_exported(data: bytes, *, name: str = "program", is_checked: bool = False) -> export.Exported:
    """Returns an exported program that is safe to compile and call.

    Args:
        data: What `Exported.serialize` gave.
        name: What to call the program in messages, e.g. its file.
        is_checked: Whether these very bytes were looked through before.

    Raises:
        BundleIntegrityError: if `data` is no exported program, carries a gradient, or is one that `check_custom_calls`
            refuses.
    """
    try:
        exported = export.deserialize(bytearray(data))
    except Exception as error:  # the reader is generated code: on junk it fails in whichever way it happens to
        raise BundleIntegrityError(
            f"{name} is no exported program that this jax can read: {_first_line(error)}; rebuild the bundle"
        ) from None
    if exported.has_vjp():
        raise BundleIntegrityError(
            f"{name} carries its gradient, which plait neither checks nor runs; export without it"
        )
    if not is_checked:
        check_custom_calls(exported, name=name)
    return exported


def check_custom_calls(exported: export.Exported, *, name: str = "program") -> None:
    """Checks that a program can do nothing but compute.

    Raises:
        BundleIntegrityError: if it has a custom call that is not on `ALLOWED_CUSTOM_CALLS`, an operation of another
            dialect, a channel to the host, or no well-formed module at all.
    """
    with make_ir_context():
        try:
            module = deserialize_portable_artifact(exported.mlir_module_serialized)
        except Exception as error:  # which exception is jaxlib's affair, and differs between versions
            raise BundleIntegrityError(f"{name} has a damaged module: {_first_line(error)}") from None
        for operation in _operations(module.operation):
            _check_operation(operation, name)


def _operations(root: ir.Operation) -> Iterator[ir.Operation]:
    """Yields an operation and all that are nested in it."""
    waiting = [root]
    while waiting:
        operation = waiting.pop()
        yield operation
        for region in operation.regions:
            for block in region:
                waiting.extend(inner.operation for inner in block)


def _check_operation(operation: ir.Operation, name: str) -> None:
    dialect = operation.name.partition(".")[0]
    if dialect not in _DIALECTS or operation.name in _HOST_CHANNELS:
        raise BundleIntegrityError(f"{name} has the operation {operation.name!r}, which no program of a bundle may use")
    if operation.name == "stablehlo.custom_call":
        target = ir.StringAttr(operation.attributes["call_target_name"]).value
        if target not in ALLOWED_CUSTOM_CALLS:
            raise BundleIntegrityError(
                f"{name} calls {target!r}, which is not among the custom calls that a bundle may make: "
                f"{', '.join(sorted(ALLOWED_CUSTOM_CALLS))}"
            )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
