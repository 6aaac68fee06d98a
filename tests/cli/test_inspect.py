from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan on two sockets, saved."""
    from plait.compiler.configuration import Configuration
    from plait.compiler.pipeline import Parallelism, compile_model
    from plait.compiler.subject import read_subject
    from plait.compiler.target import load_target
    from plait.models.config import DecoderConfig

    config = read_subject("smollm2-360m", base=Path()).config
    assert isinstance(config, DecoderConfig)
    directory = tmp_path_factory.mktemp("plans") / "plan"
    compile_model(
        replace(config, num_layers=4),
        Configuration("decode", 1, 1, 512),
        dtype="bfloat16",
        target=load_target("sn40l-8"),
        parallelism=Parallelism(num_devices=2),
        stop_after="partition",
    ).save(directory)
    return directory


def test_people_get_facts_tables_and_insights(plait, plan) -> None:
    outcome = plait("inspect", plan, "--time-limit", "0")
    assert (outcome.code, outcome.err) == (0, "")
    for part in ("sections (o3", "where the time goes", "tiers of the fullest device", "what is sent", "insights\n- "):
        assert part in outcome.out


def test_programs_get_json(plait, plan) -> None:
    data = plait("inspect", plan, "--time-limit", "0", "--json").data
    assert (data["num_devices"], data["target"]) == (2, "sn40l-8")
    assert data["files"] == []


def test_files_are_written_whole(plait, plan, tmp_path) -> None:
    files = {
        "--html": tmp_path / "plan.html",
        "--perfetto": tmp_path / "trace.json",
        "--csv": tmp_path / "reports",
        "--model-explorer": tmp_path / "graph.json",
        "--dot": tmp_path / "sections.dot",
    }
    options = [text for option, path in files.items() for text in (option, path)]
    outcome = plait("inspect", plan, "--time-limit", "0", "--json", *options)
    assert outcome.data["files"] == [str(path) for path in files.values()]
    assert json.loads(files["--perfetto"].read_bytes())["traceEvents"]
    assert json.loads(files["--model-explorer"].read_bytes())["graphs"]
    assert files["--html"].read_text().rstrip().endswith("</html>")
    assert files["--dot"].read_text().startswith("digraph ")
    with (files["--csv"] / "section_report.csv").open() as text:
        assert len(list(csv.DictReader(text))) >= 2
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("option", ["--html", "--perfetto", "--model-explorer", "--dot"])
def test_a_directory_is_not_written_over(plait, plan, tmp_path, option: str) -> None:
    complaint = plait("inspect", plan, "--time-limit", "0", option, tmp_path).complaint()
    assert f"it is a directory; {option} takes a file" in complaint


def test_what_cannot_be_written_is_one_line(plait, plan, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    assert (
        "cannot write" in plait("inspect", plan, "--time-limit", "0", "--dot", tmp_path / "file" / "s.dot").complaint()
    )


def test_a_plan_that_is_not_there_is_one_line(plait, tmp_path) -> None:
    assert "cannot read plan" in plait("inspect", tmp_path / "nothing").complaint()


def test_a_bundle_is_summed_up(plait, tiny_bundle) -> None:
    outcome = plait("inspect", tiny_bundle)
    assert outcome.code == 0
    for part in ("models; bytes of the fullest device", "programs", "tiers", "in place of the one on the left"):
        assert part in outcome.out
    data = plait("inspect", tiny_bundle, "--json").data
    assert len(data["models"]) == 3
    assert set(data["switch_seconds"]) == {model["name"] for model in data["models"]}


def test_files_are_not_of_bundles(plait, tiny_bundle, tmp_path) -> None:
    complaint = plait("inspect", tiny_bundle, "--dot", tmp_path / "s.dot").complaint()
    assert "--dot: files are of plans of `plait compile`" in complaint


def test_a_bundle_for_a_rack_is_summed_up(plait, tmp_path) -> None:
    file = tmp_path / "rack.yaml"
    file.write_text("bundle: rack\ntarget: sn40l-8\nmodels: {chat: {source: smollm2-360m, sequence: 512}}\n")
    assert plait("bundle", file, "-o", tmp_path / "rack.plait").code == 0
    outcome = plait("inspect", tmp_path / "rack.plait")
    assert (outcome.code, outcome.err) == (0, "")
    assert "the fullest device" in outcome.out
    assert plait("inspect", tmp_path / "rack.plait", "--json").data["plan_only"] is True
