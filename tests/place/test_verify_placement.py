"""Each check of the verifier fails where it should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from place.drawn import make_partition, make_section, make_sections, make_target

from plait.compiler.fuse.sections import Flow
from plait.compiler.place import PlacedSection, Placement, StageDevices, place
from plait.compiler.verify.placement import verify_placement
from plait.errors import VerificationError

TARGET = make_target(6, 6)
SECTIONS = make_sections(
    make_section([(4, 4), (6, 8)], [Flow(None, 0, 4e4), Flow(0, 1, 2e4), Flow(1, None, 1e4)], 0),
    make_section([(1, 1)], [Flow(None, 0, 1e3)], 1),
)
PARTITION = make_partition((0, 2, 4))
PLACED = place(SECTIONS, PARTITION, TARGET)


def _first(change: Callable[[PlacedSection], PlacedSection]) -> Placement:
    return replace(PLACED, sections=(change(PLACED.sections[0]), PLACED.sections[1]))


def _stage(**changes: tuple[tuple[int, int], ...]) -> Placement:
    """Returns a placement whose first stage has other tiles."""
    return _first(lambda s: replace(s, stages=(replace(s.stages[0], **changes), *s.stages[1:])))


def _lane(number: int, lane: tuple[tuple[int, int], ...]) -> Placement:
    """Returns a placement of which the first lane of a flow goes another way."""

    def change(section: PlacedSection) -> PlacedSection:
        routes = list(section.routes)
        routes[number] = replace(routes[number], lanes=(lane, *routes[number].lanes[1:]))
        return replace(section, routes=tuple(routes))

    return _first(change)


def _route(number: int, **changes: object) -> Placement:
    def change(section: PlacedSection) -> PlacedSection:
        routes = list(section.routes)
        routes[number] = replace(routes[number], **changes)
        return replace(section, routes=tuple(routes))

    return _first(change)


STAGES = PLACED.sections[0].stages
ROUTES = PLACED.sections[0].routes
PCUS, PMUS = STAGES[0].pcus, STAGES[0].pmus
INNER, READ = ROUTES[1].lanes, ROUTES[0].lanes
BROKEN = {
    "overlap": (_stage(pmus=(*PMUS[:-1], STAGES[1].pmus[0])), r"stage 1 \(op1\): tile .* is used twice"),
    "twice": (_stage(pcus=(*PCUS[:-1], PCUS[0])), r"stage 0 \(op0\): tile .* is used twice"),
    "wrong kind": (_stage(pcus=(*PCUS[:-1], PMUS[0])), r"stage 0 \(op0\): tile .* is no PCU"),
    "outside": (_stage(pcus=(*PCUS[:-1], (6, 0))), r"tile \(6, 0\) is not on the chip"),
    "missing unit": (_stage(pmus=PMUS[:-1]), "3 PMUs are placed, it has 4"),
    "missing stage": (_first(lambda s: replace(s, stages=s.stages[:1])), "2 stages and 3 flows, placed are 1 and 3"),
    "missing route": (_first(lambda s: replace(s, routes=s.routes[:2])), "2 stages and 3 flows, placed are 2 and 2"),
    "other flow": (_route(1, source=1, target=0), "flow 1 goes from 0 to 1, its route from 1 to 0"),
    "bytes": (_route(1, bytes=1.0), "bytes of section 0, flow 1 is 1, by its definition 20000"),
    "missing lane": (_route(1, lanes=INNER[:-1]), "flow 1.*(not spread evenly|has 7 lanes)"),
    "stray lane": (_lane(1, (PCUS[0], *INNER[0][1:])), "a lane ends at .*, which is no memory unit of stage 0"),
    "uneven": (_lane(1, INNER[1]), "not spread evenly over the memory units of stage"),
    "diagonal": (_lane(0, ((5 - READ[0][-1][0], -1), READ[0][-1])), "no straight way from"),
    "not at a port": (_lane(0, (PMUS[-1], (PMUS[-1][0], READ[0][-1][1]), READ[0][-1])), "which is no port"),
    "along the ports": (_lane(0, ((6, -1), *READ[0][1:])), "which is no port"),
    "off the chip": (_lane(1, (INNER[0][0], (INNER[0][0][0], 6), INNER[0][0], *INNER[0][1:])), "leaves the chip at"),
    "no step": (_lane(1, (INNER[0][0], *INNER[0])), "no straight way"),
    "cost": (_first(lambda s: replace(s, cost=s.cost * 2)), "cost of section 0"),
    "reach": (_first(lambda s: replace(s, reach=9.0)), "reach of section 0 is 9"),
    "load": (_first(lambda s: replace(s, max_utilisation=0.1)), "max_utilisation of section 0 is 0.1"),
    "mean load": (_first(lambda s: replace(s, mean_utilisation=0.0)), "mean_utilisation of section 0 is 0"),
    "routing": (_first(lambda s: replace(s, routing_seconds=0.0)), "routing_seconds of section 0 is 0"),
    "bound": (_first(lambda s: replace(s, lower_bound=s.cost * 2)), "section 0 costs .*, less than its bound"),
    "total": (replace(PLACED, cost=1.0), "cost of the placement is 1"),
    "total bound": (replace(PLACED, lower_bound=1.0), "lower_bound of the placement is 1"),
    "status": (replace(PLACED, status="optimal"), "the placement is said to be optimal, its gap is"),
    "grid": (replace(PLACED, rows=5), r"the grid is \(6, 6\), the placement says \(5, 6\)"),
    "sections": (replace(PLACED, sections=PLACED.sections[:1]), r"sections \[0\] are placed, there are 2"),
    "one stage": (replace(PLACED, stages=PLACED.stages[:1]), "1 pipeline stages have devices, the partition has 2"),
    "wrong socket": (
        replace(PLACED, stages=(StageDevices(2, 2, 0, 1), PLACED.stages[1])),
        "pipeline stage 0 is on 2 devices from 2 on, the partition has 2 from 0 on",
    ),
    "wrong stage": (
        replace(PLACED, stages=(StageDevices(0, 2, 0, 2), StageDevices(2, 2, 2, 2))),
        "section 1 at operation 2 is launched on pipeline stage 0, which has operations 0-1",
    ),
    "launch left out": (
        replace(PLACED, stages=(PLACED.stages[0], StageDevices(2, 2, 2, 2))),
        "2 launches are not each on one pipeline stage",
    ),
}


def test_the_placement_itself_passes() -> None:
    verify_placement(PLACED, SECTIONS, PARTITION, TARGET)


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_broken_is_found(broken: str) -> None:
    placement, message = BROKEN[broken]
    with pytest.raises(VerificationError, match=message):
        verify_placement(placement, SECTIONS, PARTITION, TARGET)


def test_buffers_have_to_fit_the_memory_units_of_their_stage() -> None:
    section = SECTIONS.sections[0]
    large = replace(section.stages[0], sram_bytes=5 * 1024)
    sections = replace(SECTIONS, sections=(replace(section, stages=(large, section.stages[1])), SECTIONS.sections[1]))
    with pytest.raises(VerificationError, match="its buffers are 5120 bytes, its memory units hold 4096"):
        verify_placement(PLACED, sections, PARTITION, TARGET)


def test_stages_without_a_chip_are_found() -> None:
    none = replace(PLACED, rows=0, columns=0)
    with pytest.raises(VerificationError, match="section 0 has stages, its target no chip"):
        verify_placement(none, SECTIONS, PARTITION, replace(TARGET, chip=None))
