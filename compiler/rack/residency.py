"""Which models are hot together: the knapsack whose value is the time that switches take away.

Comes in: candidates, each a number of copies that are alike, and the room that HBM has on each device. Goes out: a
`Residency` with its certificate. Integer variables count the hot copies of a candidate, so that 850 experts are one
variable; a binary one for each model says that some copy is warm, and then the slot on its devices is at least as large
as its part. Least is the sum over warm copies of rate x switch seconds. HiGHS solves it exactly.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, sparse

from .plan import Group, Residency

__all__ = ["Candidate", "choose_hot"]

_TIME_LIMIT_SECONDS = 20.0
_ROOM_SCALE = 1e3  # of the largest room, as HiGHS sees it
_VALUE_SCALE = 1e4  # of the largest value of a copy: HiGHS' tolerances are absolute


@dataclass(frozen=True, eq=False)
class Candidate:
    """Copies that are alike, and what one of them takes and costs."""

    models: tuple[str, ...]
    windows: tuple[int, ...]
    copies: tuple[int, ...]  # numbers, where they are told apart
    num_copies: int
    requests_per_s: float  # for one copy
    switch_seconds: float
    pin: Literal["hbm", "ddr"] | None
    weights_bytes: np.ndarray  # int64 [devices]

    @property
    def value(self) -> float:
        """Seconds a second that a hot copy saves."""
        return self.requests_per_s * self.switch_seconds

    @property
    def bounds(self) -> tuple[int, int]:
        """Fewest and most copies that may be hot."""
        return {None: (0, self.num_copies), "hbm": (self.num_copies,) * 2, "ddr": (0, 0)}[self.pin]

    def group(self, num_hot: int) -> Group:
        """Returns the candidate with so many hot copies."""
        return Group(
            models=self.models,
            windows=self.windows,
            copies=self.copies,
            num_copies=self.num_copies,
            num_hot=num_hot,
            requests_per_s=self.requests_per_s,
            switch_seconds=self.switch_seconds,
        )


def choose_hot(
    candidates: Sequence[Candidate], room_bytes: np.ndarray, *, time_limit_seconds: float = _TIME_LIMIT_SECONDS
) -> Residency:
    """Returns the hot copies that leave least time for switches.

    Args:
        candidates: All copies of all models.
        room_bytes: What each device has for weights that are hot and for the slot: int64 [devices].
        time_limit_seconds: Of the search.
    """
    begin = time.monotonic()
    task = _Task(candidates, room_bytes)
    least = np.array([each.bounds[0] for each in candidates], np.int64)
    if not task.fits(least):
        return task.residency(least, np.inf, "infeasible", begin)
    result = task.solve(time_limit_seconds)
    hot, bound = least, 0.0
    if result.x is not None:
        hot = task.repaired(np.rint(result.x[: len(candidates)]).astype(np.int64))
    if result.mip_dual_bound is not None:
        bound = task.constant + float(result.mip_dual_bound) / task.value_scale
    return task.residency(task.filled(hot), bound, "optimal" if result.status == 0 else "feasible", begin)


class _Task:
    """The knapsack of some candidates."""

    def __init__(self, candidates: Sequence[Candidate], room_bytes: np.ndarray) -> None:
        self._candidates = candidates
        every = np.stack([each.weights_bytes for each in candidates])
        _, first = np.unique(np.vstack((every, room_bytes)), axis=1, return_index=True)  # devices alike are one
        self._weights, self._room = every[:, np.sort(first)], room_bytes[np.sort(first)]
        keys = [(each.models, each.windows) for each in candidates]
        unique = list(dict.fromkeys(keys))
        self._unit = np.array([unique.index(key) for key in keys])
        self._num_units = len(unique)
        self._counts = np.array([each.num_copies for each in candidates], np.int64)
        self._values = np.array([each.value for each in candidates])
        self.constant = float(self._values @ self._counts)
        self.value_scale = _VALUE_SCALE / max(float(self._values.max(initial=0.0)), 1e-300)

    @property
    def num_variables(self) -> int:
        """Counts, binaries and slots."""
        return len(self._candidates) + self._num_units + len(self._room)

    def fits(self, hot: np.ndarray) -> bool:
        """Whether hot copies and the slot for the others keep every device's room, to the byte."""
        slot = (self._weights * (hot < self._counts)[:, None]).max(axis=0, initial=0)
        return bool((hot @ self._weights + slot <= self._room).all())

    def solve(self, time_limit_seconds: float) -> optimize.OptimizeResult:
        """Runs HiGHS; the columns are counts, binaries of units, slots of devices."""
        num, units, devices = len(self._candidates), self._num_units, len(self._room)
        scale = _ROOM_SCALE / max(float(self._room.max(initial=1)), 1.0)
        bounds = np.array([each.bounds for each in self._candidates], float)
        first = [int(np.flatnonzero(self._unit == unit)[0]) for unit in range(units)]
        part = self._weights[first] * scale  # [units, devices]
        capacity = sparse.hstack(
            (self._weights.T * scale, sparse.csr_array((devices, units)), sparse.eye_array(devices))
        )
        member = sparse.csr_array((np.ones(num), (self._unit, np.arange(num))), shape=(units, num))
        total = member @ self._counts
        warm = sparse.hstack((member, sparse.diags_array(total.astype(float)), sparse.csr_array((units, devices))))
        pairs = np.argwhere(part > 0)
        row = np.arange(len(pairs))
        slot = sparse.csr_array(
            (
                np.concatenate((-part[pairs[:, 0], pairs[:, 1]], np.ones(len(pairs)))),
                (np.tile(row, 2), np.concatenate((num + pairs[:, 0], num + units + pairs[:, 1]))),
            ),
            shape=(len(pairs), self.num_variables),
        )
        lower = np.concatenate((bounds[:, 0], np.zeros(units + devices)))
        upper = np.concatenate((bounds[:, 1], np.ones(units), np.maximum(self._room, 0) * scale))
        return optimize.milp(
            np.concatenate((-self._values * self.value_scale, np.zeros(units + devices))),
            integrality=np.concatenate((np.ones(num + units), np.zeros(devices))),
            bounds=optimize.Bounds(lower, upper),  # pyright: ignore[reportArgumentType] - arrays, as documented
            constraints=[
                (capacity, -np.inf, self._room * scale),
                (warm, total, np.inf),
                (slot, 0.0, np.inf),
            ],
            options={"time_limit": time_limit_seconds, "mip_rel_gap": 0.0},
        )

    def repaired(self, hot: np.ndarray) -> np.ndarray:
        """Returns hot copies that fit to the byte: the least valuable go where a tolerance was used up."""
        hot = hot.copy()
        order = np.argsort(self._values, kind="stable")
        while not self.fits(hot):
            spare = [i for i in order if hot[i] > self._candidates[i].bounds[0]]
            hot[spare[0]] -= 1
        return hot

    def filled(self, hot: np.ndarray) -> np.ndarray:
        """Returns hot copies with as many more as fit: such that nobody asks for are worth nothing to the search."""
        hot = hot.copy()
        for i in np.argsort(-self._values, kind="stable"):
            low, high = int(hot[i]), self._candidates[i].bounds[1]
            if low < high and self._with(hot, i, high):  # all of them: then no slot is needed
                hot[i] = high
                continue
            while low < high:
                middle = (low + high + 1) // 2
                low, high = (middle, high) if self._with(hot, i, middle) else (low, middle - 1)
            hot[i] = low
        return hot

    def _with(self, hot: np.ndarray, index: int, count: int) -> bool:
        changed = hot.copy()
        changed[index] = count
        return self.fits(changed)

    def residency(
        self, hot: np.ndarray, bound: float, status: Literal["optimal", "feasible", "infeasible"], begin: float
    ) -> Residency:
        """Returns the answer."""
        cost = float(self._values @ (self._counts - hot))
        return Residency(
            groups=tuple(each.group(int(count)) for each, count in zip(self._candidates, hot, strict=True)),
            cost=cost,
            lower_bound=min(cost, max(bound, 0.0)),
            status=status,
            seconds=time.monotonic() - begin,
            num_variables=self.num_variables,
        )
