"""What the packer answers: a packing with a lower bound, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

__all__ = ["Binding", "Packing", "Status"]

Status: TypeAlias = Literal["optimal", "feasible", "infeasible", "unknown"]


@dataclass(frozen=True)
class Binding:
    """Why a capacity is too small, and when.

    With reason "load" the buffers that are live at the moment need more than the capacity, wherever they are put. With
    reason "search" they do not, yet every packing was tried: the demand is the least height that was not ruled out.
    """

    reason: Literal["load", "search"]
    moment: int  # a time at which most is live
    demand_bytes: int  # no capacity below this one is enough
    limit_bytes: int
    live: tuple[tuple[str, int], ...]  # (id, bytes) of all that is live at the moment, largest first
    levers: tuple[str, ...]  # what would make it fit

    @property
    def shortfall_bytes(self) -> int:
        """Bytes by which the demand exceeds the limit."""
        return self.demand_bytes - self.limit_bytes

    @property
    def text(self) -> str:
        """One line that says all of it."""
        if self.reason == "load":
            text = f"at time {self.moment}, {len(self.live)} buffers of {self.demand_bytes:,} bytes are live"
        else:
            text = f"no packing is lower than {self.demand_bytes:,} bytes, all were tried"
        largest = ", ".join(f"{name} {size:,}" for name, size in self.live[:3])
        text += f", {self.limit_bytes:,} are allowed (short {self.shortfall_bytes:,})"
        return f"{text}; largest at time {self.moment}: {largest}; {' or '.join(self.levers)}"


@dataclass(frozen=True)
class Packing:
    """Offsets of buffers, or why there are none.

    - optimal: no packing is lower: the height is the lower bound.
    - feasible: it fits the capacity, or is the lowest found in time; one that is lower has not been ruled out.
    - infeasible: no packing fits the capacity; `binding` says why.
    - unknown: none was found that fits the capacity, and none ruled out in time.
    """

    status: Status
    offsets: Mapping[str, int] = field(repr=False)  # bytes, by id; empty if infeasible or unknown
    height: int | None  # bytes: the highest end of a buffer; None without offsets
    lower_bound: int  # bytes: no packing is lower
    seconds: float
    nearest_height: int | None = None  # of the lowest packing found, if that is above the capacity
    binding: Binding | None = None

    @property
    def gap(self) -> float:
        """Share of the height that is above the lower bound; infinite without a height."""
        if self.height is None:
            return float("inf")
        return (self.height - self.lower_bound) / self.height if self.height else 0.0
