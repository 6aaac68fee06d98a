"""What runs in the place of the named ops on CPU targets.

Each function here computes what the op of the same name in `models.layers` defines, in the form that XLA's CPU
backend runs well:

- `linear`: a product with fewer than 8 rows falls into a naive loop when its weights are bf16; padded to 8 rows it is
  a library call, and its result does not depend on how many sequences share the step. Where its weights are merged
  with those of others (`merge.py`), it is a slice of one product. With weights stored as `int8` it is a product of
  integers, for which `x` is rounded too.
- `rms_norm`, `layer_norm`: with sums that do not depend on the number of rows (`batch_invariant.py`).
- `attention`, `latent_attention`: over a paged pool (`paged_attention.py`).
- `moe`: one expert after the other, those that nobody chose passed over.
- `self_attention`: one sequence at a time, so that scores never exist for a whole batch.
- `vocabulary_max`: over slabs of the vocabulary, so that logits never exist for a whole sequence.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..models import layers
from ..models.config import Activation, Rope
from ..models.moe import expert_activation
from ..models.named_ops import Option
from . import batch_invariant
from .batch_invariant import padded_rows
from .merge import MergedPart
from .paged_attention import attention, latent_attention
from .product_form import KERNEL, ProductForm, WeightShape, slices_of
from .products import MAX_KERNEL_ROWS, MAX_SLICED_ROWS
from .target import Target

__all__ = ["implementations_for"]

_SLAB_VALUES = 1 << 20  # logits that exist at once in vocabulary_max


def implementations_for(target: Target, products: Sequence[ProductForm] = ()) -> dict[str, Callable[..., object]]:
    """Returns the implementations of named ops on a target; an op that has none runs as `models.layers` defines it.

    Args:
        target: Where they run.
        products: The forms in which products of a few rows are fastest there.
    """
    if not any(tier.memory_kind for tier in target.tiers.values()):
        return {}
    return {
        "linear": functools.partial(linear, slices=slices_of(products)),
        "rope": rope,
        "rms_norm": batch_invariant.rms_norm,
        "layer_norm": batch_invariant.layer_norm,
        "attention": attention,
        "latent_attention": latent_attention,
        "moe": moe,
        "self_attention": self_attention,
        "vocabulary_max": vocabulary_max,
    }


def linear(
    x: Float[Array, "... in"],
    weight: Array | MergedPart,
    *scales_and_bias: Array | MergedPart,
    slices: Mapping[WeightShape, int] = MappingProxyType({}),
    **options: Option,
) -> Float[Array, "... out"]:
    """`batch_invariant.linear`, or `int8_linear` of such a weight; a part of a merged product as a slice of that one.

    Args:
        x: As there, as are `scales_and_bias` and `options`.
        weight: Likewise, or a part of a merged weight.
        *scales_and_bias: Likewise.
        slices: In which form weights of some (out, in, type) are multiplied with a few rows; see `products.py`.
        **options: Likewise.
    """
    whole, *rest = (part.whole if isinstance(part, MergedPart) else part for part in (weight, *scales_and_bias))
    num_rows, count = math.prod(x.shape[:-1]), slices.get((whole.shape[0], whole.shape[1], str(whole.dtype)), 1)
    if num_rows > (MAX_KERNEL_ROWS if count == KERNEL else MAX_SLICED_ROWS):
        count = 1
    if options.get("form") == "int8":
        product = batch_invariant.int8_linear(x, whole, *rest, slices=count)
    elif count == 1 or options:
        product = batch_invariant.linear(x, whole, *rest, **options)
    elif count == KERNEL:
        product = batch_invariant.kernel_linear(x, whole, *rest)
    else:
        product = batch_invariant.sliced_linear(x, whole, *rest, slices=count)
    return product[..., weight.begin : weight.end] if isinstance(weight, MergedPart) else product


def rope(
    x: Float[Array, "batch seq heads size"], positions: Int[Array, "batch seq"], **options: Option
) -> Float[Array, "batch seq heads size"]:
    """`layers.rope` with its cosines and sines computed once for all heads and layers."""
    spec = Rope(**options)  # type: ignore[arg-type]
    cos, sin = layers.rotary_tables(positions, spec, x.shape[-1])
    return layers.rotate(x, batch_invariant.materialized(cos), batch_invariant.materialized(sin), spec)


def moe(
    x: Float[Array, "rows hidden"],
    weights: Float[Array, "rows chosen"],
    chosen: Int[Array, "rows chosen"],
    *arrays: Array,
    activation: Activation,
    has_bias: bool = False,
    form: str = "",
    dtype: str = "",
) -> Float[Array, "rows hidden"]:
    """`moe.moe`, one expert after the other: those that no row chose are passed over, and nothing is gathered.

    XLA's CPU backend computes a product by groups for every group, and copies the weights that a gather picks.
    """
    size = len(arrays) // 3
    rows = padded_rows(x, axis=0)

    def product(values: Array, part: tuple[Array, ...], expert: Array) -> Array:
        held = [jax.lax.dynamic_index_in_dim(array, expert, keepdims=False) for array in part]
        options = {"form": form, "dtype": dtype} if form else {}
        return layers.linear(values, *held, **options)

    def add(expert: Array, total: Array) -> Array:
        share = jnp.sum(jnp.where(chosen == expert, weights, 0.0), axis=1)

        def compute() -> Array:
            gate, up = (product(rows, arrays[i * size : (i + 1) * size], expert) for i in range(2))
            inner = expert_activation(gate.astype(jnp.float32), up.astype(jnp.float32), activation)
            out = product(inner, arrays[2 * size :], expert)[: x.shape[0]]
            return total + out.astype(jnp.float32) * share[:, None]

        return jax.lax.cond(jnp.any(chosen == expert), compute, lambda: total)

    del has_bias  # a product takes its bias as it comes
    total = jax.lax.fori_loop(0, arrays[0].shape[0], add, jnp.zeros(x.shape, jnp.float32))
    return total.astype(x.dtype)


def self_attention(
    query: Float[Array, "batch seq heads size"],
    key: Float[Array, "batch seq heads size"],
    value: Float[Array, "batch seq heads size"],
    lengths: Int[Array, " batch"],
    *,
    scale: float,
) -> Float[Array, "batch seq heads size"]:
    """`layers.self_attention`, one sequence after the other."""

    def one(operands: tuple[Array, ...]) -> Array:
        rows = (operand[None] for operand in operands)
        return layers.self_attention(*rows, scale=scale)[0]

    return jax.lax.map(one, (query, key, value, lengths))


def vocabulary_max(
    x: Float[Array, "batch seq hidden"],
    weight: Float[Array, "vocab hidden"],
    bias: Float[Array, " vocab"],
    lengths: Int[Array, " batch"],
) -> Float[Array, "batch vocab"]:
    """`layers.vocabulary_max`, one slab of the vocabulary after the other."""
    batch, sequence, _ = x.shape
    vocab = weight.shape[0]
    slab = min(vocab, max(64, _SLAB_VALUES // (batch * sequence)))

    def one(index: Array, out: Array) -> Array:
        first = jnp.minimum(index * slab, vocab - slab)
        rows = jax.lax.dynamic_slice_in_dim(weight, first, slab)
        shift = jax.lax.dynamic_slice_in_dim(bias, first, slab)
        part = layers.vocabulary_max(x, rows, shift, lengths)
        return jax.lax.dynamic_update_slice_in_dim(out, part, first, axis=1)

    return jax.lax.fori_loop(0, -(-vocab // slab), one, jnp.zeros((batch, vocab)))
