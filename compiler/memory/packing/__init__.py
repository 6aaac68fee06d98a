"""Packing: offsets for buffers that live for a while, in the least height or within a capacity, with a proof.

    Buffer ──> bound_height ──> pack_greedily ──> search ──> Packing

A buffer is live in a half-open range [lower, upper). Buffers that are live at once may not share an address. Nothing
is lower than the largest sum of the sizes that are live at once; a packing of that height is optimal.
"""

from .answer import Binding, Packing, Status
from .problem import Buffer, read_buffers
from .solve import solve_packing

__all__ = ["Binding", "Buffer", "Packing", "Status", "read_buffers", "solve_packing"]
