"""A core's arrays as the kernels take them."""

from __future__ import annotations

import numpy as np

from .core import Core
from .dual import message_offsets
from .kernels import Memory, Pairs

__all__ = ["memory_of", "pairs_of"]


def pairs_of(core: Core) -> Pairs:
    """Returns the nodes and edges of a core."""
    ends = np.concatenate((core.source, core.target))
    order = np.argsort(ends, kind="stable")
    counts = np.bincount(ends, minlength=len(core.nodes))
    return Pairs(
        first=core.first,
        source=core.source,
        target=core.target,
        entry=core.entry,
        entries=core.entries,
        message=message_offsets(core),
        near_first=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        near=(order % max(len(core.source), 1)).astype(np.int64),
    )


def memory_of(core: Core, places: np.ndarray, room: np.ndarray) -> Memory:
    """Returns the loads of a core, which are in the order of its nodes, and what labels use of a room."""
    return Memory(
        of=np.searchsorted(core.load_node, np.arange(len(core.nodes) + 1)).astype(np.int64),
        begin=core.load_begin,
        end=core.load_end,
        first=core.load_first,
        sizes=core.sizes,
        room=room,
        usage=core.usage(places),
    )
