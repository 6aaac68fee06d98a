"""What collectives cost: the alpha-beta model.

A collective over k devices takes a latency for each step and its bytes at the bandwidth of one device (Hockney 1994;
the byte counts are those of the bandwidth-optimal algorithms in Thakur, Rabenseifner and Gropp 2005). Where all devices
are connected to all others a gather, a scatter or an exchange is one step; on a ring it is k - 1. An all-reduce is a
reduce-scatter and an all-gather. Nothing hides behind compute but the share that the target states.
"""

from __future__ import annotations

from ..mesh import CollectiveKind
from ..target import Network

__all__ = ["collective_seconds", "steps_and_traffic"]


def collective_seconds(kind: CollectiveKind, num_bytes: float, num_devices: int, network: Network) -> float:
    """Returns the time that a collective takes and nothing hides.

    Args:
        kind: Of the collective.
        num_bytes: Of the larger of one device's operand and result.
        num_devices: In its group.
        network: That it runs over.
    """
    if num_devices == 1:
        return 0.0
    rate = network.collectives.get(kind, network)
    steps, traffic = steps_and_traffic(kind, num_devices, network.topology)
    seconds = steps * rate.latency_seconds + traffic * num_bytes / rate.bandwidth_bytes_per_s
    return seconds * (1.0 - network.overlap)


def steps_and_traffic(kind: CollectiveKind, num_devices: int, topology: str) -> tuple[int, float]:
    """Returns the number of steps, and the share of the bytes that a device sends."""
    if kind == "permute":
        return 1, 1.0
    once = 1 if topology == "all_to_all" else num_devices - 1
    share = (num_devices - 1) / num_devices
    return (2 * once, 2 * share) if kind == "all_reduce" else (once, share)
