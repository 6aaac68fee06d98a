"""What the runtime counts, in Prometheus' text format.

Comes in: calls of the engine at the moments that the methods are named after. Goes out: `render()`, for `/metrics`.
Names that start with `vllm:` mean what they mean there, so that existing dashboards, autoscalers and gateway endpoint
pickers work unchanged; `plait_` names are for what those lack: residency, switches and bytes by tier. Everything lives
in a registry of its own, so several runtimes in one process do not mix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from .request import FinishReason, Residency, Usage

__all__ = ["Metrics", "RequestOutcome", "TierName"]

RequestOutcome: TypeAlias = FinishReason | Literal["cancelled", "error"]
TierName: TypeAlias = Literal["hbm", "ddr", "disk"]

_FINISHED_REASONS: dict[RequestOutcome, str] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "stop",  # as dashboards count it: the answer ended by itself
    "cancelled": "abort",  # the name that dashboards know it by
    "error": "error",
}
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5, 10, 40)
_REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 2560)
_SWITCH_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_AGE_SECONDS = (0.1, 1, 5, 15, 60, 300, 900, 3600, 14400, 86400)


class Metrics:
    """Counters of one runtime; its methods are thread-safe and cheap enough to be called for every token."""

    def __init__(self, models: Iterable[str] = ()) -> None:
        """Makes a registry in which all is zero.

        Args:
            models: Models whose series exist from the start, at zero, rather than from their first event.
        """
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = _RequestFamilies.register(self._registry)
        self._memory = _MemoryFamilies.register(self._registry)
        self._series: dict[str, _ModelSeries] = {}
        for model in models:
            self._of(model)

    def request_arrived(self, model: str, residency: Residency) -> None:
        """Counts a request by where its model was when it came."""
        self._requests.by_residency.labels(model, residency).inc()

    def routed(self, route: str, model: str) -> None:
        """Counts a request for any of several models by the one that got it."""
        self._requests.routed.labels(model, route).inc()

    def request_started(self, model: str) -> None:
        """Counts a request whose first step begins."""
        self._of(model).started.inc()

    def request_finished(self, model: str, reason: RequestOutcome, usage: Usage | None = None) -> None:
        """Counts the end of a request and, where it ran at all, what it took.

        Args:
            model: Canonical name.
            reason: How it ended.
            usage: None for a request that ended before its first step.
        """
        self._requests.finished.labels(model, _FINISHED_REASONS[reason]).inc()
        if usage is None:
            return
        series = self._of(model)
        series.prompt_tokens.inc(usage.prompt_tokens)
        series.queue_seconds.observe(usage.queue_seconds)
        series.total_seconds.observe(usage.total_seconds)
        series.switch_seconds.observe(usage.switch_seconds)
        if usage.completion_tokens:  # an embedding has no first token
            series.prefill_seconds.observe(usage.time_to_first_token_seconds - usage.queue_seconds)
            series.decode_seconds.observe(usage.total_seconds - usage.time_to_first_token_seconds)
            series.first_token_seconds.observe(usage.time_to_first_token_seconds)

    def prompt_looked_up(self, model: str, num_tokens: int, num_cached: int) -> None:
        """Counts a prompt that was looked for in the KV cache, and how many of its tokens were found."""
        series = self._of(model)
        series.prefix_queries.inc(num_tokens)
        series.prefix_hits.inc(num_cached)

    def preempted(self, model: str, num_sequences: int) -> None:
        """Counts sequences that gave their KV blocks back before they ended."""
        self._of(model).preemptions.inc(num_sequences)

    def speculated(self, model: str, num_proposed: int, num_accepted: int) -> None:
        """Counts tokens that a draft model proposed for a model's answers, and those of them that came to be there."""
        series = self._of(model)
        series.draft_tokens.inc(num_proposed)
        series.accepted_tokens.inc(num_accepted)

    def tokens_generated(self, model: str, gap_seconds: float | None, num_tokens: int = 1) -> None:
        """Counts tokens of one request.

        Args:
            model: Canonical name.
            gap_seconds: Since the request's token before; None for its first.
            num_tokens: How many came at once.
        """
        series = self._of(model)
        series.generation_tokens.inc(num_tokens)
        if gap_seconds is not None:
            series.gap_seconds.observe(gap_seconds)

    def computed(self, model: str, joules: float) -> None:
        """Counts the energy of a step."""
        self._of(model).joules.inc(joules)

    def queue(self, model: str, running: int, waiting: int) -> None:
        """Sets how many of a model's requests run and wait now."""
        series = self._of(model)
        series.running.set(running)
        series.waiting.set(waiting)

    def kv(self, model: str, used_fraction: float) -> None:
        """Sets how much of a model's KV pool is in use, between 0 and 1."""
        self._of(model).kv_used.set(used_fraction)

    def switched(self, model: str, source: TierName, destination: TierName, num_bytes: int, seconds: float) -> None:
        """Counts a model's move to the tier that it computes from, or one step of the way there."""
        self._memory.switches.labels(model, source, destination).inc()
        self._memory.switch_seconds.labels(model, source, destination).observe(seconds)
        self._memory.transferred.labels(source, destination).inc(num_bytes)

    def evicted(self, model: str, tier: TierName, age_seconds: float) -> None:
        """Counts a model that had to leave a tier; `age_seconds` is the time since its last use."""
        self._memory.evictions.labels(model, tier).inc()
        self._memory.eviction_age.labels(model, tier).observe(age_seconds)

    def kv_copied(self, *, is_saved: bool, num_bytes: int) -> None:
        """Counts a copy of KV blocks to ddr, or back."""
        way = ("hbm", "ddr") if is_saved else ("ddr", "hbm")
        self._memory.kv_transferred.labels(*way).inc(num_bytes)

    def model_bytes(self, model: str, tier_bytes: Mapping[str, int]) -> None:
        """Sets what a model has in each tier above the disk; in those that are not named it has nothing."""
        for tier in ("hbm", "ddr"):
            self._memory.of_models.labels(model, tier).set(tier_bytes.get(tier, 0))

    def checked(self, model: str, *, is_healthy: bool) -> None:
        """Counts a check of a model's canary, and whether it failed."""
        self._requests.canaries.labels(model).inc()
        self._requests.canary_failures.labels(model).inc(0 if is_healthy else 1)

    def tier(self, tier: TierName, used_bytes: int, peak_bytes: int, budget_bytes: int) -> None:
        """Sets how full a memory tier is, the most it ever was, and how full it may be."""
        self._memory.used.labels(tier).set(used_bytes)
        self._memory.peak.labels(tier).set(peak_bytes)
        self._memory.budget.labels(tier).set(budget_bytes)

    def render(self) -> tuple[bytes, str]:
        """Returns all series as text, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def _of(self, model: str) -> _ModelSeries:
        # Two threads may both miss; `labels` gives them the same series, so either may win.
        series = self._series.get(model)
        if series is None:
            series = self._series[model] = _ModelSeries.of(self._requests, model)
        return series


@dataclass(frozen=True)
class _RequestFamilies:
    """Metrics of requests, each labelled with `model_name`."""

    running: Gauge
    waiting: Gauge
    kv_used: Gauge
    prefix_queries: Counter
    prefix_hits: Counter
    preemptions: Counter
    draft_tokens: Counter
    accepted_tokens: Counter
    by_residency: Counter
    routed: Counter
    canaries: Counter
    canary_failures: Counter
    started: Counter
    joules: Counter
    finished: Counter
    prompt_tokens: Counter
    generation_tokens: Counter
    first_token_seconds: Histogram
    gap_seconds: Histogram
    total_seconds: Histogram
    queue_seconds: Histogram
    prefill_seconds: Histogram
    decode_seconds: Histogram
    switch_seconds: Histogram

    @classmethod
    def register(cls, registry: CollectorRegistry) -> _RequestFamilies:
        label = ("model_name",)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, label, registry=registry)

        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(name, text, (*label, *more), registry=registry)

        def seconds(name: str, text: str, buckets: tuple[float, ...] = _REQUEST_SECONDS) -> Histogram:
            return Histogram(name, text, label, buckets=buckets, registry=registry)

        return cls(
            running=gauge("vllm:num_requests_running", "Requests that take part in steps."),
            waiting=gauge("vllm:num_requests_waiting", "Requests that wait for their first step."),
            kv_used=gauge("vllm:kv_cache_usage_perc", "Share of the KV pool in use; 1 is all of it."),
            prefix_queries=counter("vllm:prefix_cache_queries", "Tokens of prompts looked for in the KV cache."),
            prefix_hits=counter("vllm:prefix_cache_hits", "Of these, tokens that were there."),
            preemptions=counter("vllm:num_preemptions", "Sequences that gave their KV blocks back before they ended."),
            draft_tokens=counter("plait_speculative_draft_tokens", "Tokens that a draft model proposed."),
            accepted_tokens=counter("plait_speculative_accepted_tokens", "Of these, tokens that came into an answer."),
            by_residency=counter("plait_requests_by_residency", "Requests by where the model was.", "class"),
            routed=counter("plait_requests_routed", "Requests by a route's name, by who got them.", "route"),
            canaries=counter("plait_canary_checks", "Checks of a model against what it said when it was bundled."),
            canary_failures=counter("plait_canary_failures", "Of these, those that a model failed."),
            started=counter("plait_requests_started", "Requests whose first step began."),
            joules=counter("plait_joules", "Energy of steps, measured or modelled; 0 where nothing is known of power."),
            finished=counter("vllm:request_success", "Requests that ended, by how.", "finished_reason"),
            prompt_tokens=counter("vllm:prompt_tokens", "Tokens of the prompts of ended requests."),
            generation_tokens=counter("vllm:generation_tokens", "Tokens generated."),
            first_token_seconds=seconds("vllm:time_to_first_token_seconds", "From arrival to the first token."),
            gap_seconds=seconds("vllm:inter_token_latency_seconds", "Between two tokens of an answer.", _TOKEN_SECONDS),
            total_seconds=seconds("vllm:e2e_request_latency_seconds", "From arrival to the end."),
            queue_seconds=seconds("vllm:request_queue_time_seconds", "From arrival to the first step."),
            prefill_seconds=seconds("vllm:request_prefill_time_seconds", "From the first step to the first token."),
            decode_seconds=seconds("vllm:request_decode_time_seconds", "From the first token to the end."),
            switch_seconds=seconds("plait_request_switch_seconds", "Of the queue time, without the model being hot."),
        )


@dataclass(frozen=True)
class _ModelSeries:
    """The series of one model: looked up once, for a lookup of labels costs more than an increment."""

    running: Gauge
    waiting: Gauge
    kv_used: Gauge
    prefix_queries: Counter
    prefix_hits: Counter
    preemptions: Counter
    draft_tokens: Counter
    accepted_tokens: Counter
    started: Counter
    joules: Counter
    prompt_tokens: Counter
    generation_tokens: Counter
    first_token_seconds: Histogram
    gap_seconds: Histogram
    total_seconds: Histogram
    queue_seconds: Histogram
    prefill_seconds: Histogram
    decode_seconds: Histogram
    switch_seconds: Histogram

    @classmethod
    def of(cls, families: _RequestFamilies, model: str) -> _ModelSeries:
        return cls(
            running=families.running.labels(model),
            waiting=families.waiting.labels(model),
            kv_used=families.kv_used.labels(model),
            prefix_queries=families.prefix_queries.labels(model),
            prefix_hits=families.prefix_hits.labels(model),
            preemptions=families.preemptions.labels(model),
            draft_tokens=families.draft_tokens.labels(model),
            accepted_tokens=families.accepted_tokens.labels(model),
            started=families.started.labels(model),
            joules=families.joules.labels(model),
            prompt_tokens=families.prompt_tokens.labels(model),
            generation_tokens=families.generation_tokens.labels(model),
            first_token_seconds=families.first_token_seconds.labels(model),
            gap_seconds=families.gap_seconds.labels(model),
            total_seconds=families.total_seconds.labels(model),
            queue_seconds=families.queue_seconds.labels(model),
            prefill_seconds=families.prefill_seconds.labels(model),
            decode_seconds=families.decode_seconds.labels(model),
            switch_seconds=families.switch_seconds.labels(model),
        )


@dataclass(frozen=True)
class _MemoryFamilies:
    """Metrics of models that move between tiers, and of the tiers."""

    switches: Counter
    switch_seconds: Histogram
    transferred: Counter
    kv_transferred: Counter
    of_models: Gauge
    evictions: Counter
    eviction_age: Histogram
    used: Gauge
    peak: Gauge
    budget: Gauge

    @classmethod
    def register(cls, registry: CollectorRegistry) -> _MemoryFamilies:
        way = ("source", "destination")

        def histogram(name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, ("tier",), registry=registry)

        age = "Since the last use of a model that was evicted."
        return cls(
            switches=Counter("plait_switches", "Moves of a model.", ("model_name", *way), registry=registry),
            switch_seconds=histogram("plait_switch_seconds", "Of one move.", ("model_name", *way), _SWITCH_SECONDS),
            transferred=Counter("plait_transferred_bytes", "Bytes moved between tiers.", way, registry=registry),
            evictions=Counter(
                "plait_evictions", "Models that had to leave.", ("model_name", "tier"), registry=registry
            ),
            eviction_age=histogram("plait_age_at_eviction_seconds", age, ("model_name", "tier"), _AGE_SECONDS),
            kv_transferred=Counter("plait_kv_transferred_bytes", "Bytes of KV blocks moved.", way, registry=registry),
            of_models=Gauge("plait_model_bytes", "Weights and KV pool.", ("model_name", "tier"), registry=registry),
            used=gauge("plait_tier_used_bytes", "Bytes in use."),
            peak=gauge("plait_tier_peak_bytes", "Most bytes that were ever in use at once."),
            budget=gauge("plait_tier_budget_bytes", "Bytes that may be in use."),
        )
