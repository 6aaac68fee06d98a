"""A model made narrow: the same structure in sizes that a CPU runs at once, for verifying the plan of a large one.

Every size keeps what it has in common with the number of devices, so that what divided evenly still does; sizes of 1
stay 1, and what was more stays more. Sizes that were equal need not be: decisions are taken over by name, not by shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from ...models.config import DecoderConfig, EncoderConfig, Experts, LatentAttention, ModelConfig
from ...models.quantization import FP8_BLOCK
from ..configuration import Configuration

__all__ = ["narrowed"]

_BLOCK = 32  # values that share a scale in the stored forms but fp8


def narrowed(
    model: ModelConfig, configuration: Configuration, layers: Sequence[int], num_devices: int
) -> Iterator[tuple[ModelConfig, Configuration]]:
    """Yields narrow models, the narrowest first: blocks of stored weights leave less room, as they don't shrink.

    Args:
        model: The model.
        configuration: Its phase and shapes.
        layers: Of the model's layers those that are kept, ascending.
        num_devices: Of the mesh, over which what divides shall divide still.
    """
    shapes = _narrow_configuration(configuration, num_devices)
    if isinstance(model, EncoderConfig):
        yield _narrow_encoder(model, shapes, layers, num_devices), shapes
        return
    shares = (False, True) if model.stored_form else (True,)
    for whole_experts, whole_rest in product(shares, shares):
        sizes = _Sizes(num_devices, model, whole_rest)
        yield (
            _narrow_decoder(model, configuration, shapes, layers, sizes, _Sizes(num_devices, model, whole_experts)),
            shapes,
        )


@dataclass(frozen=True)
class _Sizes:
    """How sizes of a decoder shrink."""

    num_devices: int
    model: DecoderConfig
    keeps_blocks: bool  # whether the number of a stored weight's blocks divides as it did

    def of(self, size: int, factor: int = 1) -> int:
        """Returns a size that divides over as many devices; `factor` times the smallest, if it is not more."""
        return min(size, _shrunk(size, self.num_devices) * factor)

    def stored(self, size: int, factor: int) -> int:
        """Returns the same of rows or columns of weights that may be stored in blocks."""
        if self.model.stored_form is None:
            return self.of(size, factor)
        block = FP8_BLOCK if self.model.stored_form == "fp8" else _BLOCK
        num_blocks, rest = divmod(size, block)
        if not num_blocks:
            return size
        return _shrunk(num_blocks, self.num_devices if self.keeps_blocks else 1) * block + rest


def _shrunk(size: int, num_devices: int) -> int:
    """Returns the least size over 1 that has the same divisors in common with the number of devices."""
    common = math.gcd(size, num_devices)
    return common if common > 1 or size == 1 else min(size, 2)


def _narrow_configuration(configuration: Configuration, num_devices: int) -> Configuration:
    new = _shrunk(configuration.new_tokens, num_devices)
    context = _shrunk(configuration.context, num_devices)
    if configuration.new_tokens == configuration.context:
        context = new
    elif context <= new or configuration.phase == "decode":
        context *= new // context + 2
    return replace(configuration, batch=_shrunk(configuration.batch, num_devices), new_tokens=new, context=context)


def _narrow_encoder(
    model: EncoderConfig, shapes: Configuration, layers: Sequence[int], num_devices: int
) -> EncoderConfig:
    heads = _shrunk(model.num_heads, num_devices)
    head = _shrunk(model.hidden_size // model.num_heads, num_devices)
    hidden = math.lcm(heads * head, _shrunk(model.hidden_size, num_devices))
    step = _shrunk(model.max_positions, num_devices)
    return replace(
        model,
        num_layers=len(layers),
        hidden_size=hidden,
        num_heads=heads,
        intermediate_size=3 * _shrunk(model.intermediate_size, num_devices),
        vocab_size=5 * _shrunk(model.vocab_size, num_devices),
        max_positions=-(-(shapes.context + model.position_offset) // step) * step,
    )


def _narrow_decoder(
    model: DecoderConfig,
    wide: Configuration,
    shapes: Configuration,
    layers: Sequence[int],
    sizes: _Sizes,
    expert_sizes: _Sizes,
) -> DecoderConfig:
    is_stored = model.stored_form is not None
    kv_heads = sizes.of(model.num_kv_heads)
    heads = kv_heads * sizes.of(model.num_heads // model.num_kv_heads)
    # Rows of a stored weight are those of all heads: these keep their size, so that blocks end where heads do.
    head = model.head_size if is_stored else _even(sizes.of(model.head_size))
    if is_stored:
        factor = 2 if 2 * heads <= model.num_heads and model.num_kv_heads % (2 * kv_heads) == 0 else 1
        heads, kv_heads = factor * heads, factor * kv_heads
    turning = model.rope.size if model.rope is not None else 0
    if turning and not is_stored:
        head = 2 * head
    latent = model.latent and _narrow_latent(model.latent, sizes, is_stored)
    if latent is not None and model.latent is not None and not is_stored:
        is_sum = model.head_size == model.latent.nope_size + model.latent.rope_size
        head = latent.nope_size + latent.rope_size if is_sum else head
    ropes = [
        rope and replace(rope, size=head // 2 if rope.size and not is_stored else rope.size)
        for rope in (model.rope, model.sliding_rope)
    ]
    return replace(
        model,
        num_layers=len(layers),
        hidden_size=sizes.stored(model.hidden_size, 2),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head,
        intermediate_size=sizes.stored(model.intermediate_size, 3),
        vocab_size=sizes.of(model.vocab_size, 5),
        rope=ropes[0],
        sliding_rope=ropes[1],
        window=_narrow_window(model.window, wide, shapes),
        sliding_layers=_kept(model.sliding_layers, layers),
        ropeless_layers=_kept(model.ropeless_layers, layers),
        experts=model.experts and _narrow_experts(model.experts, layers, sizes, expert_sizes),
        latent=latent,
    )


def _kept(chosen: Sequence[int], layers: Sequence[int]) -> tuple[int, ...]:
    """Returns the new numbers of those layers that are kept."""
    return tuple(number for number, layer in enumerate(layers) if layer in chosen)


def _even(size: int) -> int:
    return size if size % 2 == 0 else 2 * size


def _narrow_window(window: int, wide: Configuration, shapes: Configuration) -> int:
    """Returns a window that leaves something of the context out if the wide one does."""
    if not window or window + wide.new_tokens - 1 >= wide.context:
        return window and max(window, shapes.context)
    return max(1, min(window, (shapes.context - shapes.new_tokens) // 2))


def _narrow_latent(latent: LatentAttention, sizes: _Sizes, is_stored: bool) -> LatentAttention:
    return replace(
        latent,
        query_rank=latent.query_rank and sizes.stored(latent.query_rank, 1),
        latent_size=sizes.stored(latent.latent_size, 1),
        rope_size=latent.rope_size if is_stored else _even(sizes.of(latent.rope_size)),
        nope_size=latent.nope_size if is_stored else sizes.of(latent.nope_size),
        value_size=latent.value_size if is_stored else sizes.of(latent.value_size),
    )


def _narrow_experts(experts: Experts, layers: Sequence[int], sizes: _Sizes, expert_sizes: _Sizes) -> Experts:
    groups, chosen = sizes.of(experts.num_groups), sizes.of(experts.experts_per_token)
    groups_per_token = min(experts.groups_per_token, groups)
    step = math.lcm(sizes.of(experts.num_experts), groups)
    number = step
    while number // groups < 2 or number // groups * groups_per_token < chosen or number <= chosen:
        number += step
    return replace(
        experts,
        num_experts=min(number, experts.num_experts),
        experts_per_token=chosen,
        num_groups=groups,
        groups_per_token=groups_per_token,
        intermediate_size=expert_sizes.stored(experts.intermediate_size, 1),
        shared_intermediate_size=experts.shared_intermediate_size and sizes.stored(experts.shared_intermediate_size, 1),
        dense_layers=_kept(experts.dense_layers, layers),
    )
