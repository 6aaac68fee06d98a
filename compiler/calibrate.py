"""Calibration: what this machine computes and copies in a second, as a target.

Comes in: a target to start from, whose tiers and links say what to measure. Goes out: the same target with measured
rates; capacities, memory kinds and all else are kept, each number with its source. A measured rate is what a program
gets, so its efficiency is 1. Each rate is the median of several runs, the first of which doesn't count.
The disk links are measured on a file in the page cache, as a bundle's weights are after they were verified: a file
that has to come from the disk itself is slower.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from typing import IO

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import TargetError
from .calibrate_network import calibrate_network
from .executable import device_sharding
from .target import Link, Target, Tier
from .target_sources import with_sources

__all__ = ["NUM_MEASUREMENTS", "CalibrationSizes", "calibrate", "measured_when"]

NUM_MEASUREMENTS = 5  # steps that `progress` is told of
_ALIGNMENT = 64  # bytes
_DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class CalibrationSizes:
    """How much is computed and copied."""

    product_rows: int = 512  # as many as a long prefill has
    product_size: int = 2048  # of the square weights
    read_bytes: int = 256 << 20  # more than any cache holds
    tensor_bytes: int = 3_538_944  # of a weight of 1536 x 576 in f32
    num_tensors: int = 24  # of one copy
    num_runs: int = 5


def calibrate(
    base: Target,
    *,
    pace: bool | None = None,
    num_devices: int | None = None,
    sizes: CalibrationSizes | None = None,
    progress: Callable[[int], None] | None = None,
) -> Target:
    """Measures this machine.

    Args:
        base: The target to start from.
        pace: Whether copies are kept to the links' rates; as in `base` by default.
        num_devices: Between which collectives are measured; by default none are.
        sizes: How much is computed and copied.
        progress: Told how many of `NUM_MEASUREMENTS` are done.

    Returns:
        A target named after `base` with measured rates and latencies; `sources` says which numbers were measured.

    Raises:
        TargetError: if this machine lacks a memory that `base` names, or `base` is none that runs here.
    """
    _check_runs_here(base)
    chosen = sizes or CalibrationSizes()
    report = progress or (lambda done: None)
    report(0)
    flops_per_s = {dtype: _product_rate(_DTYPES[dtype], chosen) for dtype in base.compute.flops_per_s}
    report(1)
    launch_seconds = _launch_seconds(chosen)
    report(2)
    tiers = {name: _measured_tier(tier, chosen) for name, tier in base.tiers.items()}
    report(3)
    links = {name: _measured_link(name, link, base, pace, chosen) for name, link in base.links.items()}
    report(4)
    network = base.network
    if num_devices is not None:
        network = calibrate_network(network, num_devices, num_runs=3 * chosen.num_runs)
    report(5)
    when = measured_when()
    measured = dataclasses.replace(
        base,
        name=f"{base.name.removesuffix('-calibrated')}-calibrated",
        compute=dataclasses.replace(
            base.compute, flops_per_s=flops_per_s, launch_seconds=launch_seconds, efficiency=1.0
        ),
        tiers=tiers,
        links=links,
        network=network,
        num_devices=num_devices or base.num_devices,
        source=f"{when}; disk links on a file in the page cache",
    )
    return with_sources(measured, base, _sources(measured, when))


def measured_when() -> str:
    """Returns the source of a number that is measured now."""
    today = date.today().isoformat()
    return f"measured by `plait calibrate` on {today} with jax {jax.__version__} on {os.cpu_count()} CPUs"


def _sources(measured: Target, when: str) -> dict[str, str]:
    """Returns where the numbers are from that calibration sets, by their keys."""
    sources = {f"compute.flops_per_s.{dtype}": f"{when}: a product" for dtype in measured.compute.flops_per_s}
    sources["compute.launch_seconds"] = f"{when}: a step that computes next to nothing"
    sources["compute.efficiency"] = "measured: 1, the rates are what a product gets"
    for name in measured.tiers:
        sources[f"tiers.{name}.bandwidth_bytes_per_s"] = f"{when}: a product with one row"
        sources[f"tiers.{name}.efficiency"] = "measured: 1, the bandwidth is what a product gets"
    for kind in measured.network.collectives:
        sources[f"network.collectives.{kind}.latency_seconds"] = f"{when}: on a few bytes"
        sources[f"network.collectives.{kind}.bandwidth_bytes_per_s"] = f"{when}: on 4 MiB"
    if measured.network.collectives:
        sources["num_devices"] = "measured: between so many"
        sources["network.latency_seconds"] = sources["network.bandwidth_bytes_per_s"] = f"{when}: an all-reduce"
    for name in measured.links:
        where = ", a file in the page cache" if name.startswith("disk->") else ""
        sources[f"links.{name}.bandwidth_bytes_per_s"] = f"{when}: copies of many tensors{where}"
        sources[f"links.{name}.latency_seconds"] = f"{when}: a copy of one element{where}"
    return sources


def _check_runs_here(base: Target) -> None:
    there = {memory.kind for memory in jax.devices()[0].addressable_memories()}
    for name, tier in base.tiers.items():
        if tier.memory_kind not in there:
            raise TargetError(
                f"target {base.name!r} cannot be measured here: its {name} is memory kind {tier.memory_kind!r}, this "
                f"machine has {', '.join(sorted(there))}; start from cpu, cpu-tiered or gpu"
            )
    if unknown := sorted(set(base.compute.flops_per_s) - set(_DTYPES)):
        raise TargetError(
            f"target {base.name!r} has a rate for {unknown[0]!r}; products of {' and '.join(_DTYPES)} can be measured"
        )


def _median_seconds(run: Callable[[], object], num_runs: int) -> float:
    """Returns the median time of a run whose result is waited for; the first run compiles and warms up."""
    seconds = []
    for _ in range(num_runs + 1):
        began = time.perf_counter()
        result = jax.block_until_ready(run())
        seconds.append(time.perf_counter() - began)
        del result
    return max(statistics.median(seconds[1:]), 1e-9)


def _product_rate(dtype: jax.typing.DTypeLike, sizes: CalibrationSizes) -> float:
    """Returns the FLOPs a second of a product with weights [out, in], as the models have them."""
    rows = jnp.ones((sizes.product_rows, sizes.product_size), dtype)
    weights = jnp.ones((sizes.product_size, sizes.product_size), dtype)
    dimensions = (((1,), (1,)), ((), ()))
    product = jax.jit(lambda x, w: jax.lax.dot_general(x, w, dimensions, preferred_element_type=jnp.float32))
    seconds = _median_seconds(lambda: product(rows, weights), sizes.num_runs)
    return 2.0 * sizes.product_rows * sizes.product_size**2 / seconds


def _launch_seconds(sizes: CalibrationSizes) -> float:
    """Returns the time of a step that computes next to nothing."""
    step = jax.jit(lambda x: x + 1)
    x = jnp.zeros((8,), jnp.float32)
    return _median_seconds(lambda: step(x), 20 * sizes.num_runs)


def _measured_tier(tier: Tier, sizes: CalibrationSizes) -> Tier:
    """Returns a tier with the rate at which a product with one row reads weights there."""
    sharding = device_sharding(tier.memory_kind)
    weights = jax.device_put(np.ones((sizes.read_bytes // 4096, 1024), np.float32), sharding)
    row = jax.device_put(np.ones((1024,), np.float32), sharding)
    product = jax.jit(lambda w, x: w @ x, out_shardings=device_sharding(jax.devices()[0].default_memory().kind))
    seconds = _median_seconds(lambda: product(weights, row), sizes.num_runs)
    return dataclasses.replace(tier, bandwidth_bytes_per_s=weights.nbytes / seconds, efficiency=1.0)


def _measured_link(name: str, link: Link, base: Target, pace: bool | None, sizes: CalibrationSizes) -> Link:
    source, _, destination = name.partition("->")
    sharding = device_sharding(base.tiers[destination].memory_kind)
    with tempfile.TemporaryFile() as file:
        tensors = _tensors_on_disk(file, sizes) if source == "disk" else _tensors_in(base.tiers[source], sizes)
        seconds = _median_seconds(lambda: [_put(tensor, sharding) for tensor in tensors], sizes.num_runs)
        tiny = jax.block_until_ready(tensors[0][:1])
        latency_seconds = _median_seconds(lambda: _put(tiny, sharding), 4 * sizes.num_runs)
    num_bytes = sum(tensor.nbytes for tensor in tensors)
    return Link(num_bytes / seconds, latency_seconds, link.pace if pace is None else pace)


def _tensors_in(tier: Tier, sizes: CalibrationSizes) -> list[jax.Array]:
    sharding = device_sharding(tier.memory_kind)
    values = [np.full(sizes.tensor_bytes // 4, index, np.float32) for index in range(sizes.num_tensors)]
    return [jax.block_until_ready(jax.device_put(value, sharding)) for value in values]


def _tensors_on_disk(file: IO[bytes], sizes: CalibrationSizes) -> list[np.ndarray]:
    """Returns views of the mapped file."""
    shape = (sizes.num_tensors, sizes.tensor_bytes // 4)
    written = np.memmap(file, np.float32, "w+", shape=shape)
    written[:] = 1.0
    return list(written)


def _put(tensor: np.ndarray | jax.Array, sharding: jax.sharding.Sharding) -> jax.Array:
    """Copies a tensor as a switch does: a mapped one into memory of its own first."""
    source = _aligned_copy(tensor) if isinstance(tensor, np.ndarray) else tensor
    return jax.block_until_ready(jax.device_put(source, sharding))


def _aligned_copy(values: np.ndarray) -> np.ndarray:
    """Returns a copy that JAX takes over, instead of copying it once more."""
    raw = np.empty(values.nbytes + _ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % _ALIGNMENT
    copy = raw[offset : offset + values.nbytes].view(values.dtype).reshape(values.shape)
    np.copyto(copy, values)
    return copy
