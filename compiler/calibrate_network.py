"""Calibration of the network: what collectives between this machine's devices take, as the alpha-beta model has them.

Comes in: a number of devices, virtual ones on a CPU. Goes out: a `Network` with a latency and a bandwidth for each kind
of collective. Each is run once and several times in one program, on a few bytes and on many; the fastest run counts.
What one more takes on a few bytes is the latency of its steps, what it takes more on many gives the bandwidth.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from ..errors import TargetError
from .mesh import CollectiveKind, Mesh
from .partition.network import steps_and_traffic
from .target import CollectiveRate, Network

__all__ = ["calibrate_network"]

_AXIS = "x"
_SMALL_ROWS = 1  # of a device
_LEAST_SECONDS = 1e-8
_REPETITIONS = 9


def calibrate_network(base: Network, num_devices: int, *, large_bytes: int = 4 << 20, num_runs: int = 30) -> Network:
    """Measures collectives between devices.

    Args:
        base: Gives topology and overlap, which are kept.
        num_devices: Between which is measured; `executable.provide_devices` makes them.
        large_bytes: That one device holds of the larger of operand and result.
        num_runs: Of which the fastest counts; one before does not.

    Returns:
        The network with a rate for each kind of collective; the general rate is that of an all-reduce.

    Raises:
        TargetError: if there is nothing to measure between fewer than two devices.
        ConfigurationError: if this process has not so many devices.
    """
    if num_devices < 2:
        raise TargetError(f"{num_devices} devices have nothing between them; give 2 or more")
    devices = Mesh((_AXIS,), (num_devices,)).devices()
    rates: dict[str, CollectiveRate] = {}
    for kind, (run, held) in _collectives(num_devices).items():
        steps, traffic = steps_and_traffic(kind, num_devices, base.topology)
        rows = max(1, large_bytes // (4 * held))
        small, large = (_seconds_each(devices, run, each, num_devices, num_runs) for each in (_SMALL_ROWS, rows))
        latency = max(small / steps, _LEAST_SECONDS)
        moved = max(large - small, _LEAST_SECONDS)
        rates[kind] = CollectiveRate(latency, traffic * 4 * held * (rows - _SMALL_ROWS) / moved)
    general = rates["all_reduce"]
    return dataclasses.replace(
        base,
        latency_seconds=general.latency_seconds,
        bandwidth_bytes_per_s=general.bandwidth_bytes_per_s,
        collectives=rates,
    )


def _collectives(num_devices: int) -> Mapping[CollectiveKind, tuple[Callable[[Array], Array], int]]:
    """Returns each kind as a function from a device's part [rows, devices] to as much, and how large a row gets."""
    ring = [(i, (i + 1) % num_devices) for i in range(num_devices)]

    def gather(x: Array) -> Array:
        return jax.lax.all_gather(x, _AXIS, axis=1, tiled=True)[:, ::num_devices]

    def scatter(x: Array) -> Array:
        return x + jax.lax.psum_scatter(x, _AXIS, scatter_dimension=1, tiled=True)

    return {
        "all_reduce": (lambda x: jax.lax.psum(x, _AXIS), num_devices),
        "all_gather": (gather, num_devices**2),
        "reduce_scatter": (scatter, num_devices),
        "all_to_all": (lambda x: jax.lax.all_to_all(x, _AXIS, 1, 1, tiled=True), num_devices),
        "permute": (lambda x: jax.lax.ppermute(x, _AXIS, ring), num_devices),
    }


def _seconds_each(
    devices: jax.sharding.Mesh, run: Callable[[Array], Array], rows: int, num_devices: int, num_runs: int
) -> float:
    """Returns what one more takes in a program that has several."""

    def several(x: Array) -> Array:
        for _ in range(_REPETITIONS):
            x = run(x) * 0.5  # so that no two are alike
        return x

    one, many = (_least_seconds(devices, each, rows, num_devices, num_runs) for each in (run, several))
    return max((many - one) / (_REPETITIONS - 1), _LEAST_SECONDS)


def _least_seconds(
    devices: jax.sharding.Mesh, run: Callable[[Array], Array], rows: int, num_devices: int, num_runs: int
) -> float:
    """Returns the shortest time of a function of each device's [rows, devices] f32."""
    spec = PartitionSpec(_AXIS, None)
    program = jax.jit(jax.shard_map(run, mesh=devices, in_specs=spec, out_specs=spec, check_vma=False))
    shape = (rows * num_devices, num_devices)
    x = jax.device_put(jnp.ones(shape, jnp.float32), jax.sharding.NamedSharding(devices, spec))
    seconds: list[float] = []
    for _ in range(num_runs + 1):
        began = time.perf_counter()
        jax.block_until_ready(program(x))
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
