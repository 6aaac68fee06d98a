from __future__ import annotations

from pathlib import Path

import pytest

from plait.compiler.target import load_target, target_names
from plait.errors import TargetError


@pytest.mark.parametrize("name", target_names())
def test_targets_that_come_with_plait_load_and_say_where_their_numbers_are_from(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.source
    assert target.tiers["hbm"].capacity_bytes > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name = ", "is not TOML"),
        (b"\xff\xfe", "not UTF-8"),
        (b"name = 'x'", "description: Missing|Missing|missing|required"),
        (b"surprise = 1", "Unexpected|unexpected|missing|required|Missing"),
    ],
    ids=["syntax", "encoding", "incomplete", "unknown field"],
)
def test_a_malformed_target_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(TargetError, match=message):
        load_target(path)


def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        TargetError, match="unknown target 'tpu'; known: a100-8, cpu, cpu-tiered, gpu, .*, sn50-8, or the path"
    ):
        load_target("tpu")


def test_a_missing_link_is_named() -> None:
    with pytest.raises(TargetError, match="'cpu' has no link ddr->hbm"):
        load_target("cpu").link("ddr", "hbm")
