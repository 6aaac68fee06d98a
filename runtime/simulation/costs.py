"""What steps take: the programs' own time as measured, and what the host adds to it.

A program's time is that of its configuration, however many of its rows are used; it grows with the longest context in
the step, and is longer after a rest, where that was measured. The host's constants are the target's (`Serving`): so
much for each step, copies of KV blocks included, and for each token that is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from ...compiler.bundle.manifest import ModelEntry
from ...compiler.configuration import Configuration
from ...compiler.target import ProgramSeconds, Serving, Target
from ..events import Decode, Embed, Step, Verify

__all__ = ["StepCost", "StepSeconds", "measured_costs", "serving_of"]


class StepSeconds(NamedTuple):
    """Time of a step: after a rest it takes `rested` more.

    Of several decode steps in one action each takes `growth` more than the one before.
    """

    first: float
    growth: float = 0.0
    rested: float = 0.0

    def total(self, num_steps: int) -> float:
        """Returns what the first so many steps take together."""
        return num_steps * self.first + self.growth * num_steps * (num_steps - 1) / 2

    def steps_within(self, seconds: float, most: int) -> int:
        """Returns how many steps it takes to reach a moment, at most `most`; the last one may end after it."""
        if most == 1 or seconds >= self.total(most):
            return most
        count = 1
        while self.total(count) < seconds:
            count += 1
        return count


StepCost: TypeAlias = Callable[[Step], StepSeconds]


def serving_of(target: Target) -> Serving:
    """Returns what serving takes on a target beside the programs; where that was not measured, what it says itself."""
    return target.serving or Serving(request_seconds=target.compute.request_seconds)


def measured_costs(models: Sequence[ModelEntry], target: Target) -> StepCost:
    """Returns the costs of a bundle's programs: those that the target was calibrated with, else the manifest's own."""
    serving = serving_of(target)
    programs = {
        (entry.name, program.configuration): serving.programs.get(
            f"{entry.name}/{program.configuration.id}", ProgramSeconds(program.step_seconds)
        )
        for entry in models
        for program in entry.programs
    }

    def seconds(model: str, shapes: Configuration, longest: int) -> float:
        program = programs[model, shapes]
        return program.seconds + longest * program.context_seconds / shapes.context

    def drafting(step: Verify, longest: int) -> float:
        """Returns what the draft takes: one program after the other, and the host's part of each."""
        draft, rest = step.draft, max(step.draft.num_tokens) - 1
        host = (rest + 1) * serving.step_seconds + sum(draft.num_tokens) * serving.sequence_seconds
        return seconds(draft.model, draft.first, longest) + rest * seconds(draft.model, draft.rest, longest) + host

    def cost(step: Step) -> StepSeconds:
        program = programs[step.model, step.configuration]
        if isinstance(step, Embed):
            return StepSeconds(program.seconds + serving.step_seconds + len(step.entries) * serving.sequence_seconds)
        longest = max(entry.start + len(entry.tokens) for entry in step.entries)
        num_drawn = sum(entry.sampling is not None for entry in step.entries)
        a_token = program.context_seconds / step.configuration.context
        if isinstance(step, Verify):
            num_drawn += sum(step.draft.num_tokens)
        first = program.seconds + longest * a_token + serving.step_seconds + num_drawn * serving.sequence_seconds
        if isinstance(step, Verify):
            return StepSeconds(first + drafting(step, longest))
        return StepSeconds(first, a_token if isinstance(step, Decode) else 0.0, program.rested_seconds)

    return cost
