"""A plan with the problem that it answers, to ask what other choices would have cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import ConfigurationError
from ..mesh import Mesh
from ..target import Target
from ..trace import Traced
from .formulate import Formulation, Node, Pins, formulate
from .names import pattern_of
from .pins import operation_names, resolve_pins
from .restrict import assignment, pinned, restricted
from .result import Partition
from .search import Replanned, replan
from .skeleton import Made, skeleton

__all__ = ["WhatIf", "what_if"]

_MOST_SECONDS = 10.0  # of one problem


@dataclass(frozen=True)
class WhatIf:
    """A plan, the problem on its mesh, and until when others may be solved."""

    traced: Traced
    partition: Partition
    target: Target
    dtype: str
    formulation: Formulation
    chosen: tuple[int, ...]  # strategy of each node
    names: tuple[str, ...]  # of each operation, no two the same
    end: float  # on the monotonic clock
    progress: Callable[[str], None]

    @property
    def mesh(self) -> Mesh:
        """Of one stage."""
        return self.formulation.mesh

    def left_seconds(self) -> float:
        """Returns the time that there still is."""
        return self.end - time.monotonic()

    def solve(self, formulation: Formulation) -> Replanned:
        """Returns the best plan of another problem on the same mesh, with the objective and the budget of the plan."""
        return replan(
            formulation,
            self.target,
            self.dtype,
            num_stages=len(self.partition.stages),
            objective=self.partition.objective,
            budget_bytes=self.partition.budget_bytes,
            time_limit_seconds=max(0.1, min(_MOST_SECONDS, self.left_seconds())),
        )

    def force(self, node: int, strategies: Sequence[int]) -> Replanned:
        """Returns the best plan in which a node has one of these strategies."""
        return self.solve(restricted(self.formulation, {node: strategies}))

    def pin(self, pins: Sequence[tuple[str, str]]) -> Replanned | None:
        """Returns the best plan with further pins, or None if they don't fit."""
        try:
            smaller = pinned(self.formulation, resolve_pins(self.traced.graph, pins, self.mesh))
        except ConfigurationError:
            return None
        return None if smaller is None else self.solve(smaller)

    def made(self, value: int) -> Made:
        """Returns the kind of a value."""
        return next(made for made, members in self.formulation.skeleton.members.items() if value in members)

    def maker(self, made: Made) -> int:
        """Returns the node of the input, or of the operation, that a kind of value comes from."""
        nodes = enumerate(self.formulation.nodes)
        return next(i for i, node in nodes if node.made.group == made.group and _makes(node, made))

    def node_name(self, node: Node) -> str:
        """Returns the pattern that names what a node decides; of a shared value or an output, its maker's."""
        skeleton = self.formulation.skeleton
        if node.made.is_input:
            return pattern_of([self.traced.graph.values[value].name for value in skeleton.members[node.made]])
        return pattern_of([self.names[member] for member in skeleton.groups[node.made.group].members])

    def value_name(self, made: Made) -> str:
        """Returns what to call a kind of value: an input by its name, a result by its operation's."""
        is_one = made.is_input or len(self.formulation.skeleton.groups[made.group].rule.results) == 1
        number = "" if is_one else f"[{made.result}]"
        return f"{self.node_name(self.formulation.nodes[self.maker(made)])}{number}"

    def fixed_seconds(self, node: int) -> np.ndarray:
        """Returns the step's time with each strategy of a node and all else as it is; infinite if there is no way."""
        problem = self.formulation.problem
        seconds = np.array(problem.costs[node], float)
        for edge in problem.edges:
            if edge.source == node == edge.target:
                seconds = seconds + np.diagonal(edge.costs)
            elif edge.source == node:
                seconds = seconds + edge.costs[:, self.chosen[edge.target]]
            elif edge.target == node:
                seconds = seconds + edge.costs[self.chosen[edge.source]]
        return self.partition.cost + seconds - seconds[self.chosen[node]]


def _makes(node: Node, made: Made) -> bool:
    return node.kind == ("input" if made.is_input else "operation")


def what_if(
    traced: Traced,
    partition: Partition,
    target: Target,
    *,
    dtype: str,
    pins: Pins,
    time_limit_seconds: float,
    progress: Callable[[str], None] | None = None,
) -> WhatIf:
    """Returns a plan with its problem.

    Args:
        traced: The graph.
        partition: The plan.
        target: That it was made for.
        dtype: That products are computed in.
        pins: That it was made with.
        time_limit_seconds: Of all questions together.
        progress: Told each question.

    Raises:
        ConfigurationError: if the plan is not of this graph.
    """
    end = time.monotonic() + time_limit_seconds
    if len(partition.sharding.operations) != len(traced.graph.operations):
        raise ConfigurationError(
            f"the plan is of {len(partition.sharding.operations)} operations, {traced.graph.name} has "
            f"{len(traced.graph.operations)}; plan it again"
        )
    formulation = formulate(skeleton(traced), partition.mesh, target, dtype, pins=pins)
    chosen = assignment(formulation, partition.sharding)
    names = operation_names(traced.graph)
    return WhatIf(
        traced, partition, target, dtype, formulation, chosen, names, end, progress or (lambda question: None)
    )
