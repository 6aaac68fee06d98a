"""The plan of a rack as a machine to replay a trace on: its models as the scheduler knows models, and their steps.

A plan has few configurations of a model; a bundle for its target would have programs in between, and these are priced
from the plan's:

- A decode step of fewer sequences, or shorter ones, reads less cache and adds less to it: what its reading takes at the
  bandwidth of HBM, and the planned step's `sequence_seconds`, are left out. No step is faster than weights are read.
- A prefill of fewer tokens takes its share of the planned prompt's time, but no less than a decode step of one
  sequence, which reads the weights too.

All models are in DDR when a trace begins, as the plan has them; devices that hold the same are one to the scheduler.
Steps run one at a time on the whole rack, as the scheduler has it, also those of models on different devices.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from ...compiler.bundle.manifest import KVPlan, ModelEntry, ProgramEntry, StageProgram, TierBudget
from ...compiler.bundle.placement import DeviceShare
from ...compiler.configuration import BLOCK_TOKENS, Configuration, Phase, ladder
from ...compiler.rack.plan import DeviceBytes, ModelPlan, RackPlan, StepPlan
from ...compiler.target import Link, Target
from ...errors import ConfigurationError
from ..events import Decode, Step
from .costs import StepSeconds
from .machine import Machine

__all__ = ["machine_of_plan"]

_LEAST_PREFILL_TOKENS = 64  # of a prefill program
_LADDER_FACTOR = 4  # between prefill programs
_PHASES: tuple[Phase, ...] = ("decode", "prefill", "embed")


@dataclass(frozen=True)
class PlannedEntry(ModelEntry):
    """A model that was planned: what each device holds comes from the plan."""

    held: tuple[DeviceShare, ...] = ()

    @property
    def num_devices(self) -> int:
        """Devices that hold a part, or come before one that does."""
        return len(self.held)

    @cached_property
    def shares(self) -> tuple[DeviceShare, ...]:
        """What each device holds."""
        return self.held


def machine_of_plan(plan: RackPlan, *, target: Target | None = None, budget: TierBudget | None = None) -> Machine:
    """Returns the machine that a plan is of.

    Args:
        plan: What does not fit is refused.
        target: With the same devices, e.g. other links; the plan's own by default.
        budget: Bytes of each device; the plan's own by default.

    Raises:
        DoesNotFitError: if the plan has shortages.
    """
    if plan.shortages:
        raise plan.shortages[0].error()
    machine = _with_models_in_ddr(target or plan.target)
    budget = budget or TierBudget(plan.budget.hbm, plan.budget.ddr)
    priced = {model.name: _Priced(model, machine) for model in plan.models}
    entries = tuple(entry for model in plan.models for entry in _copies(model, priced[model.name].programs))
    of_copy = {entry.name: priced[entry.source] for entry in entries}
    entries = _on_distinct_devices(entries)
    _check_ddr(entries, budget)
    has_power = machine.power is not None and all(step.joules is not None for m in plan.models for step in m.steps)
    return Machine(
        name=plan.name,
        models=entries,
        budget=budget,
        target=machine,
        step_cost=lambda step: of_copy[step.model].seconds(step),
        step_watts=(lambda step: of_copy[step.model].watts(step)) if has_power else None,
        source="steps as planned",
        workflows=tuple(each for each in plan.workflows.values() if set(each) <= set(of_copy)),  # none of copies
        routes={name: route for name, route in plan.routes.items() if set(route.models) <= set(of_copy)},
    )


def _with_models_in_ddr(target: Target) -> Target:
    """Returns the target with a way from disk that takes no time: where a plan's models are when a trace begins."""
    return dataclasses.replace(target, links={**target.links, "disk->ddr": Link(math.inf)})


def _check_ddr(entries: Sequence[ModelEntry], budget: TierBudget) -> None:
    """Refuses a DDR that does not hold all models: nobody has planned from where the others would come."""
    devices = range(max(entry.num_devices for entry in entries))
    demand = max(sum(e.shares[d].weights_bytes for e in entries if d < e.num_devices) for d in devices)
    if demand > budget.ddr:
        raise ConfigurationError(
            f"the models of the plan need {demand} bytes of ddr on a device, the budget is {budget.ddr}; raise --ddr"
        )


