"""What `plait bench switch` says: switches alone, the agent's loop, and what was to be reached.

Switch latency is the time to the first token of a request whose model is away, less that of the next request.
Throughput is compared round by round: a way's turns a second over those of all models resident in the same round; the
figure is the median of the rounds, its interval that of a bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ....compiler.text import Table
from .agent import ANSWER_TOKENS, Turn
from .intervals import Estimate, estimate, ratio
from .rival import RivalAnswer
from .run import Loop, Plan, SwitchRuns, Way
from .station import Switch

__all__ = ["Bar", "SwitchReport"]

_WAYS: dict[Way, str] = {
    "resident": "(a) all resident",
    "declared": "half of the bytes, declared",
    "learned": "half of the bytes, not declared",
    "blocking": "(b) copy from ddr, blocking",
    "reload": "(c) reload, page cache warm",
    "reload_cold": "(c) reload, page cache dropped",
    "process": "(d) a process per switch",
}
_SWITCHES = {
    "copied": "copy from ddr",
    "reload": "(c) reload, page cache warm",
    "reload_cold": "(c) reload, page cache dropped",
}


@dataclass(frozen=True)
class Bar:
    """Something that was to be reached."""

    what: str
    wanted: float
    found: float
    at_least: bool  # or at most

    @property
    def is_met(self) -> bool:
        """Whether it was."""
        return self.found >= self.wanted if self.at_least else self.found <= self.wanted

    def to_json(self) -> dict[str, object]:
        """Returns it by name."""
        return {**asdict(self), "is_met": self.is_met}


def _median(values: np.ndarray) -> np.ndarray:
    return np.median(values, axis=-1)


def _p95(values: np.ndarray) -> np.ndarray:
    return np.percentile(values, 95, axis=-1)


@dataclass(frozen=True)
class SwitchReport:
    """Figures of a run."""

    plan: Plan
    runs: SwitchRuns

    @property
    def copy_share(self) -> Estimate:
        """Rate of a switch's copy over that of memcpy, of the same bytes right after it."""
        return estimate([s.memcpy_seconds / s.copy_seconds for s in self.runs.switches["copied"]], _median)

    def latency(self, way: str) -> Estimate:
        """Returns the latency of switches alone."""
        return estimate([s.ttft_seconds - s.hot_ttft_seconds for s in self.runs.switches[way]], _median)

    def start_latency(self, rival: str) -> Estimate:
        """Returns the latency of a switch by starting a process."""
        return estimate([_start_latency(start) for start in self.runs.starts[rival]], _median)

    def throughput_share(self, way: Way) -> Estimate:
        """Returns the turns a second of a way over those with all models resident."""
        resident = self.runs.loops["resident"].blocks
        blocks = self.runs.loops[way].blocks
        shares = [_mean_seconds(resident[n].turns) / _mean_seconds(block.turns) for n, block in blocks.items()]
        return estimate(shares, _median)

    def ttft_ratio(self, way: Way, role: str) -> Estimate:
        """Returns the 95th percentile of a way's TTFT over that with all models resident; role is chat or guard."""
        return ratio(_ttfts(self.runs.loops[way], role), _ttfts(self.runs.loops["resident"], role), _p95)

    def bars(self) -> list[Bar]:
        """Returns what was to be reached and was measured."""
        bars = [Bar("copy of a switch over memcpy", 0.85, self.copy_share.value, at_least=True)]
        if self.runs.starts:
            fastest = min(self.start_latency(name).value for name in self.runs.starts)
            times = fastest / self.latency("copied").value
            bars.append(Bar("latency of starting a process over that of a switch", 10.0, times, at_least=True))
        shares = {way: self.throughput_share(way).value for way in ("blocking", "declared", "learned")}
        bars += [
            Bar("throughput of (b) over (a)", 0.80, shares["blocking"], at_least=False),
            Bar("throughput, declared, over (a)", 0.90, shares["declared"], at_least=True),
            Bar("throughput, not declared, over (a)", 0.75, shares["learned"], at_least=True),
        ]
        for role in ("chat", "guard"):
            p95 = self.ttft_ratio("declared", role).value
            bars.append(Bar(f"p95 of TTFT of {role}, declared, over (a)", 1.15, p95, at_least=False))
        return bars

    def to_json(self) -> dict[str, object]:
        """Returns all figures, and what they are of."""
        return {
            "plan": {**asdict(self.plan), "bundle": str(self.plan.bundle)},
            "link_bytes_per_s": self.runs.link_bytes_per_s,
            "copy_over_memcpy": self.copy_share.to_json(),
            "switches": {
                way: {"latency_seconds": self.latency(way).to_json(), "runs": [asdict(s) for s in switches]}
                for way, switches in self.runs.switches.items()
            },
            "process_starts": {
                name: {"latency_seconds": self.start_latency(name).to_json(), "runs": [asdict(s) for s in starts]}
                for name, starts in self.runs.starts.items()
            },
            "agent": {way: self._loop_json(way) for way in self.runs.loops},
            "bars": [bar.to_json() for bar in self.bars()],
        }

    def tables(self) -> list[Table]:
        """Returns a table of switches alone, one of the loop and one of what was to be reached."""
        return [self._switches_table(), self._loop_table(), _bars_table(self.bars())]

    def _loop_json(self, way: Way) -> dict[str, object]:
        loop = self.runs.loops[way]
        ttfts = {role: _ttfts(loop, role) for role in ("chat", "guard")}
        return {
            "turns_per_s": 1 / _mean_seconds(loop.turns),
            "share_of_resident": self.throughput_share(way).to_json(),
            **{f"{role}_ttft_p50_seconds": estimate(values, _median).to_json() for role, values in ttfts.items()},
            **{f"{role}_ttft_p95_seconds": estimate(values, _p95).to_json() for role, values in ttfts.items()},
            **{f"{role}_ttft_p95_over_resident": self.ttft_ratio(way, role).to_json() for role in ttfts},
            "blocks": {str(number): asdict(block) for number, block in loop.blocks.items()},
        }

    def _switches_table(self) -> Table:
        memcpy = [s.num_bytes / s.memcpy_seconds for s in self.runs.switches["copied"]]
        rows = [(_SWITCHES[way], *_switch_cells(self.latency(way), of)) for way, of in self.runs.switches.items()]
        rows += [(f"(d) {name}", self.start_latency(name).text(1000), "-", "-", "-", "-") for name in self.runs.starts]
        columns = ("switch ", "latency ms", "transfers ms", "copy to hbm GB/s", "of memcpy", "files in page cache")
        note = f"memcpy: {estimate(memcpy, _median).text(1e-9)} GB/s; medians, [95 % interval]"
        num_bytes = self.runs.switches["copied"][0].num_bytes
        return Table(f"a switch of {num_bytes / 1e6:.0f} MB, links unpaced", columns, tuple(rows), note)

    def _loop_table(self) -> Table:
        rows = tuple((_WAYS[way], *self._loop_cells(way)) for way in self.runs.loops)
        columns = (
            "agent ",
            "turns",
            "turns/s",
            "of (a)",
            "TTFT ms, chat p50",
            "p95",
            "guard p50",
            "p95",
            "stall ms/turn",
            "ms/token",
            "switches/turn",
        )
        pace = self.runs.link_bytes_per_s / 1e9
        title = f"agent's loop: embed, rank, chat, guard; link from ddr to hbm at {pace:.3g} GB/s"
        note = (
            "of (a): turns/s over those of all resident, the median of the rounds; [95 % interval by bootstrap]; "
            f"not declared: after {self.plan.learning_turns} turns"
        )
        return Table(title, columns, rows, note)

    def _loop_cells(self, way: Way) -> tuple[str, ...]:
        loop = self.runs.loops[way]
        turns = loop.turns
        ttfts = [estimate(_ttfts(loop, role), how).text(1000) for role in ("chat", "guard") for how in (_median, _p95)]
        tokens = [turn.decode_seconds for turn in turns]
        return (
            str(len(turns)),
            f"{1 / _mean_seconds(turns):.3g}",
            self.throughput_share(way).text(),
            *ttfts,
            f"{1000 * float(np.mean([turn.stall_seconds for turn in turns])):.0f}",
            f"{1000 * float(np.median(tokens)) / (ANSWER_TOKENS - 1):.1f}",
            f"{sum(block.num_switches for block in loop.blocks.values()) / len(turns):.2f}",
        )


