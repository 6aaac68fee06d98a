"""What a sharding rule says.

The dims of an equation's operands and results are made of *factors*: of `dot_general` the rows, the columns and the
contracted size, of a reshape from [batch, heads * size] the batch, the heads and the size. Mesh axes are assigned to
factors; every dim that a factor is the major part of is then divided over these axes, and a result that the factor
does not appear in because it was summed away is a partial result over them. From the rule and the assignment follow the
layouts of all operands and results.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...mesh import Layout, Reduction

__all__ = ["Access", "Rule", "replicated"]


@dataclass(frozen=True)
class Access:
    """How an operand or a result is made of factors."""

    dims: tuple[tuple[int, ...], ...]  # of each dim its factors, major to minor; factors of size 1 are left out
    partial: tuple[tuple[int, Reduction], ...] = ()  # factors over which it is partial when they are divided


@dataclass(frozen=True)
class Rule:
    """How one equation may be divided.

    A factor may be divided if it is not blocked; `derive` blocks every factor that is not the major part of each dim
    that it appears in, and every factor that the computation mixes (the sorted dim of a sort).

    `linear` holds sets of operand positions: the results are linear in the operands of a set, taken together, while
    the others are whole. If all operands of one set are partial sums over a mesh axis, so are all results, and nothing
    has to be combined before. The empty set says that the results are all zeros, which is a partial sum of anything.

    `exchanges` holds pairs of factors that one axis can divide both: of a mixture of experts rows and experts, where
    each device holds some of either and rows are sent to their experts and back inside.
    """

    sizes: tuple[int, ...]  # of each factor
    operands: tuple[Access, ...]  # literals too, with dims () as they are scalars
    results: tuple[Access, ...]
    blocked: frozenset[int] = frozenset()
    linear: tuple[frozenset[int], ...] = ()
    exchanges: tuple[tuple[int, int], ...] = ()
    note: str = ""  # why nothing can be divided, if there is no rule for this equation

    def layout(self, access: Access, axes: tuple[tuple[str, ...], ...]) -> Layout:
        """Returns the layout of an operand or result when `axes[factor]` are the mesh axes of each factor."""
        dims = tuple(tuple(axis for factor in dim for axis in axes[factor]) for dim in access.dims)
        inside = {axis for dim in dims for axis in dim}  # of an exchange, which leaves nothing to be combined
        partial: list[tuple[str, Reduction]] = [
            (axis, how) for factor, how in access.partial for axis in axes[factor] if axis not in inside
        ]
        return Layout(dims, tuple(sorted(partial)))


def replicated(operand_ranks: tuple[int, ...], result_ranks: tuple[int, ...], note: str) -> Rule:
    """Returns the rule of an equation that every device computes in full, and why."""
    return Rule(
        sizes=(),
        operands=tuple(Access(((),) * rank) for rank in operand_ranks),
        results=tuple(Access(((),) * rank) for rank in result_ranks),
        note=note,
    )
