"""What a request takes on a target: time to first token, tokens a second, energy, and what bounds each phase.

Comes in: a model, a target and a request's lengths. A decode step is planned first, at the longest context; its layouts
of weights and caches are kept by the prefill, as they would be in a server. Both are fused into sections. Of decode two
contexts are looked at, the first and the last; a step's time is linear between them, as only caches grow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import ConfigurationError
from ..models.config import DecoderConfig, ModelConfig
from .configuration import Configuration
from .fuse import Mode, fuse
from .fuse.sections import Orchestration
from .partition.pins import layouts_of
from .partition.result import Partition
from .partition.search import partition
from .partition.skeleton import skeleton
from .schedule import Schedule, schedule
from .target import Target
from .trace import Traced, trace_model

__all__ = ["PhaseTime", "RequestTime", "simulate_request"]

_CONTEXT_MULTIPLE = 256  # contexts are planned in whole multiples: caches divide over devices


@dataclass(frozen=True)
class PhaseTime:
    """A phase of a request."""

    seconds: float
    joules: float | None
    first: Schedule  # its first step
    last: Schedule  # its last step

    def to_dict(self) -> dict[str, object]:
        """Returns it as JSON has it."""
        steps = {"first_step": self.first.to_dict(), "last_step": self.last.to_dict()}
        return {"seconds": self.seconds, "joules": self.joules, **steps}


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
            "model": self.model,
            "target": self.target,
            "batch": self.batch,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "latency_seconds": self.latency_seconds,
            "ttft_seconds": self.ttft_seconds,
            "tpot_seconds": self.decode.seconds / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0,
            "output_tokens_per_s": self.output_tokens_per_s,
            "output_tokens_per_s_per_user": self.output_tokens_per_s_per_user,
            "joules": self.joules,
            "tokens_per_joule": self.tokens_per_joule,
            "prefill": self.prefill.to_dict(),
            "decode": self.decode.to_dict(),
        }


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
            pins = layouts_of(traced, *like)
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

    def time(self, configuration: Configuration, traced: Traced, plan: Partition) -> Schedule:
        """Returns what a planned step takes."""
        self.progress(f"fusing {configuration.id}")
        bones = skeleton(traced)
        sections = fuse(bones, plan.sharding, self.target, self.dtype, mode=self.mode, orchestration=self.orchestration)
        return schedule(traced, plan, sections, self.target, self.dtype, configuration=configuration)


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
    decoder = _checked(config, name, input_tokens, output_tokens, batch)
    total = input_tokens + output_tokens
    planner = _Planner(
        config=decoder,
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


def _checked(config: ModelConfig, name: str, input_tokens: int, output_tokens: int, batch: int) -> DecoderConfig:
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
    return config


@dataclass(frozen=True)
class _Steps:
    """Decode steps between two contexts, linear in the context."""

    begin: Schedule
    end: Schedule
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
