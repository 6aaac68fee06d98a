"""What a request takes on a target: time to first token, tokens a second, energy, and what bounds each phase.

Comes in: a model, a target and a request's lengths. A decode step is planned first, at the longest context; its layouts
of weights and caches are kept by the prefill, as they would be in a server. Both are fused into sections. Of decode two
contexts are looked at, the first and the last; a step's time is linear between them, as only caches grow.

Energy: each device draws its idle power at all times, and the rest of its peak power for the share of a step in which
compute or memory, whichever is busier, is at its limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from ..errors import ConfigurationError
from ..models.config import DecoderConfig, ModelConfig
from .configuration import Configuration
from .cost import peak_flops_per_s
from .fuse import Mode, Section, Sections, fuse
from .fuse.sections import BOUNDS, Bound, Orchestration
from .graph import Value
from .mesh import Layout, Mesh
from .partition.network import collective_seconds
from .partition.result import Partition
from .partition.search import partition
from .partition.skeleton import skeleton
from .partition.stages import handed_over_bytes
from .target import Target
from .trace import Traced, trace_model

__all__ = ["PhaseTime", "RequestTime", "StepTime", "simulate_request", "step_time"]

_CONTEXT_MULTIPLE = 256  # contexts are planned in whole multiples: caches divide over devices


@dataclass(frozen=True)
class StepTime:
    """One step of a configuration on a target."""

    configuration: str
    mesh: str
    num_stages: int
    seconds: float  # of the whole batch
    joules: float | None  # of all devices; None if the target says nothing of power
    num_launches: int
    hbm_bytes: float  # read and written by one device
    flops: float  # of one device
    bound_seconds: Mapping[Bound, float]  # of the step, by what bounds the section
    sequences_seconds: float  # that every sequence of the batch beyond the first adds
    handover_seconds: float  # between pipeline stages

    @property
    def bound(self) -> Bound:
        """What most of the time is bound by."""
        return max(BOUNDS, key=lambda bound: self.bound_seconds[bound])


@dataclass(frozen=True)
class PhaseTime:
    """A phase of a request."""

    seconds: float
    joules: float | None
    first: StepTime
    last: StepTime


@dataclass(frozen=True)
class RequestTime:
    """What a batch of like requests takes, alone on the target."""

    model: str
    target: str
    batch: int
    input_tokens: int  # of each
    output_tokens: int  # of each
    prefill: PhaseTime
    decode: PhaseTime

    @property
    def ttft_seconds(self) -> float:
        """Time to the first token of all."""
        return self.prefill.seconds

    @property
    def latency_seconds(self) -> float:
        """Time to the last token."""
        return self.prefill.seconds + self.decode.seconds

    @property
    def output_tokens_per_s(self) -> float:
        """Tokens of all requests a second, over the whole time."""
        return self.batch * self.output_tokens / self.latency_seconds

    @property
    def output_tokens_per_s_per_user(self) -> float:
        """Tokens of one request a second once it has its first."""
        return (self.output_tokens - 1) / self.decode.seconds if self.output_tokens > 1 else 0.0

    @property
    def joules(self) -> float | None:
        """Energy of all devices for the whole batch."""
        if self.prefill.joules is None or self.decode.joules is None:
            return None
        return self.prefill.joules + self.decode.joules

    @property
    def tokens_per_joule(self) -> float | None:
        """Output tokens of the batch for a joule."""
        return None if not self.joules else self.batch * self.output_tokens / self.joules

    def to_dict(self) -> dict[str, object]:
        """Returns it as JSON has it."""
        return {
            **asdict(self),
            "latency_seconds": self.latency_seconds,
            "ttft_seconds": self.ttft_seconds,
            "tpot_seconds": self.decode.seconds / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0,
            "output_tokens_per_s": self.output_tokens_per_s,
            "output_tokens_per_s_per_user": self.output_tokens_per_s_per_user,
            "joules": self.joules,
            "tokens_per_joule": self.tokens_per_joule,
        }


def step_time(
    traced: Traced,
    plan: Partition,
    sections: Sections,
    target: Target,
    dtype: str,
    *,
    configuration: Configuration,
) -> StepTime:
    """Returns what one step takes.

    Args:
        traced: The step.
        plan: How it is divided.
        sections: Its kernels.
        target: The machine.
        dtype: That it is computed in.
        configuration: Its shapes.
    """
    cuts = [stage.begin for stage in plan.stages[1:]]
    handed = handed_over_bytes(traced.graph, plan.sharding, cuts) if cuts else []
    handover = sum(collective_seconds("permute", size, 2, target.network) for size in handed)
    sequences = target.compute.sequence_seconds * (configuration.batch - 1)
    seconds = sections.seconds + handover + sequences
    return StepTime(
        configuration=configuration.id,
        mesh=str(plan.mesh),
        num_stages=len(plan.stages),
        seconds=seconds,
        joules=_joules(sections, target, dtype, plan, seconds),
        num_launches=sections.num_kernels,
        hbm_bytes=sections.total("read_bytes") + sections.total("written_bytes"),
        flops=sections.total("flops"),
        bound_seconds=sections.bound_seconds(),
        sequences_seconds=sequences,
        handover_seconds=handover,
    )


def _joules(sections: Sections, target: Target, dtype: str, plan: Partition, seconds: float) -> float | None:
    power = target.power
    if power is None:
        return None
    peak, bandwidth = peak_flops_per_s(target, dtype), target.tiers["hbm"].sustained_bytes_per_s

    def busy(section: Section) -> float:
        compute = section.flops / peak
        memory = (section.read_bytes + section.written_bytes) / bandwidth
        return min(max(compute, memory), section.seconds)

    at_limit = sum(busy(sections.sections[launch.section]) for launch in sections.launches) / len(plan.stages)
    one = power.idle_watts * seconds + (power.peak_watts - power.idle_watts) * at_limit
    return plan.num_devices * one


@dataclass(frozen=True)
class _Planner:
    """Plans steps of one model on one target, one after the other."""

    config: DecoderConfig
    target: Target
    dtype: str
    batch: int
    num_devices: int
    mode: Mode
    orchestration: Orchestration
    progress: Callable[[str], None]

    def plan(self, configuration: Configuration, like: tuple[Traced, Partition] | None) -> tuple[Traced, Partition]:
        """Returns a step as traced and its partition, with weights and caches as another step has them."""
        self.progress(f"planning {configuration.id}")
        traced = trace_model(self.config, configuration, self.dtype)
        mesh, stages, pins = None, None, {}
        if like is not None:
            mesh, stages = like[1].mesh, len(like[1].stages)
            pins = _pins(traced, *like)
        plan = partition(
            traced,
            self.target,
            dtype=self.dtype,
            num_devices=self.num_devices,
            mesh=mesh,
            num_stages=stages,
            budget_bytes=self.target.tiers["hbm"].usable_bytes,
            pins=pins,
            progress=self.progress,
        )
        return traced, plan

    def time(self, configuration: Configuration, traced: Traced, plan: Partition) -> StepTime:
        """Returns what a planned step takes."""
        self.progress(f"fusing {configuration.id}")
        bones = skeleton(traced)
        sections = fuse(bones, plan.sharding, self.target, self.dtype, mode=self.mode, orchestration=self.orchestration)
        return step_time(traced, plan, sections, self.target, self.dtype, configuration=configuration)


def simulate_request(
    config: ModelConfig,
    target: Target,
    *,
    name: str,
    dtype: str,
    input_tokens: int,
    output_tokens: int,
    batch: int = 1,
    num_devices: int | None = None,
    mode: Mode = "o3",
    orchestration: Orchestration = "hardware",
    progress: Callable[[str], None] | None = None,
) -> RequestTime:
    """Returns what a batch of like requests takes on a target that does nothing else.

    Args:
        config: The model.
        target: The machine.
        name: What to call the model.
        dtype: That it is computed in.
        input_tokens: Of each prompt.
        output_tokens: Of each answer; the first comes from the prefill.
        batch: Requests at once.
        num_devices: To be used; all of the target's by default.
        mode: How operations are fused.
        orchestration: Who launches kernels.
        progress: Told what is done.

    Raises:
        ConfigurationError: if the model generates nothing, or the lengths don't fit it.
        DoesNotFitError: if no plan fits the devices' memory.
    """
    if not isinstance(config, DecoderConfig):
        raise ConfigurationError(f"{name} is an encoder: it has no decode phase to simulate; give a decoder")
    total = input_tokens + output_tokens
    if min(input_tokens, output_tokens, batch) < 1:
        raise ConfigurationError(
            f"{input_tokens} input tokens, {output_tokens} output tokens and batch {batch}: each is at least 1"
        )
    if total > config.max_positions:
        raise ConfigurationError(
            f"{input_tokens} + {output_tokens} tokens are more than the {config.max_positions} positions of {name}"
        )
    planner = _Planner(
        config=config,
        target=target,
        dtype=dtype,
        batch=batch,
        num_devices=num_devices or target.num_devices,
        mode=mode,
        orchestration=orchestration,
        progress=progress or (lambda text: None),
    )
    first, last = _rounded(input_tokens + 1), _rounded(total)
    long = Configuration("decode", batch, 1, last)
    decode = planner.plan(long, None)
    end = planner.time(long, *decode)
    begin = end
    if first != last:
        short = Configuration("decode", batch, 1, first)
        begin = planner.time(short, *planner.plan(short, decode))
    chunk = Configuration("prefill", batch, input_tokens, _rounded(input_tokens))
    whole = planner.time(chunk, *planner.plan(chunk, decode))
    steps = _Steps(begin, end, first, last)
    contexts = range(input_tokens + 1, total)
    return RequestTime(
        model=name,
        target=target.name,
        batch=batch,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        prefill=PhaseTime(whole.seconds + target.compute.request_seconds, whole.joules, whole, whole),
        decode=PhaseTime(steps.seconds(contexts), steps.joules(contexts), begin, end),
    )


@dataclass(frozen=True)
class _Steps:
    """Decode steps between two contexts, linear in the context."""

    begin: StepTime
    end: StepTime
    first: int
    last: int

    def seconds(self, contexts: range) -> float:
        return self._sum(self.begin.seconds, self.end.seconds, contexts)

    def joules(self, contexts: range) -> float | None:
        if self.begin.joules is None or self.end.joules is None:
            return None
        return self._sum(self.begin.joules, self.end.joules, contexts)

    def _sum(self, begin: float, end: float, contexts: range) -> float:
        if not contexts:
            return 0.0
        slope = (end - begin) / (self.last - self.first) if self.last > self.first else 0.0
        middle = (contexts[0] + contexts[-1]) / 2
        return len(contexts) * (begin + slope * (middle - self.first))


def _rounded(context: int) -> int:
    return -(-context // _CONTEXT_MULTIPLE) * _CONTEXT_MULTIPLE


def _pins(traced: Traced, other: Traced, plan: Partition) -> dict[int, tuple[Layout, ...]]:
    """Returns the layouts of another step's parameters and caches for those of the same name."""
    values = other.graph.values
    layouts = {
        values[value].name: layout
        for value, layout in zip(other.graph.inputs, plan.sharding.inputs, strict=True)
        if values[value].kind in ("parameter", "cache")
    }
    pins = {
        value: (layouts[about.name],)
        for value in traced.graph.inputs
        if (about := traced.graph.values[value]).name in layouts and _fits(about, layouts[about.name], plan.mesh)
    }
    outputs = [value for value in traced.graph.inputs if traced.graph.values[value].kind == "cache"]
    pins.update(
        (result, pins[value]) for value, result in zip(outputs, traced.graph.outputs[1:], strict=True) if value in pins
    )
    return pins


def _fits(value: Value, layout: Layout, mesh: Mesh) -> bool:
    return layout.fits(value.shape, mesh)
