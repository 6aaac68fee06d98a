from __future__ import annotations

import pytest

BASE = ("sweep", "llama-3.2-1b", "--target", "sn40l-8", "--sequence", "256")


def test_people_get_a_table_with_the_front_marked(plait, tmp_path) -> None:
    page = tmp_path / "front.html"
    outcome = plait(*BASE, "--vary", "sockets=1,16", "--vary", "batch=1,4", "--html", page)
    assert outcome.code == 0
    assert outcome.err == f"plait: written: {page}\n"
    lines = outcome.out.splitlines()
    assert lines[0] == "llama-3.2-1b, decode"
    assert sum(line.startswith("*  ") for line in lines) == 2
    assert outcome.out.count("sn40l-8 has 8 devices") == 2
    assert page.read_text().lstrip().startswith("<!DOCTYPE html>")


def test_programs_get_json(plait) -> None:
    data = plait(*BASE, "--vary", "batch=2", "--front", "tokens_per_s,joules_per_token", "--json").data
    assert data["front_of"] == ["tokens_per_s", "joules_per_token"]
    (point,) = data["points"]
    assert point["settings"] == {"batch": "2"}
    assert point["outcome"]["tokens_per_s"] > 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--vary", "speed=1"), "'speed' cannot be varied"),
        (("--vary", "batch=none"), "--vary batch=none:"),
        (("--front", "tokens_per_s"), "write two of tokens_per_s_per_user"),
        (("--front", "tokens_per_s,tokens_per_s"), "write two of"),
        (("--target", "nowhere"), "unknown target 'nowhere'"),
    ],
    ids=["name", "value", "one metric", "same metric", "target"],
)
def test_a_bad_parameter_is_one_line(plait, options: tuple[str, ...], says: str) -> None:
    assert says in plait(*BASE, *options).complaint()


def test_a_directory_is_not_written_over(plait, tmp_path) -> None:
    assert "it is a directory" in plait(*BASE, "--html", tmp_path).complaint()


def test_what_has_no_decode_is_told_point_by_point(plait, tmp_path) -> None:
    from tiny import write_tiny_bert

    write_tiny_bert(tmp_path / "bert")
    outcome = plait("sweep", tmp_path / "bert", "--target", "sn40l-8", "--sequence", "16")
    assert outcome.code == 0
    assert "has no phase 'decode'" in outcome.out
