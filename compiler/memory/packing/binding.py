"""Why a capacity is too small, for people."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .answer import Binding
from .instance import Instance
from .problem import Buffer

__all__ = ["explain_load", "explain_search"]


def explain_load(buffers: Sequence[Buffer], instance: Instance, capacity: int) -> Binding:
    """Returns why buffers that are live at once are more than the capacity."""
    moment, live = _most_live(buffers, instance)
    demand = sum(size for _, size in live)
    levers = (f"raise the capacity to {demand:,} bytes", _away(live, demand - capacity, moment))
    return Binding("load", moment, demand, capacity, live, levers)


def explain_search(buffers: Sequence[Buffer], instance: Instance, capacity: int, demand: int) -> Binding:
    """Returns why buffers do not fit that are less than the capacity at any time."""
    moment, live = _most_live(buffers, instance)
    levers = (f"raise the capacity to at least {demand:,} bytes", _away(live, demand - capacity, moment))
    return Binding("search", moment, demand, capacity, live, levers)


def _most_live(buffers: Sequence[Buffer], instance: Instance) -> tuple[int, tuple[tuple[str, int], ...]]:
    moment = int(instance.loads.argmax())
    chosen = np.flatnonzero((instance.begin <= moment) & (moment < instance.end)).tolist()
    live = sorted(((buffers[number].id, buffers[number].size) for number in chosen), key=lambda pair: -pair[1])
    return int(instance.times[moment]), tuple(live)


def _away(live: Sequence[tuple[str, int]], shortfall: int, moment: int) -> str:
    """The lever that is one buffer, the smallest that makes up for the shortfall, or else the largest ones."""
    enough = [name for name, size in live if size >= shortfall]
    if enough:
        return f"end {enough[-1]} before time {moment}, begin it later, or spill it"
    names: list[str] = []
    for name, size in live:
        names.append(name)
        shortfall -= size
        if shortfall <= 0:
            break
    return f"spill {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''} at time {moment}"
