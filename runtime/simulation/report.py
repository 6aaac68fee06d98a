"""The figures of a replayed trace, as JSON and as tables: those of a benchmark, and what only a simulation knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...compiler.text import Table, format_bytes, format_seconds
from ..bench.measures import Bound, Percentiles
from ..bench.summary import Summary, summarize
from .machine import Machine
from .replay import Replayed

__all__ = ["TraceReport", "report"]

_HBM = "hbm"


@dataclass(frozen=True)
class TraceReport:
    """What a machine makes of a trace."""

    machine: Machine
    replayed: Replayed
    summary: Summary

    @property
    def num_switches(self) -> int:
        """How often a model was brought to hbm."""
        return sum(count for (_, destination), count in self.replayed.transfers.items() if destination == _HBM)

    @property
    def times_real_time(self) -> float:
        """Simulated seconds a second."""
        return self.replayed.seconds / max(self.replayed.wall_seconds, 1e-9)

    def to_json(self) -> dict[str, object]:
        """Returns all figures; equal input gives equal ones, but for `wall_seconds` and `times_real_time`."""
        found = self.replayed
        return {
            "bundle": self.machine.name,
            "target": self.machine.target.name,
            "costs": self.machine.source,
            "budget_bytes": {"hbm": self.machine.budget.hbm, "ddr": self.machine.budget.ddr},
            **self.summary.to_json(),
            "queue_seconds": _percentiles(found.queue_seconds),
            "queue_switch_seconds": _percentiles(found.switch_seconds),
            "switches": self.num_switches,
            "arrivals": {name: found.arrivals[name] for name in ("hot", "warm", "cold")},
            "moved_bytes": {_way(way): size for way, size in sorted(found.moved_bytes.items())},
            "moved_kv_bytes": {_way(way): size for way, size in sorted(found.moved_kv_bytes.items())},
            "transfers": {_way(way): count for way, count in sorted(found.transfers.items())},
            "prefix_cache": {"prompt_tokens": found.prompt_tokens, "hit_tokens": found.cached_tokens},
            "steps": dict(sorted(found.num_steps.items())),
            "busy_share": found.busy_seconds / found.seconds if found.seconds else 0.0,
            "joules": found.joules,
            "joules_source": None if found.joules is None else "modelled",
            "simulated_seconds": found.seconds,
            "wall_seconds": found.wall_seconds,
            "times_real_time": self.times_real_time,
        }

    def facts(self) -> list[tuple[str, object]]:
        """Returns the figures that are no table, by name."""
        found = self.replayed
        budget = self.machine.budget
        arrivals = ", ".join(f"{found.arrivals[name]} {name}" for name in ("hot", "warm", "cold"))
        moved = [
            ("moved", f"{format_bytes(found.moved_bytes[way])} {_way(way)} in {count} transfers")
            for way, count in sorted(found.transfers.items())
        ]
        moved += [
            ("moved", f"{format_bytes(size)} of KV blocks {_way(way)}")
            for way, size in sorted(found.moved_kv_bytes.items())
        ]
        facts: list[tuple[str, object]] = [
            ("machine", f"{self.machine.name} on {self.machine.target.name}, {self.machine.source}"),
            ("budget", f"hbm {format_bytes(budget.hbm)}, ddr {format_bytes(budget.ddr)} of each device"),
            *self.summary.facts(),
            ("model at arrival", arrivals),
            ("switches", self.num_switches),
            *moved,
            ("steps", ", ".join(f"{count} {phase}" for phase, count in sorted(found.num_steps.items())) or "none"),
            ("busy", f"{found.busy_seconds / found.seconds:.1%} of the time" if found.seconds else "-"),
        ]
        if found.cached_tokens:
            share = found.cached_tokens / found.prompt_tokens
            facts.append(("prefix cache", f"{found.cached_tokens} of {found.prompt_tokens} prompt tokens, {share:.1%}"))
        if found.joules is not None:
            facts.append(("energy, modelled", f"{found.joules:,.0f} J"))
        wall = format_seconds(found.wall_seconds)
        return [*facts, ("simulated in", f"{wall}, {self.times_real_time:.3g} times as fast as real time")]

    def tables(self) -> list[Table]:
        """Returns the tables of a benchmark, and one of how long requests waited."""
        heads = ("wait ", "mean", "p50", "p90", "p95", "p99")
        waits = (
            ("for the first step", self.replayed.queue_seconds),
            ("of it for a switch", self.replayed.switch_seconds),
        )
        rows = tuple(
            (name, *map(format_seconds, found.to_json().values()))
            for name, seconds in waits
            if (found := Percentiles.of(seconds)) is not None
        )
        return [*self.summary.tables(), Table("waits", heads, rows)]


def report(machine: Machine, replayed: Replayed, bounds: Sequence[Bound] = ()) -> TraceReport:
    """Returns the figures of a replayed trace, with how many requests keep some bounds."""
    return TraceReport(machine, replayed, summarize(replayed.run, bounds))


def _percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    found = Percentiles.of(seconds)
    return None if found is None else found.to_json()


def _way(way: tuple[str, str]) -> str:
    return "->".join(way)