def _switch_cells(latency: Estimate, switches: Sequence[Switch]) -> tuple[str, ...]:
    rate = estimate([s.num_bytes / s.copy_seconds for s in switches], _median)
    share = estimate([s.memcpy_seconds / s.copy_seconds for s in switches], _median)
    ready = estimate([s.ready_seconds for s in switches], _median)
    cached = float(np.median([s.cached_share for s in switches]))
    return (latency.text(1000), ready.text(1000), rate.text(1e-9), share.text(), f"{cached:.0%}")


def _bars_table(bars: Sequence[Bar]) -> Table:
    rows = tuple(
        (bar.what, f"{'at least' if bar.at_least else 'at most'} {bar.wanted:g}", f"{bar.found:.3g}", _verdict(bar))
        for bar in bars
    )
    return Table("what was to be reached", ("what ", "wanted", "found", "met "), rows)


def _verdict(bar: Bar) -> str:
    return "yes" if bar.is_met else "no"


def _start_latency(start: RivalAnswer) -> float:
    return start.ttft_seconds - (start.hot_ttft_seconds or 0.0)


def _mean_seconds(turns: Sequence[Turn]) -> float:
    return float(np.mean([turn.seconds for turn in turns]))


def _ttfts(loop: Loop, role: str) -> list[float]:
    return [turn.chat_ttft_seconds if role == "chat" else turn.guard_ttft_seconds for turn in loop.turns]
