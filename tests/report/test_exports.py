"""What other tools read: each file is loaded back and held against the plan."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict

import pytest

from plait.compiler.report.dot import dot_text, handed_between
from plait.compiler.report.model_explorer import model_explorer_json
from plait.compiler.report.perfetto import perfetto_json
from plait.compiler.report.sambatune import (
    PATH_COLUMNS,
    SECTION_COLUMNS,
    STAGE_COLUMNS,
    sambatune_files,
    stage_depths,
)

PLANS = ("seen", "staged", "chipless")


@pytest.fixture(params=PLANS)
def plan(request):
    """Each of the plans."""
    return request.getfixturevalue(request.param)


def test_trace_has_every_step_on_a_track_of_its_stage(plan) -> None:
    trace = json.loads(perfetto_json(plan))
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(events) == len(plan.schedule.steps)
    assert sum(event["dur"] for event in events) == pytest.approx(plan.schedule.seconds * 1e6)
    named = {(event["pid"], event.get("tid")) for event in trace["traceEvents"] if event["ph"] == "M"}
    assert {(event["pid"], event["tid"]) for event in events} <= named
    assert {event["pid"] for event in events} == set(range(len(plan.partition.stages)))


def test_events_of_a_track_do_not_overlap(plan) -> None:
    ends: dict[tuple[int, int], float] = defaultdict(float)
    for event in json.loads(perfetto_json(plan))["traceEvents"]:
        if event["ph"] == "X":
            track = event["pid"], event["tid"]
            assert event["ts"] >= ends[track] - 1e-6
            ends[track] = event["ts"] + event["dur"]


def test_counters_go_back_to_nothing(seen) -> None:
    events = [event for event in json.loads(perfetto_json(seen))["traceEvents"] if event["ph"] == "C"]
    assert events
    assert events[-1]["args"]["rate"] == 0.0


def rows_of(plan, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(sambatune_files(plan)[f"{name}_report.csv"].decode())))


def test_columns_are_those_of_sambatune(plan) -> None:
    for name, columns in (("section", SECTION_COLUMNS), ("stage", STAGE_COLUMNS), ("paths", PATH_COLUMNS)):
        head = sambatune_files(plan)[f"{name}_report.csv"].decode().splitlines()[0]
        assert head == ",".join(columns)


def test_every_chip_has_a_line_for_each_section_that_it_runs(plan) -> None:
    found = {(int(row["section_id"]), int(row["chip_id"])) for row in rows_of(plan, "section")}
    wanted = {
        (launch.section, stage.first_device + device)
        for stage in plan.placement.stages
        for launch in plan.sections.launches[stage.first_launch : stage.end_launch]
        for device in range(stage.num_devices)
    }
    assert found == wanted
    for row in rows_of(plan, "section"):
        parts = float(row["DDR read GB/s"]) + float(row["DDR write GB/s"])
        assert float(row["DDR total GB/s"]) == pytest.approx(parts)


def test_stages_and_paths_go_deeper(seen) -> None:
    depths = {(row["section id"], row["stage id"]): int(row["stage depth"]) for row in rows_of(seen, "stage")}
    assert len(depths) == sum(len(section.stages) for section in seen.sections.sections)
    for row in rows_of(seen, "paths"):
        chain = row["buffer chain"].split(" -> ")
        along = [depths[row["section id"], stage] for stage in chain]
        assert along == sorted(set(along))
        assert (along[0], along[-1]) == (int(row["src stage depth"]), int(row["dst stage depth"]))
        assert len(row["nodes"].split(" ")) == len(chain)


def test_a_chip_without_units_has_no_stages(chipless) -> None:
    assert rows_of(chipless, "stage") == []
    assert {row["latency cycles"] for row in rows_of(chipless, "section")} == {""}


def test_depth_is_the_longest_way(seen) -> None:
    for section in seen.sections.sections:
        depths = stage_depths(section)
        for flow in section.flows:
            if flow.source is not None and flow.target is not None:
                assert depths[flow.source] < depths[flow.target]


def test_model_explorer_has_every_operation_and_no_edge_from_nowhere(plan) -> None:
    (graph,) = json.loads(model_explorer_json(plan))["graphs"]
    known = {node["id"] for node in graph["nodes"]}
    assert len(known) == len(graph["nodes"])
    operations = [node for node in graph["nodes"] if node["id"].startswith("operation ")]
    assert len(operations) == len(plan.compilation.traced.graph.operations)
    for node in graph["nodes"]:
        assert {"id", "label", "namespace", "incomingEdges", "attrs"} <= set(node)
        assert all(set(attribute) == {"key", "value"} for attribute in node["attrs"])
        for edge in node["incomingEdges"]:
            assert set(edge) == {"sourceNodeId", "sourceNodeOutputId", "targetNodeInputId"}
            assert edge["sourceNodeId"] in known


def test_model_explorer_says_where_an_operation_runs(seen) -> None:
    (graph,) = json.loads(model_explorer_json(seen))["graphs"]
    linear = next(node for node in graph["nodes"] if node["label"] == "linear")
    attributes = {each["key"]: each["value"] for each in linear["attrs"]}
    assert attributes["section"].isdigit()
    assert attributes["line"].count(".py:") == 1


def test_dot_names_only_nodes_that_it_has(plan) -> None:
    text = dot_text(plan)
    nodes = set(re.findall(r"^    (s\d+_\d+) \[", text, re.MULTILINE))
    edges = re.findall(r"^  (s\d+_\d+) -> (s\d+_\d+) ", text, re.MULTILINE)
    assert edges
    assert {end for edge in edges for end in edge} <= nodes
    assert text.count("{") == text.count("}")
    assert text.count("subgraph") == len(plan.partition.stages)


def test_what_sections_hand_over_is_what_they_make(seen) -> None:
    assert all(size > 0 for size in handed_between(seen).values())
