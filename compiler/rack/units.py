"""Units: what is hot or warm as one, a model's copies on one window of devices, or models that decode together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...errors import ConfigurationError
from .plan import ModelPlan

__all__ = ["Unit", "units_of"]


@dataclass(frozen=True, eq=False)
class Unit:
    """Copies on the same devices; bytes are of one copy, int64 [devices of the target]."""

    models: tuple[str, ...]
    windows: tuple[int, ...]  # of each model, by number
    num_windows: int
    num_copies: int  # in this window
    all_copies: int  # in all windows
    pin: Literal["hbm", "ddr"] | None
    weights_bytes: np.ndarray
    kv_bytes: np.ndarray
    workspace_bytes: np.ndarray

    @property
    def arena_bytes(self) -> np.ndarray:
        """What it needs beside weights while it is busy; KV caches that are pinned are elsewhere."""
        return self.workspace_bytes + (0 if self.pin == "hbm" else self.kv_bytes)

    @property
    def pinned_kv_bytes(self) -> np.ndarray:
        """KV caches that never leave."""
        return self.kv_bytes if self.pin == "hbm" else np.zeros_like(self.kv_bytes)

    def copies(self, ordered: Sequence[int]) -> Sequence[int]:
        """Returns those of a model's copies that are in this window; copies are dealt out to windows in their order."""
        return ordered[self.windows[0] :: self.num_windows]


def units_of(models: Sequence[ModelPlan], pairs: Sequence[tuple[str, str]], num_devices: int) -> tuple[Unit, ...]:
    """Returns the units of a bundle.

    Args:
        models: All models.
        pairs: (draft, target) that are hot together.
        num_devices: Of the target.

    Raises:
        ConfigurationError: if models of a pair have copies, or contradicting pins.
    """
    by_name = {model.name: model for model in models}
    units: list[Unit] = []
    open_pairs = [pair for pair in pairs if by_name[pair[0]].pin != "hbm"]  # a pinned draft is hot anyway
    for names in _clusters(list(by_name), open_pairs):
        cluster = [by_name[name] for name in names]
        if len(cluster) == 1:
            units += [_unit(cluster, (number,), num_devices) for number in range(len(cluster[0].windows))]
            continue
        if several := [model.name for model in cluster if model.copies > 1]:
            raise ConfigurationError(f"{several[0]!r} has copies, so it cannot be in a pair for speculative decoding")
        units.append(_unit(cluster, (0,) * len(cluster), num_devices))
    return tuple(units)


def _clusters(names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Returns the names, those together that pairs connect."""
    cluster: dict[str, tuple[str, ...]] = {name: (name,) for name in names}
    for one, other in pairs:
        if cluster[one] != cluster[other]:
            joined = cluster[one] + cluster[other]
            cluster.update(dict.fromkeys(joined, joined))
    return list(dict.fromkeys(cluster.values()))


def _unit(cluster: Sequence[ModelPlan], windows: tuple[int, ...], num_devices: int) -> Unit:
    weights, kv, workspace = (np.zeros(num_devices, np.int64) for _ in range(3))
    for model, number in zip(cluster, windows, strict=True):
        first = model.windows[number].first_device
        for device, held in enumerate(model.devices, start=first):
            weights[device] += held.weights_bytes
            kv[device] += held.kv_bytes
            workspace[device] = max(workspace[device], held.workspace_bytes)
    first = cluster[0]
    return Unit(
        models=tuple(model.name for model in cluster),
        windows=windows,
        num_windows=len(first.windows),
        num_copies=first.windows[windows[0]].num_copies,
        all_copies=first.copies,
        pin=_pin(cluster),
        weights_bytes=weights,
        kv_bytes=kv,
        workspace_bytes=workspace,
    )


def _pin(cluster: Sequence[ModelPlan]) -> Literal["hbm", "ddr"] | None:
    pins: list[Literal["hbm", "ddr"]] = [model.pin for model in cluster if model.pin is not None]
    if len(set(pins)) > 1:
        names = " and ".join(repr(model.name) for model in cluster)
        raise ConfigurationError(f"{names} are hot together, so they cannot be pinned to different tiers")
    return pins[0] if pins else None
