from __future__ import annotations

import json
from dataclasses import replace

import pytest

from plait.compiler.report.insights import insights, times
from plait.compiler.report.inspection import inspect_plan, module_of
from plait.compiler.report.tables import facts, tables, to_dict
from plait.errors import ConfigurationError


def test_titles_name_the_module_of_a_section_in_all_layers_alike(seen) -> None:
    titles = {seen.title(section) for section in seen.sections.sections}
    assert "layers.*" in titles
    assert "embedding" in titles


def test_a_stretch_of_nothing_has_a_name_all_the_same() -> None:
    assert module_of(()) == "nothing"


def test_shares_of_sections_make_the_whole(seen) -> None:
    assert sum(map(seen.share, seen.sections.sections)) == pytest.approx(1.0)


def test_every_operation_of_a_launch_is_found_again(seen) -> None:
    launches = seen.sections.launches
    for operation, number in seen.launch_of_operation.items():
        section = seen.sections.sections[launches[number].section]
        assert 0 <= operation - launches[number].begin < section.end - section.begin


def test_other_plans_are_those_that_the_planner_makes(seen) -> None:
    found = {variant.kind: variant for variant in seen.variants}
    assert set(found) == {"launches", "unfused", "devices", "batch"}
    software = seen.compilation.target.compute.software_launch_seconds
    hardware = seen.compilation.target.compute.launch_seconds
    by_host = found["launches"].schedule
    more = by_host.num_launches * software - seen.schedule.num_launches * hardware
    assert by_host.seconds - seen.schedule.seconds <= more * (1 + 1e-9)
    assert found["unfused"].schedule.num_launches > seen.schedule.num_launches
    assert found["batch"].schedule.configuration == "decode-b64-t1-c512"
    assert {v.num_devices for v in seen.variants if v.kind == "devices"} == {2, 8}


def test_no_other_plan_is_made_when_there_is_no_time(staged) -> None:
    assert staged.variants == ()
    assert all(reshard.remedy is None for reshard in staged.reshards)


def test_a_device_that_is_too_small_is_an_insight_not_an_error(seen) -> None:
    short = replace(seen.variants[2], schedule=None, why="each device would need 9 GiB of hbm and has 8 GiB")
    told = [insight.text for insight in insights(replace(seen, variants=(short,)))]
    assert any("there is no plan: each device would need 9 GiB" in text for text in told)


@pytest.mark.parametrize("fixture", ["seen", "staged", "chipless"])
def test_insights_are_sentences_that_say_what_they_are_computed_from(fixture, request) -> None:
    told = insights(request.getfixturevalue(fixture))
    assert len(told) >= 5
    for insight in told:
        assert insight.text.endswith(".")
        assert insight.basis
        assert not any(word in insight.text for word in ("nan", "inf ", "None"))


def test_the_numbers_of_insights_are_those_of_the_plan(seen) -> None:
    text = " ".join(insight.text for insight in insights(seen))
    larger = next(variant for variant in seen.variants if variant.kind == "batch")
    assert f"batch 64 instead of 4 costs {larger.schedule.seconds / seen.schedule.seconds:.2g} times the time" in text
    assert f"{seen.schedule.joules:.3g} J" in text


@pytest.mark.parametrize(
    ("seconds", "says"), [(1.0, "as long"), (5.84, "5.8 times as long"), (60.2, "60 times as long")]
)
def test_ratios_in_words(seconds: float, says: str) -> None:
    assert times(seconds, 1.0) == says


@pytest.mark.parametrize("fixture", ["seen", "staged", "chipless"])
def test_facts_tables_and_json_of_any_plan(fixture, request) -> None:
    inspection = request.getfixturevalue(fixture)
    assert dict(facts(inspection))["plan"].startswith("llama/decode-b4-t1-c512 bfloat16 on ")
    titles = [table.title for table in tables(inspection)]
    assert titles[1:3] == ["where the time goes", "tiers of the fullest device"]
    data = json.loads(json.dumps(to_dict(inspection), allow_nan=False))
    assert sum(section["share"] for section in data["sections"]) == pytest.approx(1.0)
    assert set(data["tiers"]) <= {"sram", "hbm", "ddr"}


def test_a_plan_that_divides_nothing_is_refused(seen) -> None:
    with pytest.raises(ConfigurationError, match="stopped before its partition; compile it up to that stage"):
        inspect_plan(replace(seen.compilation, partition=None))
