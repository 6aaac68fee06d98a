"""The benchmark: every way of switching in turn, so that whatever else the machine does hits all of them.

First switches alone, as fast as the machine copies: by a copy from ddr, by reloading files, by starting a process. Then
the agent's loop with the link paced: with all models resident, and with room for half of their bytes. A round is a
block of each; the slow ones take part in a few rounds only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from .agent import ANSWER_TOKENS, Turn, chat_text, guard_text
from .rival import Rival, RivalAnswer
from .station import Ahead, Block, Station, StationSpec, Switch

__all__ = ["Loop", "Plan", "SwitchRuns", "Way", "run_switching"]

Way: TypeAlias = Literal["resident", "declared", "learned", "blocking", "reload", "reload_cold", "process"]

_RELOAD_TURNS = 4  # of a block; each reads two models from disk
_PROCESS_ROUNDS = 3  # of one turn
_SWITCHES_A_ROUND = 3
_TIMELINE_TURNS = 4
_STEPS_A_SWITCH = 10  # what a switch costs on SN40L, in decode steps


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    bundle: Path
    link_bytes_per_s: float | None  # of the loop; None: that makes a switch last ten decode steps
    num_turns: int  # of the loop with all resident, and of the declared one
    block_turns: int
    num_rounds: int  # that the other ways take part in, and of switches alone
    learning_turns: int = 32  # that the look-ahead has seen before the loop that is not declared counts
    wants_timeline: bool = False

    @property
    def num_blocks(self) -> int:
        """Rounds of the loop."""
        return max(1, -(-self.num_turns // self.block_turns))

    @property
    def full_rounds(self) -> frozenset[int]:
        """The rounds that every way takes part in, evenly spread."""
        number = min(self.num_rounds, self.num_blocks)
        return frozenset(index * self.num_blocks // number for index in range(number))


@dataclass
class Loop:
    """What the agent's loop took in one way, by round."""

    blocks: dict[int, Block] = field(default_factory=dict[int, Block])

    @property
    def turns(self) -> list[Turn]:
        """All turns."""
        return [turn for block in self.blocks.values() for turn in block.turns]


@dataclass
class SwitchRuns:
    """All that was measured."""

    switches: dict[str, list[Switch]] = field(default_factory=dict[str, list[Switch]])  # copied, reload, reload_cold
    starts: dict[str, list[RivalAnswer]] = field(default_factory=dict[str, list[RivalAnswer]])  # by rival
    link_bytes_per_s: float = 0.0  # of the loops
    loops: dict[Way, Loop] = field(default_factory=dict[Way, Loop])
    timeline: bytes | None = None


def run_switching(
    plan: Plan,
    open_station: Callable[[StationSpec], Station],
    rivals: Sequence[Rival],
    progress: Callable[[str, int, int], None],
) -> SwitchRuns:
    """Measures.

    Args:
        plan: How much.
        open_station: Makes a runtime to measure.
        rivals: Servers to be started anew for each model; the loop is run with the one that starts fastest.
        progress: Told what is done, and how much of how much.

    Raises:
        ExecutionError: if a runtime or a rival fails.
    """
    runs = SwitchRuns()
    with ExitStack() as stack:
        stations = _opened(stack, open_station, _alone(plan), progress)
        _measure_switches(plan, runs, stations, rivals, progress)
    with ExitStack() as stack:
        stations = _opened(stack, open_station, {"resident": StationSpec(plan.bundle, "all", "one", None)}, progress)
        warm_up = stations["resident"].block("none", plan.block_turns)
        runs.link_bytes_per_s = plan.link_bytes_per_s or _fitting_link(runs.switches["copied"], warm_up)
        stations |= _opened(stack, open_station, _looping(plan, runs.link_bytes_per_s), progress)
        _measure_loops(plan, runs, stations, _fastest(runs, rivals), progress)
        if plan.wants_timeline:
            runs.timeline = stations["half"].timeline("declared", _TIMELINE_TURNS)
    return runs


def _alone(plan: Plan) -> dict[str, StationSpec]:
    return {
        "copied": StationSpec(plan.bundle, "one", "all", None),
        "reload": StationSpec(plan.bundle, "one", "one", None),
    }


def _looping(plan: Plan, link_bytes_per_s: float) -> dict[str, StationSpec]:
    return {
        "half": StationSpec(plan.bundle, "half", "all", link_bytes_per_s),
        "reload": StationSpec(plan.bundle, "half", "one", link_bytes_per_s),
    }


