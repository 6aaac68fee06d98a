"""Placements of drawn sections on drawn chips, checked by the verifier, and of whole models."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from place.drawn import drawn_sections, drawn_targets, make_partition, make_section, make_sections, make_target

from plait.compiler.configuration import Configuration
from plait.compiler.fuse import Sections, fuse
from plait.compiler.fuse.sections import Flow
from plait.compiler.partition.result import Partition
from plait.compiler.partition.search import partition
from plait.compiler.partition.skeleton import skeleton
from plait.compiler.place import Placement, place
from plait.compiler.place.arrange import memory_units
from plait.compiler.place.bound import wire_bound
from plait.compiler.place.demand import Demand, flow_bytes
from plait.compiler.place.grid import Grid
from plait.compiler.place.route import route
from plait.compiler.subject import read_subject
from plait.compiler.target import load_target
from plait.compiler.trace import trace_model
from plait.compiler.verify.placement import verify_placement
from plait.errors import ConfigurationError

HBM = None


@given(st.data())
def test_any_section_is_placed_as_the_verifier_has_it(data: st.DataObject) -> None:
    target = data.draw(drawn_targets())
    sections = make_sections(*(data.draw(drawn_sections(target, number)) for number in range(2)))
    whole = make_partition((0, 4))
    placement = place(sections, whole, target)
    verify_placement(placement, sections, whole, target)
    assert Placement.from_json(placement.to_json()) == placement
    assert replace(place(sections, whole, target), seconds=placement.seconds) == placement
    for section in sections.sections:
        letters = "".join(placement.map_text(section.id).splitlines()[: placement.rows])
        assert sum(letter.isupper() for letter in letters) == section.num_pcus
        assert sum(letter.islower() for letter in letters) == section.num_pmus


def _shortest_by_trying_all(units: tuple[int, ...], flows: list[Flow], rows: int, columns: int) -> float:
    """Returns the least wire length over all choices of memory units and all pairings of lanes."""
    pmus = [(row, column) for row in range(rows) for column in range(columns) if (row + column) % 2]
    best = float("inf")
    for order in itertools.product(range(-1, len(units)), repeat=len(pmus)):
        tiles = [[tile for tile, owner in zip(pmus, order, strict=True) if owner == i] for i in range(len(units))]
        if tuple(map(len, tiles)) == units:
            best = min(best, sum(_shortest_flow(flow, tiles, columns) for flow in flows))
    return best


def _shortest_flow(flow: Flow, tiles: list[list[tuple[int, int]]], columns: int) -> float:
    if flow.source is None or flow.target is None:
        stage = flow.target if flow.source is None else flow.source
        assert stage is not None
        ends = [min(column + 1, columns - column) for _, column in tiles[stage]]
        return flow.bytes / len(ends) * sum(ends)
    fewer, more = sorted((tiles[flow.source], tiles[flow.target]), key=len)
    least = float("inf")
    for chosen in itertools.product(fewer, repeat=len(more)):
        times = [chosen.count(tile) for tile in fewer]
        if max(times) - min(times) <= 1:
            links = sum(abs(a[0] - b[0]) + abs(a[1] - b[1]) for a, b in zip(chosen, more, strict=True))
            least = min(least, links)
    return flow.bytes / len(more) * least


@pytest.mark.parametrize(
    ("units", "flows"),
    [
        ((2, 2), [Flow(HBM, 0, 8.0), Flow(0, 1, 4.0), Flow(1, HBM, 2.0)]),
        ((1, 3), [Flow(0, 1, 9.0)]),
        ((1, 1, 1), [Flow(HBM, 0, 1.0), Flow(0, 1, 1.0), Flow(1, 2, 1.0), Flow(0, 2, 1.0)]),
        ((1, 1, 2), [Flow(HBM, 2, 20.0), Flow(0, 2, 4.0), Flow(1, 0, 3.0)]),
        ((3,), [Flow(HBM, 0, 3.0), Flow(0, HBM, 3.0)]),
    ],
    ids=["chain", "fan out", "triangle", "weights", "alone"],
)
@pytest.mark.parametrize(("rows", "columns"), [(2, 4), (4, 2), (3, 3)])
def test_bound_and_cost_enclose_the_best_of_all_placements(
    units: tuple[int, ...], flows: list[Flow], rows: int, columns: int
) -> None:
    target = make_target(rows, columns)
    section = make_section([(1, count) for count in units], flows)
    assert target.chip is not None
    best = _shortest_by_trying_all(units, flows, rows, columns)
    assert wire_bound(Demand.of(section, target.chip), Grid(rows, columns)) <= best + 1e-9
    placement = place(make_sections(section), make_partition((0, 2)), target)
    assert best <= placement.cost + 1e-9 <= 1.5 * best + 1e-6


def test_a_large_flow_takes_many_links() -> None:
    target = make_target(16, 16)
    section = make_section([(64, 64), (64, 64)], [Flow(0, 1, 64e6)])
    placed = place(make_sections(section), make_partition((0, 2)), target).sections[0]
    assert len(placed.routes[0].lanes) == 64
    assert placed.routing_seconds < 64e6 / 64e9 / 10  # ten times faster than one link
    assert placed.max_utilisation == pytest.approx(placed.routing_seconds / 1e-6)


def test_busy_links_cost_wire_length_rather_than_time() -> None:
    target = make_target(16, 16)
    flows = [Flow(HBM, i, 4e5) for i in range(7)] + [Flow(i, j, 3e5) for i in range(7) for j in range(i + 1, 7)]
    section = make_section([(18, 18)] * 7, flows)
    assert target.chip is not None
    grid, demand = Grid(16, 16), Demand.of(section, target.chip)
    tried = [
        route(flows, flow_bytes(section), pmus, grid, 0.5 * 64e3)[1].max_bytes for pmus in memory_units(demand, grid)
    ]
    placed = place(make_sections(section), make_partition((0, 2)), target).sections[0]
    assert min(tried) > 0.8 * 64e3
    assert placed.max_utilisation == pytest.approx(min(tried) / 64e3)


def test_an_operation_that_has_the_whole_chip_is_placed_optimally() -> None:
    target = make_target(6, 8)
    section = make_section([(24, 24)], [Flow(HBM, 0, 1e4), Flow(0, HBM, 1e3)])
    large = replace(section, stages=(replace(section.stages[0], sram_bytes=1 << 30),))  # streamed
    sections = make_sections(large)
    placement = place(sections, make_partition((0, 2)), target)
    verify_placement(placement, sections, make_partition((0, 2)), target)
    assert placement.status == "optimal"
    assert placement.gap == pytest.approx(0.0, abs=1e-9)


def test_a_map_has_a_letter_for_every_tile() -> None:
    sections = make_sections(make_section([(2, 1), (1, 3)], [Flow(0, 1, 1.0)]))
    placement = place(sections, make_partition((0, 2)), make_target(2, 4))
    lines = placement.map_text(0, ["norm", "linear"]).splitlines()
    assert lines[2:] == ["a norm: 2 PCUs, 1 PMUs", "b linear: 1 PCUs, 3 PMUs"]
    assert sorted("".join(lines[:2])) == sorted("AAaBbbb.")
    assert all(
        (letter.islower()) == bool((row + column) % 2) for row in (0, 1) for column, letter in enumerate(lines[row])
    )


def test_stages_that_exchange_most_are_neighbours() -> None:
    target = make_target(8, 8)
    flows = [Flow(0, 3, 1e6), Flow(1, 2, 1e6), Flow(0, 1, 1.0), Flow(2, 3, 1.0)]
    near = place(make_sections(make_section([(8, 8)] * 4, flows)), make_partition((0, 2)), target)
    assert near.sections[0].mean_hops < 4


def test_pipeline_stages_have_devices_of_their_own() -> None:
    target = make_target(4, 4)
    sections = make_sections(*(make_section([(1, 1)], [], number) for number in range(3)))
    placement = place(sections, make_partition((0, 4, 6)), target)
    assert [(s.first_device, s.num_devices, s.first_launch, s.end_launch) for s in placement.stages] == [
        (0, 2, 0, 2),
        (2, 2, 2, 3),
    ]
    assert [placement.stage_of(launch) for launch in range(3)] == [0, 0, 1]
    assert "launches 2-2 on devices 2-3" in placement.as_text()


def test_weights_that_are_read_again_load_links_again() -> None:
    target = make_target(4, 4)
    once = make_section([(1, 1), (1, 1)], [Flow(HBM, 0, 100.0), Flow(0, 1, 10.0)])
    again = replace(once, read_bytes=300.0, num_passes=3)
    routes = place(make_sections(again), make_partition((0, 2)), target).sections[0].routes
    assert [route.bytes for route in routes] == [300.0, 10.0]


def test_too_many_units_are_refused() -> None:
    sections = make_sections(make_section([(1, 9)], []))
    with pytest.raises(ConfigurationError, match="section 0 asks for 9 PMUs, the chip has 8; fuse for this target"):
        place(sections, make_partition((0, 2)), make_target(4, 4))


def test_a_section_across_a_cut_is_refused() -> None:
    sections = make_sections(make_section([(1, 1)], []))
    with pytest.raises(ConfigurationError, match="section 0 of operations 0-1 is not within one pipeline stage"):
        place(sections, make_partition((0, 1, 2)), make_target(4, 4))
    with pytest.raises(ConfigurationError, match="1 launches are of operations that no pipeline stage has"):
        place(sections, make_partition((-2, 0)), make_target(4, 4))


def test_what_is_no_placement_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="not a placement: name: Field required"):
        Placement.from_json("{}")
    with pytest.raises(ConfigurationError, match="not a placement: Expecting value"):
        Placement.from_json("")


def _fused(model: str, name: str, phase: str, sequence: int, num_stages: int = 1) -> tuple[Sections, Partition]:
    target = load_target(name)
    configuration = Configuration(phase, 1, 1 if phase == "decode" else sequence, sequence)  # pyright: ignore[reportArgumentType]
    traced = trace_model(read_subject(model, base=Path()).config, configuration, "bfloat16")
    budget = target.tiers["hbm"].capacity_bytes
    found = partition(
        traced,
        target,
        dtype="bfloat16",
        num_devices=target.num_devices,
        num_stages=num_stages,
        budget_bytes=budget,
    )
    return fuse(skeleton(traced), found.sharding, target, "bfloat16"), found


@pytest.mark.parametrize(
    ("name", "phase", "num_stages"),
    [("sn40l-8", "prefill", 1), ("sn40l-8", "decode", 1), ("sn40l-8", "decode", 2), ("h100-8", "decode", 2)],
    ids=["prefill", "decode", "two stages", "no chip"],
)
def test_a_model_is_placed(name: str, phase: str, num_stages: int) -> None:
    sections, found = _fused("llama-2-7b", name, phase, 4096, num_stages)
    target = load_target(name)
    placement = place(sections, found, target)
    verify_placement(placement, sections, found, target)
    assert len(placement.stages) == num_stages
    assert placement.max_utilisation < 1  # routing slows nothing, not even looking up the embedding
    repeated = [each for each in placement.sections if sections.counts[each.section] > 1]
    assert max(each.max_utilisation for each in repeated) < 0.5
    assert placement.gap < 0.35
    if target.chip is None:
        assert placement.cost == 0
        assert placement.bottleneck is None
    else:
        assert placement.bottleneck is not None
