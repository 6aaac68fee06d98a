"""The reports of SambaTune as CSV files, with the columns that its users know.

`section_report`: a line for each section on each chip that runs it. Its DDR columns are the traffic with the memory
off the chip, which is HBM here; its utilizations are the shares of the chip's units that a section has.
`stage_report`: a line for each stage of a section. `paths_report`: for each stage that nothing feeds but memory and
each that feeds nothing but memory, the slowest chain of stages between them. Cycles are those of the chip's clock;
without a chip there are none.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from ..fuse.sections import Section
from .inspection import Inspection

__all__ = ["PATH_COLUMNS", "SECTION_COLUMNS", "STAGE_COLUMNS", "sambatune_files", "stage_depths"]

Cell: TypeAlias = str | int | float
SECTION_COLUMNS = (
    "section_id",
    "chip_id",
    "partition_id",
    "section type",
    "throughput samples/s",
    "latency cycles",
    "latency sec",
    "DDR read GB/s",
    "DDR write GB/s",
    "DDR total GB/s",
    "PMU count",
    "PMU utilization",
    "PCU count",
    "PCU utilization",
)
STAGE_COLUMNS = ("section id", "stage depth", "stage id", "related stage ids", "node names", "latency cycles")
PATH_COLUMNS = ("section id", "buffer chain", "latency", "nodes", "src stage depth", "dst stage depth")


def sambatune_files(seen: Inspection) -> dict[str, bytes]:
    """Returns the three reports by file name."""
    return {
        "section_report.csv": _csv(SECTION_COLUMNS, _sections(seen)),
        "stage_report.csv": _csv(STAGE_COLUMNS, _stages(seen)),
        "paths_report.csv": _csv(PATH_COLUMNS, _paths(seen)),
    }


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode()


def _sections(seen: Inspection) -> Iterator[tuple[Cell, ...]]:
    chip, batch = seen.compilation.target.chip, seen.compilation.configuration.batch
    for stage, devices in enumerate(seen.placement.stages):
        launches = seen.sections.launches[devices.first_launch : devices.end_launch]
        for identity in sorted({launch.section for launch in launches}):
            section = seen.sections.sections[identity]
            seconds = section.seconds
            rates = [moved / seconds / 1e9 for moved in (section.read_bytes, section.written_bytes)]
            for device in range(devices.first_device, devices.first_device + devices.num_devices):
                yield (
                    identity,
                    device,
                    stage,
                    seen.sections.mode,
                    batch / seconds,
                    _cycles(seen, seconds),
                    seconds,
                    *rates,
                    sum(rates),
                    section.num_pmus,
                    section.num_pmus / chip.num_pmus if chip else "",
                    section.num_pcus,
                    section.num_pcus / chip.num_pcus if chip else "",
                )


def _cycles(seen: Inspection, seconds: float) -> Cell:
    chip = seen.compilation.target.chip
    return round(seconds * chip.clock_hz) if chip else ""


def _stages(seen: Inspection) -> Iterator[tuple[Cell, ...]]:
    for section in seen.sections.sections:
        depths = stage_depths(section)
        related = _neighbours(section)
        for place, stage in enumerate(section.stages):
            others = " ".join(map(str, sorted(related[place])))
            yield section.id, depths[place], place, others, _node(section, place), _cycles(seen, stage.seconds)


def _paths(seen: Inspection) -> Iterator[tuple[Cell, ...]]:
    for section in seen.sections.sections:
        depths = stage_depths(section)
        after = _after(section)
        has_before = {target for targets in after.values() for target in targets}
        ends = [place for place in range(len(section.stages)) if not after[place]]
        for begin in (place for place in range(len(section.stages)) if place not in has_before):
            longest = _longest(section, begin, after)
            for end in (end for end in ends if end in longest):
                chain = longest[end]
                seconds = sum(section.stages[place].seconds for place in chain)
                names = " ".join(_node(section, place) for place in chain)
                buffers = " -> ".join(map(str, chain))
                yield section.id, buffers, _cycles(seen, seconds), names, depths[begin], depths[end]


def _node(section: Section, place: int) -> str:
    stage = section.stages[place]
    return f"{stage.path}/{stage.name}".lstrip("/")


def _after(section: Section) -> Mapping[int, list[int]]:
    """Returns the stages that each stage feeds; data flows to later ones only."""
    found: dict[int, list[int]] = {place: [] for place in range(len(section.stages))}
    for flow in section.flows:
        if flow.source is not None and flow.target is not None and flow.source < flow.target:
            found[flow.source].append(flow.target)
    return found


def _neighbours(section: Section) -> Mapping[int, set[int]]:
    found: dict[int, set[int]] = {place: set() for place in range(len(section.stages))}
    for place, targets in _after(section).items():
        found[place].update(targets)
        for target in targets:
            found[target].add(place)
    return found


def stage_depths(section: Section) -> list[int]:
    """Returns of each stage of a section how many stages its data passes before it, at most."""
    depths = [0] * len(section.stages)
    for place, targets in _after(section).items():
        for target in targets:
            depths[target] = max(depths[target], depths[place] + 1)
    return depths


def _longest(section: Section, begin: int, after: Mapping[int, list[int]]) -> dict[int, tuple[int, ...]]:
    """Returns the slowest chain from a stage to each that it reaches."""
    chains: dict[int, tuple[int, ...]] = {begin: (begin,)}
    seconds = {begin: section.stages[begin].seconds}
    for place in sorted(after):
        if place not in chains:
            continue
        for target in after[place]:
            total = seconds[place] + section.stages[target].seconds
            if total > seconds.get(target, -1.0):
                chains[target], seconds[target] = (*chains[place], target), total
    return chains