class _Priced:
    """Programs of a planned model, and what they cost."""

    def __init__(self, model: ModelPlan, target: Target) -> None:
        self._planned = {phase: _of_phase(model, phase) for phase in _PHASES}
        rate = target.tiers["hbm"].sustained_bytes_per_s
        self._weights_seconds = _of_stages(model, lambda device: device.weights_bytes) / rate
        self._token_seconds = _of_stages(model, lambda device: device.kv_bytes) / (model.kv_tokens or 1) / rate
        self._seconds: dict[tuple[Phase, int, int], float] = {}
        self._watts: dict[tuple[Phase, int], float] = {}
        self._uncached: dict[int, float] = {}  # of decode steps by number of sequences, without the reading of cache
        self.programs = tuple(map(self._program, self._shapes()))

    def seconds(self, step: Step) -> StepSeconds:
        """Returns what a step takes."""
        shapes = step.configuration
        if not isinstance(step, Decode):
            return StepSeconds(self._whole(shapes.phase, shapes.batch, shapes.new_tokens))
        entries = step.entries
        cached = sum([entry.start for entry in entries]) + len(entries)
        return StepSeconds(self._decode(len(entries), cached), len(entries) * self._token_seconds)

    def watts(self, step: Step) -> float:
        """Returns what all devices draw, on average of the planned step that this one is most like."""
        key = (step.configuration.phase, len(step.entries))
        if key not in self._watts:
            planned = self._like(*key)
            assert planned.joules is not None, planned.configuration
            self._watts[key] = planned.joules / planned.seconds
        return self._watts[key]

    def _program(self, shapes: Configuration) -> ProgramEntry:
        """Returns a program as a manifest has it; a decode step's time is that with half of the context."""
        if shapes.phase == "decode":
            seconds = self._decode(shapes.batch, shapes.batch * shapes.context // 2)
        else:
            seconds = self._whole(shapes.phase, shapes.batch, shapes.new_tokens)
        return ProgramEntry(shapes, (StageProgram("", 0, 0, ()),), 0, 0, seconds)

    def _shapes(self) -> Iterator[Configuration]:
        """Yields the configurations of the programs."""
        for phase in _PHASES[1:]:
            if steps := self._planned[phase]:
                most = max(step.new_tokens for step in steps)
                batch, context = max(step.batch for step in steps), max(step.context for step in steps)
                for tokens in ladder(min(_LEAST_PREFILL_TOKENS, most), most, _LADDER_FACTOR):
                    yield Configuration(phase, batch, tokens, tokens if phase == "embed" else context)
        if decodes := self._planned["decode"]:
            context = max(step.context for step in decodes)
            for batch in ladder(1, max(step.batch for step in decodes), 2):
                yield Configuration("decode", batch, 1, context)

    def _like(self, phase: Phase, num_sequences: int) -> StepPlan:
        """Returns the planned step of a phase that has room for so many sequences, or the largest."""
        steps = self._planned[phase]
        return next((step for step in steps if step.batch >= num_sequences), steps[-1])

    def _decode(self, num_sequences: int, cached_tokens: int) -> float:
        if num_sequences not in self._uncached:
            planned = self._like("decode", num_sequences)
            tokens_seconds = planned.batch * planned.context * self._token_seconds
            sequences_seconds = (planned.batch - num_sequences) * planned.sequence_seconds
            self._uncached[num_sequences] = planned.seconds - tokens_seconds - sequences_seconds
        return max(self._uncached[num_sequences] + cached_tokens * self._token_seconds, self._weights_seconds)

    def _whole(self, phase: Phase, batch: int, new_tokens: int) -> float:
        """Returns what a prefill or an encoder's step of these shapes takes."""
        key = (phase, batch, new_tokens)
        if key not in self._seconds:
            planned = min(self._planned[phase], key=lambda step: abs(step.new_tokens - new_tokens))
            share = batch * new_tokens / (planned.batch * planned.new_tokens)
            least = self._decode(1, 0) if self._planned["decode"] else self._weights_seconds
            self._seconds[key] = max(planned.seconds * share, least)
        return self._seconds[key]


def _of_phase(model: ModelPlan, phase: Phase) -> list[StepPlan]:
    """Returns the planned steps of a phase, those with few sequences first."""
    return sorted((step for step in model.steps if step.phase == phase), key=lambda step: (step.batch, step.context))


def _of_stages(model: ModelPlan, of_device: Callable[[DeviceBytes], int]) -> float:
    """Returns the bytes of a device of each pipeline stage together: stages follow one another."""
    return sum(map(of_device, model.devices)) * model.num_stages / model.num_devices


def _copies(model: ModelPlan, programs: tuple[ProgramEntry, ...]) -> Iterator[PlannedEntry]:
    """Yields a model for each of its copies, which are dealt out to the windows in turn."""
    for number in range(model.copies):
        window = model.windows[number % len(model.windows)]
        parts = [DeviceShare(d.weights_bytes, d.kv_bytes, d.workspace_bytes) for d in model.devices]
        yield PlannedEntry(
            name=model.name if model.copies == 1 else f"{model.name}-{number}",
            aliases=model.aliases if model.copies == 1 else (),
            source=model.name,
            capabilities=("completion",) if model.kv_tokens else ("embedding",),
            architecture={},
            dtype=model.dtype,
            sequence=max(step.context for step in model.steps),
            batch=max(step.batch for step in model.steps),
            pin=model.pin,
            weights="",
            weights_bytes=max(part.weights_bytes for part in parts),
            kv=_kv_plan(model),
            programs=programs,
            tokenizer="",
            chat_template=None,
            bos_token=None,
            eos_token=None,
            eos_token_ids=(),
            held=(*[DeviceShare(0, 0, 0)] * window.first_device, *parts),
        )


def _kv_plan(model: ModelPlan) -> KVPlan | None:
    if model.kv_tokens is None:
        return None
    a_token = max(device.kv_bytes for device in model.devices) // model.kv_tokens
    return KVPlan(BLOCK_TOKENS, max(1, model.kv_tokens // BLOCK_TOKENS), max(1, a_token), model.dtype)


def _on_distinct_devices(entries: Sequence[PlannedEntry]) -> tuple[PlannedEntry, ...]:
    """Returns the models on fewer devices: of those that hold the same of every model one is as good as all."""
    nothing = DeviceShare(0, 0, 0)
    held = [
        tuple(entry.held[device] if device < entry.num_devices else nothing for entry in entries)
        for device in range(max(entry.num_devices for entry in entries))
    ]
    distinct = list(zip(*dict.fromkeys(held), strict=True))
    return tuple(
        dataclasses.replace(entry, held=tuple(shares)) for entry, shares in zip(entries, distinct, strict=True)
    )
