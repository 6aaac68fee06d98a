"""The figures of a run under load, as JSON and as tables.

Latencies are of whole answers; service levels are of all requests that were not interrupted, a failure keeping none.
Rates are over the time from the start of the run until its last answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ...compiler.text import Table, format_seconds
from .load import Outcome, Run
from .measures import Bound, Percentiles, wilson_interval

__all__ = ["Attainment", "Summary", "summarize"]

_MODEL_HEADS = ("model ", "requests", "failed", "tokens/s", "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "in SLO")


@dataclass(frozen=True)
class Attainment:
    """How many requests keep all bounds."""

    bounds: tuple[Bound, ...]
    num_kept_of_each: tuple[int, ...]  # by bound
    num_kept: int  # all of them
    num_requests: int
    seconds: float  # of the run

    @property
    def share(self) -> float:
        """SLO attainment."""
        return self.num_kept / max(self.num_requests, 1)

    @property
    def interval(self) -> tuple[float, float]:
        """In which the share is with 95 % confidence."""
        return wilson_interval(self.num_kept, self.num_requests)

    @property
    def goodput(self) -> float:
        """Requests a second that keep all bounds."""
        return _rate(self.num_kept, self.seconds)

    @property
    def goodput_interval(self) -> tuple[float, float]:
        """In which goodput is with 95 % confidence, at this rate of requests."""
        low, high = self.interval
        rate = _rate(self.num_requests, self.seconds)
        return low * rate, high * rate

    def to_json(self) -> dict[str, object]:
        """Returns it with every bound's own share."""
        return {
            "bounds": [
                {"metric": bound.metric, "seconds": bound.seconds, "share": kept / max(self.num_requests, 1)}
                for bound, kept in zip(self.bounds, self.num_kept_of_each, strict=True)
            ],
            "attainment": self.share,
            "attainment_interval_95": list(self.interval),
            "goodput_requests_per_s": self.goodput,
            "goodput_interval_95": list(self.goodput_interval),
        }


@dataclass(frozen=True)
class Summary:
    """Figures of some requests of a run."""

    num_requests: int  # finished: answered or failed
    num_answered: int
    num_interrupted: int
    failures: dict[str, int]  # by kind, most frequent first
    seconds: float
    input_tokens: int  # as far as the server said
    output_tokens: int
    counted_by: tuple[str, ...]  # "usage", "chunks"
    latest_seconds: float  # most that a request was sent after its time
    latencies: dict[str, Percentiles | None]  # ttft, tpot, itl, e2e; in seconds
    attainment: Attainment | None
    by_model: dict[str, Summary]  # where there are several
    joules: float | None = None  # of the answers, as far as the server said; None: it said nothing
    joules_source: str | None = None  # "measured" or "modelled"
    num_joules_requests: int = 0  # answers whose joules are known
    num_joules_tokens: int = 0  # of their prompts and answers

    @property
    def requests_per_s(self) -> float:
        """Answered requests a second."""
        return _rate(self.num_answered, self.seconds)

    @property
    def output_tokens_per_s(self) -> float:
        """Tokens a second, of all answers together."""
        return _rate(self.output_tokens, self.seconds)

    @property
    def joules_per_request(self) -> float | None:
        """Joules of an answer."""
        return None if self.joules is None else self.joules / self.num_joules_requests

    @property
    def joules_per_token(self) -> float | None:
        """Joules of a token, of the prompt or the answer."""
        return None if self.joules is None else _rate(self.joules, self.num_joules_tokens)

    def to_json(self) -> dict[str, object]:
        """Returns all figures, times in seconds."""
        return {
            "requests": self.num_requests,
            "answered": self.num_answered,
            "failed": self.num_requests - self.num_answered,
            "failures": self.failures,
            "interrupted": self.num_interrupted,
            "seconds": self.seconds,
            "requests_per_s": self.requests_per_s,
            "output_tokens_per_s": self.output_tokens_per_s,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "tokens_counted_by": list(self.counted_by),
            "latest_seconds": self.latest_seconds,
            **{f"{name}_seconds": None if found is None else found.to_json() for name, found in self.latencies.items()},
            "joules": self.joules,
            "joules_source": self.joules_source,
            "joules_per_request": self.joules_per_request,
            "joules_per_token": self.joules_per_token,
            "slo": None if self.attainment is None else self.attainment.to_json(),
            "models": {name: summary.to_json() for name, summary in self.by_model.items()},
        }

    def facts(self) -> list[tuple[str, object]]:
        """Returns the figures that are no table, by name."""
        failed = self.num_requests - self.num_answered
        interrupted = f", {self.num_interrupted} interrupted" if self.num_interrupted else ""
        facts: list[tuple[str, object]] = [
            ("requests", f"{self.num_requests}: {self.num_answered} answered, {failed} failed{interrupted}"),
            *(("", f"{count} {kind}") for kind, count in self.failures.items()),
            ("time", format_seconds(self.seconds)),
            ("requests/s", f"{self.requests_per_s:.3g}"),
            ("output tokens/s", f"{self.output_tokens_per_s:.4g}"),
            (
                "tokens",
                f"{self.input_tokens} in, {self.output_tokens} out, counted by {' and '.join(self.counted_by) or '-'}",
            ),
        ]
        if self.joules is not None:
            each, token = self.joules_per_request, self.joules_per_token
            facts.append(("energy", f"{each:.3g} J a request, {token:.3g} J a token, {self.joules_source}"))
        if self.latest_seconds:
            facts.append(("sent late", f"by {format_seconds(self.latest_seconds)} at most"))
        return facts + (_attainment_facts(self.attainment) if self.attainment else [])

    def tables(self) -> list[Table]:
        """Returns the latencies, and of several models a line each."""
        heads = ("latency ", "mean", "p50", "p90", "p95", "p99")
        rows = [(name.upper(), *_cells(found)) for name, found in self.latencies.items()]
        tables = [Table("latencies of whole answers", heads, tuple(rows))]
        if self.by_model:
            rows = [_model_row(name, summary) for name, summary in self.by_model.items()]
            tables.append(Table("by model", _MODEL_HEADS, tuple(rows)))
        return tables


