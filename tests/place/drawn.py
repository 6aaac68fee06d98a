"""Chips, sections and partitions, drawn or made by hand, for the tests of placement."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import strategies as st

from plait.compiler.fuse.sections import Flow, Launch, Section, Sections, StageUnits
from plait.compiler.mesh import Mesh
from plait.compiler.partition.footprint import Footprint
from plait.compiler.partition.plan import Sharding
from plait.compiler.partition.result import Partition, Stage
from plait.compiler.target import Chip, Compute, Target, Tier

PMU_BYTES = 1024


def make_target(rows: int, columns: int) -> Target:
    chip = Chip(rows, columns, PMU_BYTES, clock_hz=1e9, pmu_bytes_per_cycle=64.0, link_bytes_per_cycle=64.0)
    return Target(
        name="drawn",
        description="",
        kind="unified",
        num_devices=4,
        compute=Compute({"bfloat16": 1e12}),
        tiers={"hbm": Tier(1 << 30, 1e9)},
        links={},
        source="",
        chip=chip,
    )


def make_section(units: Sequence[tuple[int, int]], flows: Sequence[Flow], number: int = 0) -> Section:
    stages = tuple(
        StageUnits(number + i, f"op{i}", f"path/{i}", 0, pcus, pmus, pmus * PMU_BYTES, 1e-6, 1e-6)
        for i, (pcus, pmus) in enumerate(units)
    )
    read = sum(flow.bytes for flow in flows if flow.source is None)
    return Section(
        id=number,
        begin=2 * number,
        end=2 * number + 2,
        stages=stages,
        flows=tuple(flows),
        num_tiles=4,
        num_passes=1,
        num_kernels=1,
        flops=1e6,
        read_bytes=read,
        written_bytes=0.0,
        compute_seconds=1e-6,
        sram_seconds=1e-6,
        hbm_seconds=1e-6,
        network_seconds=0.0,
        launch_seconds=0.0,
    )


def make_sections(*sections: Section) -> Sections:
    launches = tuple(Launch(section.id, section.begin) for section in sections)
    return Sections("graph", "drawn", "o3", "hardware", sections, launches)


def make_partition(cuts: Sequence[int], num_devices: int = 2) -> Partition:
    """Returns pipeline stages of the operations between cuts, with so many devices each."""
    sharding = Sharding(Mesh(("x",), (num_devices,)), (), {}, (), {}, ())
    stages = tuple(
        Stage(begin, end, i * num_devices, 1.0, Footprint(0, 0, 0, 0, 0, begin))
        for i, (begin, end) in enumerate(itertools.pairwise(cuts))
    )
    return Partition(sharding, stages, "latency", None, 1.0, 1.0, "optimal", 0.0, ())


@st.composite
def drawn_targets(draw: st.DrawFn, most: int = 16) -> Target:
    rows = draw(st.integers(1, most))
    return make_target(rows, draw(st.integers(2 if rows == 1 else 1, most)))


@st.composite
def drawn_sections(draw: st.DrawFn, target: Target, number: int = 0) -> Section:
    """Stages that often use every unit of the chip, with flows forwards and from and to HBM."""
    assert target.chip is not None
    most_stages = min(target.chip.num_pcus, target.chip.num_pmus, 12)
    num_stages = draw(st.integers(1, most_stages))
    pcus = draw(_shares(target.chip.num_pcus, num_stages))
    pmus = draw(_shares(target.chip.num_pmus, num_stages))
    ends = st.tuples(
        st.none() | st.integers(0, num_stages - 1), st.none() | st.integers(0, num_stages - 1), st.floats(0, 1e6)
    )
    flows: dict[tuple[int | None, int | None], float] = {}
    for source, end, size in draw(st.lists(ends, max_size=16)):
        if (source is None) != (end is None) or (source is not None and end is not None and source < end):
            flows[source, end] = size
    return make_section(list(zip(pcus, pmus, strict=True)), [Flow(*both, size) for both, size in flows.items()], number)


@st.composite
def _shares(draw: st.DrawFn, total: int, count: int) -> list[int]:
    free = draw(st.sampled_from([0, 0, 1, total // 2]))
    left = max(0, total - count - free)
    cuts = sorted(draw(st.lists(st.integers(0, left), min_size=count - 1, max_size=count - 1)))
    return [1 + after - before for before, after in zip([0, *cuts], [*cuts, left], strict=True)]