def _fitting_link(switches: Sequence[Switch], resident: Block) -> float:
    """Returns the bytes a second that make a switch last as long as some decode steps with all models resident."""
    step_seconds = float(np.median([turn.decode_seconds for turn in resident.turns])) / (ANSWER_TOKENS - 1)
    return switches[-1].num_bytes / (_STEPS_A_SWITCH * step_seconds)


def _opened(
    stack: ExitStack,
    open_station: Callable[[StationSpec], Station],
    specs: Mapping[str, StationSpec],
    progress: Callable[[str, int, int], None],
) -> dict[str, Station]:
    stations: dict[str, Station] = {}
    for number, (name, spec) in enumerate(specs.items()):
        progress("start runtimes", number, len(specs))
        stations[name] = station = open_station(spec)
        stack.callback(station.close)
    progress("start runtimes", len(specs), len(specs))
    return stations


def _measure_switches(
    plan: Plan,
    runs: SwitchRuns,
    stations: Mapping[str, Station],
    rivals: Sequence[Rival],
    progress: Callable[[str, int, int], None],
) -> None:
    runs.switches = {"copied": [], "reload": [], "reload_cold": []}
    runs.starts = {rival.name: [] for rival in rivals}
    for number in range(plan.num_rounds):
        progress("switches", number, plan.num_rounds)
        runs.switches["copied"] += stations["copied"].switches(_SWITCHES_A_ROUND)
        runs.switches["reload"] += stations["reload"].switches(1)
        runs.switches["reload_cold"] += stations["reload"].switches(1, cold_files=True)
        for rival in rivals if number < _PROCESS_ROUNDS else ():
            runs.starts[rival.name].append(rival.answer(0, "What causes tides?", 1, asks_again=True))
    progress("switches", plan.num_rounds, plan.num_rounds)


def _fastest(runs: SwitchRuns, rivals: Sequence[Rival]) -> Rival | None:
    return min(rivals, key=lambda rival: min(start.ttft_seconds for start in runs.starts[rival.name]), default=None)


def _measure_loops(
    plan: Plan,
    runs: SwitchRuns,
    stations: Mapping[str, Station],
    rival: Rival | None,
    progress: Callable[[str, int, int], None],
) -> None:
    ways: list[tuple[Way, str, Ahead]] = [
        ("resident", "resident", "none"),
        ("declared", "half", "declared"),
        ("learned", "half", "learned"),
        ("blocking", "half", "none"),
    ]
    reloads: tuple[tuple[Way, bool], ...] = (("reload", False), ("reload_cold", True))
    for way, station, ahead in ways:  # programs are loaded, and there is something to be learned from
        progress("warm up", len(runs.loops), len(ways))
        if way != "resident":  # it was asked before the link's pace was known
            stations[station].block(ahead, plan.learning_turns if ahead == "learned" else plan.block_turns)
        runs.loops[way] = Loop()
    progress("warm up", len(ways), len(ways))
    for number in range(plan.num_blocks):
        progress("agent", number, plan.num_blocks)
        is_full = number in plan.full_rounds
        chosen = ways if is_full else ways[:2]
        for way, station, ahead in chosen if number % 2 == 0 else reversed(chosen):
            runs.loops[way].blocks[number] = stations[station].block(ahead, plan.block_turns)
        if not is_full:
            continue
        for way, is_cold in reloads:
            blocks = runs.loops.setdefault(way, Loop()).blocks
            blocks[number] = stations["reload"].block("none", _RELOAD_TURNS, cold_files=is_cold)
        if rival is not None and len(runs.loops.setdefault("process", Loop()).blocks) < _PROCESS_ROUNDS:
            runs.loops["process"].blocks[number] = _process_turn(rival, stations["resident"], number)
    progress("agent", plan.num_blocks, plan.num_blocks)


def _process_turn(rival: Rival, encoders: Station, number: int) -> Block:
    """Returns a turn whose two decoders are processes, started for it; the encoders are resident elsewhere."""
    passage, encoding_seconds = encoders.passage(number)
    chat = rival.answer(0, chat_text(number, passage), ANSWER_TOKENS)
    guard = rival.answer(1, guard_text(number, passage), 1)
    turn = Turn(
        encoding_seconds + chat.seconds + guard.seconds,
        chat.ttft_seconds,
        guard.ttft_seconds,
        chat.seconds - chat.ttft_seconds,
        chat.ready_seconds + guard.ready_seconds,
    )
    return Block((turn,), 2, 0)
