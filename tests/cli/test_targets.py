from __future__ import annotations

from dataclasses import asdict

import pytest

from plait.compiler.target import load_target, target_names


def test_all_targets_are_listed(plait) -> None:
    assert [target["name"] for target in plait("targets", "--json").data] == list(target_names())
    assert all(f"\n{name} " in plait("targets").out for name in target_names())


@pytest.mark.parametrize("name", target_names())
def test_a_target_is_shown_as_a_file_that_can_be_loaded(plait, tmp_path, name: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(plait("targets", name).out)
    assert load_target(file) == load_target(name)
    assert plait("targets", file, "--json").data == asdict(load_target(name))


def test_an_unknown_target_is_one_line(plait) -> None:
    assert "unknown target 'tpu'; known: a100-8, cpu, cpu-tiered" in plait("targets", "tpu").complaint()


def test_a_malformed_target_is_one_line(plait, tmp_path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("name = ")
    assert "is not TOML" in plait("targets", file).complaint()
