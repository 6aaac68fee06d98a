"""A schedule as a trace that ui.perfetto.dev opens: Chrome's trace-event format.

A process is the devices of one pipeline stage, all alike; in it are tracks of kernels, collectives, launches, and of
what is handed over, joins caches or is done by the host, and counters of HBM traffic and FLOPs. Times are microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TypeAlias

from ..fuse.sections import Section
from ..schedule import Step, StepKind
from .inspection import Inspection, module_of

__all__ = ["perfetto_json", "trace_events"]

Event: TypeAlias = dict[str, object]
_TRACKS: dict[StepKind, tuple[int, str]] = {
    "kernel": (1, "kernels"),
    "collective": (2, "collectives"),
    "launch": (3, "launches"),
    "handover": (4, "hand-over"),
    "append": (5, "caches"),
    "host": (6, "host"),
}
_MICROSECONDS = 1e6


def perfetto_json(seen: Inspection) -> bytes:
    """Returns the trace as a JSON file."""
    data = {
        "displayTimeUnit": "ns",
        "otherData": {"plan": seen.name, "target": seen.compilation.target.name, "mesh": str(seen.partition.mesh)},
        "traceEvents": list(trace_events(seen)),
    }
    return json.dumps(data).encode()


def trace_events(seen: Inspection) -> Iterator[Event]:
    """Yields the events, names of the tracks first."""
    used = {(step.stage, step.kind) for step in seen.schedule.steps}
    for stage, devices in enumerate(seen.placement.stages):
        last = devices.first_device + devices.num_devices - 1
        which = f"device {last}" if devices.num_devices == 1 else f"devices {devices.first_device}-{last}, all alike"
        yield _metadata("process_name", stage, None, f"stage {stage}: {which}")
        yield {"ph": "M", "name": "process_sort_index", "pid": stage, "args": {"sort_index": stage}}
        for kind, (track, name) in _TRACKS.items():
            if (stage, kind) in used:
                yield _metadata("thread_name", stage, track, name)
    for step in seen.schedule.steps:
        yield _event(seen, step)
        if step.kind == "kernel" and step.section is not None:
            yield from _counters(seen.sections.sections[step.section], step)


def _metadata(name: str, stage: int, track: int | None, text: str) -> Event:
    tid: Event = {} if track is None else {"tid": track}
    return {"ph": "M", "name": name, "pid": stage, **tid, "args": {"name": text}}


def _event(seen: Inspection, step: Step) -> Event:
    track, label = _TRACKS[step.kind]
    name, arguments = label, dict[str, object]()
    if step.section is not None and step.operation is not None:
        section = seen.sections.sections[step.section]
        module = module_of(seen.works(step.operation, section))
        name = module if step.kind == "kernel" else f"{step.kind} of {module}"
        arguments = _arguments(section, step)
    return {
        "ph": "X",
        "name": name,
        "cat": step.kind,
        "pid": step.stage,
        "tid": track,
        "ts": step.begin_seconds * _MICROSECONDS,
        "dur": step.seconds * _MICROSECONDS,
        "args": arguments,
    }


def _arguments(section: Section, step: Step) -> Event:
    if step.kind != "kernel":
        return {"section": section.id}
    return {
        "section": section.id,
        "first operation": step.operation,
        "bound": section.bound,
        "flops": section.flops,
        "read bytes": section.read_bytes,
        "written bytes": section.written_bytes,
        "compute s": section.compute_seconds,
        "sram s": section.sram_seconds,
        "hbm s": section.hbm_seconds,
        "PCUs": section.num_pcus,
        "PMUs": section.num_pmus,
    }


def _counters(section: Section, step: Step) -> Iterator[Event]:
    """Yields rates over a kernel, and that they are 0 after it."""
    end = step.begin_seconds + step.seconds
    rates = {
        "HBM GB/s of a device": (section.read_bytes + section.written_bytes) / step.seconds / 1e9,
        "TFLOP/s of a device": section.flops / step.seconds / 1e12,
    }
    for name, rate in rates.items():
        for at, value in ((step.begin_seconds, rate), (end, 0.0)):
            yield {"ph": "C", "name": name, "pid": step.stage, "ts": at * _MICROSECONDS, "args": {"rate": value}}
