"""What a section asks of the grid: units of each stage, bytes of each flow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigurationError
from ..fuse.sections import Section
from ..target import Chip
from .grid import Ints
from .placement import num_lanes

__all__ = ["Demand", "flow_bytes"]


def flow_bytes(section: Section) -> tuple[float, ...]:
    """Returns the bytes of each flow in one launch.

    A flow from HBM counts each weight once; where weights are read in several passes, these flows share what the
    section reads in excess of that.
    """
    first = sum(flow.bytes for flow in section.flows if flow.source is None)
    again = max(1.0, section.read_bytes / first) if first else 1.0
    return tuple(flow.bytes * (again if flow.source is None else 1.0) for flow in section.flows)


@dataclass(frozen=True)
class Demand:
    """Units and bytes as arrays."""

    pcus: Ints  # [stage]
    pmus: Ints  # [stage]
    sources: Ints  # [inner flow]: of flows between stages
    targets: Ints  # [inner flow]
    inner_bytes: NDArray[np.float64]  # [inner flow]
    hbm_bytes: NDArray[np.float64]  # [stage]: to and from HBM
    inner_lanes: Ints  # [inner flow]

    @staticmethod
    def of(section: Section, chip: Chip) -> Demand:
        """Returns what a section asks for.

        Raises:
            ConfigurationError: if the chip has not as many units.
        """
        for kind, asked, there in (
            ("PCUs", section.num_pcus, chip.num_pcus),
            ("PMUs", section.num_pmus, chip.num_pmus),
        ):
            if asked > there:
                raise ConfigurationError(
                    f"section {section.id} asks for {asked} {kind}, the chip has {there}; fuse for this target"
                )
        pmus = [stage.num_pmus for stage in section.stages]
        inner: list[tuple[int, int, float]] = []
        hbm = np.zeros(len(pmus))
        for flow, size in zip(section.flows, flow_bytes(section), strict=True):
            if flow.source is not None and flow.target is not None:
                inner.append((flow.source, flow.target, size))
            elif flow.source is not None or flow.target is not None:
                hbm[flow.source if flow.source is not None else flow.target] += size
        return Demand(
            pcus=np.array([stage.num_pcus for stage in section.stages], np.int64),
            pmus=np.array(pmus, np.int64),
            sources=np.array([source for source, _, _ in inner], np.int64),
            targets=np.array([target for _, target, _ in inner], np.int64),
            inner_bytes=np.array([size for _, _, size in inner], np.float64),
            hbm_bytes=hbm,
            inner_lanes=np.array([num_lanes(pmus[source], pmus[target]) for source, target, _ in inner], np.int64),
        )
