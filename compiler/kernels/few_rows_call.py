"""The product of a few rows as a call that XLA's CPU backend makes: what it is given is looked at first."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float
from numba import njit

from .call_frame import (
    BFLOAT16,
    F32,
    buffer_at,
    describe,
    failure,
    frame_at,
    has_type,
    operand,
    result,
    size_of,
)
from .few_rows import JOB, OUTPUTS, VALUES, job_at, multiply_unit
from .memory import allocate, function_address, text_address
from .registration import register_once
from .threads import share, taking_part

__all__ = ["FEW_ROWS_PRODUCT", "few_rows_product", "register_few_rows_product", "supports_few_rows_product"]

FEW_ROWS_PRODUCT = "plait_few_rows_product"  # the name of the custom call

_PART = f"{FEW_ROWS_PRODUCT}_part"  # the symbol of what each thread does
_X, _WEIGHT = range(2)  # operands
_UNIT_BYTES = 1 << 16  # of the weight, about as many

_JOB_BYTES = JOB.itemsize
_part_address = function_address(_PART)
_message = text_address("a product of few rows is called with operands that it does not take")


@njit(nogil=True)
def _no_bytes(job):
    return 0


_take_part = taking_part(multiply_unit, _no_bytes)


@njit(nogil=True)
def _is_well_formed(frame):
    """Whether operands and result are of the right types, and their sizes belong together."""
    counts = frame_at(frame)
    if counts.num_operands != _WEIGHT + 1 or counts.num_results != 1:
        return False
    x, weight, out = operand(frame, _X), operand(frame, _WEIGHT), result(frame, 0)
    if not (has_type(x, BFLOAT16, 2) and has_type(weight, BFLOAT16, 2) and has_type(out, F32, 2)):
        return False
    return (
        size_of(x, 1) == size_of(weight, 1)
        and size_of(out, 0) == size_of(x, 0)
        and size_of(out, 1) == size_of(weight, 0)
        and size_of(x, 1) % VALUES == 0
        and size_of(weight, 0) % OUTPUTS == 0
    )


@njit(nogil=True)
def _answer(frame):
    """Carries out a call; returns 0, or the address of an error."""
    if describe(frame):
        return 0
    if not _is_well_formed(frame):
        return failure(frame, _message())
    address = allocate(_JOB_BYTES)
    job = job_at(address)
    x, weight = operand(frame, _X), operand(frame, _WEIGHT)
    job.x, job.weight, job.out = buffer_at(x).data, buffer_at(weight).data, buffer_at(result(frame, 0)).data
    job.rows, job.in_size, job.out_size = size_of(x, 0), size_of(x, 1), size_of(weight, 0)
    job.unit_outputs = max(_UNIT_BYTES // (2 * job.in_size) // OUTPUTS, 1) * OUTPUTS
    job.num_units = (job.out_size + job.unit_outputs - 1) // job.unit_outputs
    share(frame, address, _part_address())
    return 0


def _part(version: int) -> Callable[[int], int]:
    return lambda job: _take_part(job) if version else 0


def _handler(version: int) -> Callable[[int], int]:
    return lambda frame: _answer(frame) if version else 0


def register_few_rows_product() -> None:
    """Makes the kernel known to XLA's CPU backend, once; several threads may ask for it."""
    register_once(FEW_ROWS_PRODUCT, _handler, _PART, _part)


def supports_few_rows_product(out_size: int, in_size: int, dtype: str) -> bool:
    """Whether the kernel takes a weight of these sizes and this type."""
    return dtype == "bfloat16" and in_size % VALUES == 0 and out_size % OUTPUTS == 0


def few_rows_product(x: BFloat16[Array, "rows in"], weight: BFloat16[Array, "out in"]) -> Float[Array, "rows out"]:
    """The product of rows with a weight, summed in f32; for CPU only.

    Args:
        x: A few rows; of more, the weight's lines are turned anew for each eight.
        weight: Of sizes that `supports_few_rows_product`.
    """
    register_few_rows_product()
    shape = jax.ShapeDtypeStruct((x.shape[0], weight.shape[0]), jnp.float32)
    return jax.ffi.ffi_call(FEW_ROWS_PRODUCT, shape)(x, weight)
