"""What happened over time, as a trace that ui.perfetto.dev opens: Chrome's trace-event format.

A process is a model; in it are tracks of its steps and its transfers. A counter shows how many requests are under way.
Times are microseconds since the trace of requests began.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ..events import (
    Action,
    Arrival,
    Decode,
    Embed,
    Event,
    Evict,
    LoadBlocks,
    Prefill,
    Reply,
    SaveBlocks,
    Step,
    StepDone,
    StepFailed,
    Transfer,
    TransferCancelled,
    TransferDone,
    TransferFailed,
    Verify,
)

__all__ = ["Timeline"]

TraceEvent: TypeAlias = dict[str, object]
_MICROSECONDS = 1e6
_TRACKS = ((1, "steps"), (2, "transfers"))
_ENDS = {TransferDone: "", TransferCancelled: " cancelled", TransferFailed: " failed"}
_REQUESTS = 0  # process of the counter of requests


@dataclass
class Timeline:
    """Watches a replay.

    Args:
        models: Names, in the order of the tracks.
    """

    models: Sequence[str]
    _events: list[tuple[float, TraceEvent]] = field(default_factory=list)  # with microseconds
    _begun: dict[int, tuple[float, Step | SaveBlocks | LoadBlocks | Transfer]] = field(default_factory=dict)
    _num_open: int = 0

    def see(self, seconds: float, item: Event | Action) -> None:
        """Notes an event or an action, and the simulated time."""
        match item:
            case Prefill() | Decode() | Verify() | Embed() | SaveBlocks() | LoadBlocks():
                self._begun[item.step_id] = seconds, item
            case Transfer():
                self._begun[item.transfer_id] = seconds, item
            case StepDone(step_id) | StepFailed(step_id):
                self._end(step_id, seconds, "" if isinstance(item, StepDone) else " failed")
            case TransferDone() | TransferCancelled() | TransferFailed():
                self._end(item.transfer_id, seconds, _ENDS[type(item)])
            case Evict(model, tier):
                self._add(seconds, model, 2, "i", f"leaves {tier}", {"s": "t"})
            case Arrival():
                self._count(seconds, 1)
            case Reply() if item.finish_reason or item.failure:
                self._count(seconds, -1)

    def to_json(self, begin_seconds: float = 0.0) -> bytes:
        """Returns the trace as a JSON file, from a moment on that is its 0."""
        names: list[TraceEvent] = [_name("process_name", _REQUESTS, None, "requests")]
        for model in self.models:
            process = self._process(model)
            names.append(_name("process_name", process, None, model))
            names += [_name("thread_name", process, track, text) for track, text in _TRACKS]
        begin = begin_seconds * _MICROSECONDS
        seen = [{**event, "ts": at - begin} for at, event in self._events if at >= begin]
        return json.dumps({"displayTimeUnit": "ms", "traceEvents": [*names, *seen]}).encode()

    def _process(self, model: str) -> int:
        return 1 + self.models.index(model)

    def _end(self, number: int, seconds: float, how: str) -> None:
        began, item = self._begun.pop(number)
        match item:
            case Transfer():
                track, name, arguments = 2, f"{item.source}->{item.destination}{how}", {"bytes": item.num_bytes}
            case SaveBlocks() | LoadBlocks():
                verb = "save" if isinstance(item, SaveBlocks) else "load"
                track, name, arguments = 1, f"{verb} KV blocks{how}", {"bytes": item.num_bytes}
            case _:
                track, name, arguments = 1, f"{item.configuration.phase}{how}", {"sequences": len(item.entries)}
        more: TraceEvent = {"dur": (seconds - began) * _MICROSECONDS, "args": arguments}
        self._add(began, item.model, track, "X", name, more)

    def _add(self, seconds: float, model: str, track: int, kind: str, name: str, more: TraceEvent) -> None:
        event: TraceEvent = {"ph": kind, "name": name, "pid": self._process(model), "tid": track, **more}
        self._events.append((seconds * _MICROSECONDS, event))

    def _count(self, seconds: float, change: int) -> None:
        self._num_open += change
        counted: TraceEvent = {"ph": "C", "name": "requests under way", "pid": _REQUESTS}
        self._events.append((seconds * _MICROSECONDS, {**counted, "args": {"requests": self._num_open}}))


def _name(kind: str, process: int, track: int | None, text: str) -> TraceEvent:
    thread: TraceEvent = {} if track is None else {"tid": track}
    return {"ph": "M", "name": kind, "pid": process, **thread, "args": {"name": text}}
