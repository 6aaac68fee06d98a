"""What switches cost: model by model, and in all under the traffic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..target import Target
from .plan import ModelPlan, Residency, Switching
from .residency import Candidate
from .traffic import Arrival

__all__ = ["switch_seconds", "switching"]


def switch_seconds(weights_bytes: Sequence[int] | np.ndarray, target: Target) -> float:
    """Returns how long weights take from DDR to HBM: every device copies its own part, all at once."""
    link = target.link("ddr", "hbm")
    return link.latency_seconds + float(max(weights_bytes)) / link.bandwidth_bytes_per_s


def switching(
    models: Sequence[ModelPlan],
    candidates: Sequence[Candidate],
    residency: Residency,
    arrivals: Sequence[Arrival] = (),
) -> Switching:
    """Returns what switches cost given who is hot.

    Args:
        models: All models.
        candidates: Copies that are alike, in the order of the residency's groups.
        residency: Who is hot.
        arrivals: Of a trace; none if there is none.
    """
    warm = np.array([group.num_copies - group.num_hot for group in residency.groups])
    rates = np.array([group.requests_per_s for group in residency.groups])
    seconds = np.array([group.switch_seconds for group in residency.groups])
    is_on = np.stack([each.weights_bytes for each in candidates]) > 0
    meets = (is_on.astype(int) @ is_on.T.astype(int)) > 0  # share a device, and so a slot
    in_turn = meets @ (warm * rates)
    misses = 1.0 - np.divide(rates, in_turn, out=np.zeros_like(rates), where=in_turn > 0)
    switches = warm * rates * misses
    replayed = _replay(candidates, residency, arrivals) if arrivals else (None, None)
    return Switching(
        seconds=_matrix(models, residency),
        warm_requests_per_s=float(warm @ rates),
        switches_per_s=float(switches.sum()),
        share_of_time=float(switches @ seconds),
        replayed_switches_per_s=replayed[0],
        replayed_share_of_time=replayed[1],
    )


def _matrix(models: Sequence[ModelPlan], residency: Residency) -> dict[str, dict[str, float]]:
    """Returns the seconds until a model is hot after another was busy; of copies until a warm one is."""
    warm: dict[str, float] = {}
    for group in residency.groups:
        if group.num_hot < group.num_copies:
            warm.update(dict.fromkeys(group.models, group.switch_seconds))
    names = [model.name for model in models]
    many = {model.name for model in models if model.copies > 1}
    return {
        busy: {wanted: 0.0 if busy == wanted and busy not in many else warm.get(wanted, 0.0) for wanted in names}
        for busy in names
    }


def _replay(candidates: Sequence[Candidate], residency: Residency, arrivals: Sequence[Arrival]) -> tuple[float, float]:
    """Returns switches a second, and the share of time that they take, in the order of a trace."""
    home = _homes(residency)
    devices = [np.flatnonzero(each.weights_bytes).tolist() for each in candidates]
    holds: dict[int, tuple[str, int]] = {}  # what each device has in its slot
    count, lost = 0, 0.0
    for arrival in arrivals:
        wanted = (arrival.model, arrival.copy)
        number, is_hot = home[wanted]
        unit = (candidates[number].models[0], arrival.copy)
        if is_hot or all(holds.get(device) == unit for device in devices[number]):
            continue
        holds.update(dict.fromkeys(devices[number], unit))
        count += 1
        lost += candidates[number].switch_seconds
    return count / arrivals[-1].seconds, lost / arrivals[-1].seconds


def _homes(residency: Residency) -> Mapping[tuple[str, int], tuple[int, bool]]:
    """Returns of each copy its group, and whether it is hot: the first ones of a group are."""
    return {
        (model, copy): (number, place < group.num_hot)
        for number, group in enumerate(residency.groups)
        for model in group.models
        for place, copy in enumerate(group.copies or range(group.num_copies))
    }
