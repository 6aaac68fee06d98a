"""Sections as a graph for graphviz: a node a section, an edge where one hands values to another.

Launches of the same section on the same pipeline stage are one node; an edge says how many bytes a device hands over
in a step, of all launches together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TypeAlias

from ..partition.skeleton import buffer_roots
from ..text import format_bytes, format_seconds
from .inspection import Inspection

__all__ = ["Handed", "dot_text", "handed_between"]

_Key: TypeAlias = tuple[int, int]  # pipeline stage and section
Handed: TypeAlias = Counter[tuple[_Key, _Key]]
_COLOURS = {
    "compute": "#f4a261",
    "sram": "#e9c46a",
    "hbm": "#8ecae6",
    "ddr": "#b8a1d9",
    "network": "#90be6d",
    "launch": "#cccccc",
}


def dot_text(seen: Inspection) -> str:
    """Returns the graph in the DOT language."""
    return "\n".join(_lines(seen)) + "\n"


def _lines(seen: Inspection) -> Iterator[str]:
    yield f"digraph {_quoted(seen.name)} {{"
    yield '  rankdir=LR; node [shape=box, style="rounded,filled", fontname="sans-serif"]; edge [fontname="sans-serif"];'
    for stage, devices in enumerate(seen.placement.stages):
        last = devices.first_device + devices.num_devices - 1
        yield f"  subgraph cluster_{stage} {{"
        yield f"    label={_quoted(f'stage {stage}: devices {devices.first_device}-{last}')};"
        launches = seen.sections.launches[devices.first_launch : devices.end_launch]
        for identity, count in sorted(Counter(launch.section for launch in launches).items()):
            yield f"    {_node((stage, identity))} [{_about(seen, identity, count)}];"
        yield "  }"
    for (source, target), size in sorted(handed_between(seen).items()):
        yield f"  {_node(source)} -> {_node(target)} [label={_quoted(format_bytes(size))}];"
    yield "}"


def _node(key: _Key) -> str:
    return f"s{key[0]}_{key[1]}"


def _about(seen: Inspection, identity: int, count: int) -> str:
    section = seen.sections.sections[identity]
    label = (
        f"section {identity} x {count}\n{seen.title(section)}\n"
        f"{format_seconds(section.seconds)} each, {section.bound} bound\n"
        f"{section.num_pcus} PCUs, {section.num_pmus} PMUs"
    )
    return f"label={_quoted(label)}, fillcolor={_quoted(_COLOURS[section.bound])}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def handed_between(seen: Inspection) -> Handed:
    """Returns the bytes that a device hands from one section to another through memory, in a step."""
    graph, mesh = seen.compilation.traced.graph, seen.partition.mesh
    roots, kept = buffer_roots(graph), seen.partition.sharding.layouts(graph)
    launches, keys = seen.launch_of_operation, list(_keys(seen))
    made = {
        roots.get(value, value): launches[operation.id]
        for operation in graph.operations
        if operation.id in launches and not operation.is_view
        for value in operation.outputs
    }
    found: Handed = Counter()
    told: set[tuple[int, int]] = set()  # buffer and launch
    for operation in graph.operations:
        reader = launches.get(operation.id)
        for buffer in (roots.get(value, value) for value in operation.inputs):
            maker = made.get(buffer)
            if reader is None or maker is None or maker >= reader or (buffer, reader) in told:
                continue
            told.add((buffer, reader))
            found[keys[maker], keys[reader]] += graph.values[buffer].bytes // mesh.num_shards(kept[buffer].axes)
    return found


def _keys(seen: Inspection) -> Iterator[_Key]:
    for stage, devices in enumerate(seen.placement.stages):
        for launch in seen.sections.launches[devices.first_launch : devices.end_launch]:
            yield stage, launch.section
