"""One equation divided over a mesh, as one device sees it inside `shard_map`."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jaxtyping import Array, Int

from ...mesh import Mesh
from .rule import Rule

__all__ = ["Division"]


@dataclass(frozen=True)
class Division:
    """A rule with the mesh axes that each of its factors is divided over."""

    rule: Rule
    mesh: Mesh
    axes: tuple[tuple[str, ...], ...]  # of each factor, major to minor

    def num_parts(self, factor: int) -> int:
        """Returns into how many parts a factor is divided."""
        return self.mesh.num_shards(self.axes[factor])

    def size(self, factor: int) -> int:
        """Returns the size of one part of a factor."""
        return self.rule.sizes[factor] // self.num_parts(factor)

    def part(self, factor: int) -> Int[Array, ""]:
        """Returns the number of this device's part of a factor; only inside `shard_map`."""
        return jax.lax.axis_index(self.axes[factor])

    def local_shape(self, result: int) -> tuple[int, ...]:
        """Returns the shape of one device's part of a result."""
        shape: list[int] = []
        for dim in self.rule.results[result].dims:
            size = 1
            for factor in dim:
                size *= self.size(factor)
            shape.append(size)
        return tuple(shape)