def summarize(run: Run, bounds: Sequence[Bound] = ()) -> Summary:
    """Returns the figures of a run, and of each of its models if it has several."""
    models = sorted({outcome.model for outcome in run.outcomes})
    by_model = {
        model: _summary([each for each in run.outcomes if each.model == model], run.seconds, bounds)
        for model in (models if len(models) > 1 else ())
    }
    return _summary(run.outcomes, run.seconds, bounds, num_interrupted=run.num_interrupted, by_model=by_model)


def _summary(
    outcomes: Sequence[Outcome],
    seconds: float,
    bounds: Sequence[Bound],
    *,
    num_interrupted: int = 0,
    by_model: dict[str, Summary] | None = None,
) -> Summary:
    replies = [outcome.reply for outcome in outcomes]
    answered = [reply for reply in replies if reply.failure is None]
    counted = [reply for reply in answered if reply.joules is not None]
    failures = Counter(reply.failure for reply in replies if reply.failure is not None)
    return Summary(
        num_requests=len(replies),
        num_answered=len(answered),
        num_interrupted=num_interrupted,
        failures=dict(failures.most_common()),
        seconds=seconds,
        input_tokens=sum(reply.input_tokens or 0 for reply in answered),
        output_tokens=sum(reply.output_tokens for reply in answered),
        counted_by=tuple(sorted({reply.counted_by for reply in answered}, reverse=True)),
        latest_seconds=max((outcome.late_seconds for outcome in outcomes), default=0.0),
        latencies={
            "ttft": Percentiles.of([reply.ttft_seconds for reply in answered if reply.ttft_seconds is not None]),
            "tpot": Percentiles.of([reply.tpot_seconds for reply in answered if reply.tpot_seconds is not None]),
            "itl": Percentiles.of([gap for reply in answered for gap in reply.gaps_seconds]),
            "e2e": Percentiles.of([reply.end_seconds for reply in answered]),
        },
        attainment=_attainment(outcomes, seconds, bounds) if bounds else None,
        by_model=by_model or {},
        joules=sum(reply.joules or 0.0 for reply in counted) if counted else None,
        joules_source=" and ".join(sorted({reply.joules_source or "" for reply in counted})) if counted else None,
        num_joules_requests=len(counted),
        num_joules_tokens=sum((reply.input_tokens or 0) + reply.output_tokens for reply in counted),
    )


def _attainment(outcomes: Sequence[Outcome], seconds: float, bounds: Sequence[Bound]) -> Attainment:
    kept = [[bound.holds(outcome.reply) for bound in bounds] for outcome in outcomes]
    each = tuple(sum(row[index] for row in kept) for index in range(len(bounds)))
    return Attainment(tuple(bounds), each, sum(map(all, kept)), len(outcomes), seconds)


def _attainment_facts(found: Attainment) -> list[tuple[str, object]]:
    low, high = found.interval
    low_rate, high_rate = found.goodput_interval
    facts: list[tuple[str, object]] = [
        (f"{bound.metric} <= {format_seconds(bound.seconds)}", f"{kept} of {found.num_requests}")
        for bound, kept in zip(found.bounds, found.num_kept_of_each, strict=True)
    ]
    return [
        *facts,
        ("SLO attainment", f"{found.share:.1%} (95 %: {low:.1%} - {high:.1%})"),
        ("goodput", f"{found.goodput:.3g} requests/s (95 %: {low_rate:.3g} - {high_rate:.3g})"),
    ]


def _model_row(name: str, summary: Summary) -> tuple[str, ...]:
    ttft, tpot = (_cells(summary.latencies[metric]) for metric in ("ttft", "tpot"))
    return (
        name,
        str(summary.num_requests),
        str(summary.num_requests - summary.num_answered),
        f"{summary.output_tokens_per_s:.4g}",
        *(ttft[1], ttft[4], tpot[1], tpot[4]),
        f"{summary.attainment.share:.1%}" if summary.attainment else "-",
    )


def _cells(found: Percentiles | None) -> tuple[str, ...]:
    if found is None:
        return ("-",) * 5
    return tuple(format_seconds(value) for value in found.to_json().values())


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
