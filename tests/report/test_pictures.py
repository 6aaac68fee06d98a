from __future__ import annotations

import re

import pytest

from plait.compiler.report.chip import chip_views, link_loads
from plait.compiler.report.gantt import gantt
from plait.compiler.report.insights import insights
from plait.compiler.report.occupancy import occupancies
from plait.compiler.report.roofline import kernel_seconds, roofline, roofs
from plait.compiler.report.svg import Scale, decades, element, number, ticks


def test_loads_of_links_are_the_wire_length(seen) -> None:
    for placed in seen.placement.sections:
        assert sum(link_loads(placed).values()) == pytest.approx(placed.cost)


def test_every_unit_of_a_section_is_drawn_once(seen) -> None:
    for view in chip_views(seen):
        section = seen.sections.sections[view.section]
        squares = sum(way.count("M") for way in re.findall(r'<path d="([^"]*)" class="pcu"', view.image))
        discs = sum(way.count("M") for way in re.findall(r'<path d="([^"]*)" class="pmu"', view.image))
        assert (squares, discs) == (section.num_pcus, section.num_pmus)


@pytest.mark.parametrize("fixture", ["seen", "staged", "chipless"])
def test_every_step_has_a_bar(fixture, request) -> None:
    inspection = request.getfixturevalue(fixture)
    bars = re.findall(r'<path d="([^"]*)" class="bar', gantt(inspection))
    assert sum(way.count("M") for way in bars) == len(inspection.schedule.steps)


def test_no_section_is_above_the_roofs(seen) -> None:
    compute, _, peak, *_ = roofs(seen)
    for section in seen.sections.sections:
        if section.flops and kernel_seconds(section):
            reached = section.flops / kernel_seconds(section)
            assert reached <= min(compute.flops_per_s, peak.at(section.intensity)) * (1 + 1e-9)
    assert roofline(seen) is not None


def test_each_tier_that_holds_something_has_a_picture(seen) -> None:
    titles = [each.title for each in occupancies(seen)]
    assert titles[0].startswith("HBM of device 0")
    assert any(title.startswith("SRAM, section") for title in titles)
    assert not any(title.startswith("DDR") for title in titles)


def test_a_target_that_runs_is_said_to_run_a_step_as_one_program(running) -> None:
    first = insights(running)[0]
    assert first.text.startswith("cpu runs a step as one program")


def test_scales_in_proportion_and_by_logarithm() -> None:
    assert Scale(0.0, 10.0, 100.0, 200.0)(5.0) == 150.0
    assert Scale(1.0, 100.0, 0.0, 2.0, is_log=True)(10.0) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("high", "found"),
    [(10.0, [0, 2, 4, 6, 8, 10]), (0.0035, [0, 0.001, 0.002, 0.003]), (0.0, [0.0])],
    ids=["tens", "small", "nothing"],
)
def test_ticks_are_round(high: float, found: list[float]) -> None:
    assert ticks(high) == pytest.approx(found)


def test_decades_are_powers_of_ten() -> None:
    assert list(decades(0.5, 200)) == [1.0, 10.0, 100.0]


def test_elements_escape_what_they_are_given() -> None:
    assert element("text", "<&", data_tip='"<') == '<text data-tip="&#34;&lt;">&lt;&amp;</text>'


@pytest.mark.parametrize(("value", "says"), [(0.0, "0"), (1.0, "1"), (1.239, "1.24"), (1200.0, "1200")])
def test_coordinates_are_short(value: float, says: str) -> None:
    assert number(value) == says
