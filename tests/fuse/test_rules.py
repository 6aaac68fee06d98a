"""Fusion rules read from files: what they match, and what is wrong with them in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from plait.compiler.fuse.rules import FusionRule, PatternStep, read_rules
from plait.errors import ConfigurationError

RULES = """
down:
  priority: 1
  pattern: {times: {op_type: mul, child: product}, product: {op_type: GEMM}}
mlp:
  priority: 20
  heuristic: SAFE_GEMM
  match_first_option: true
  pattern:
    gate: {op_type: Linear, child: act}
    act: {op_type: [logistic, tanh], required: false}
    up: {op_type: linear}
"""


def test_rules_are_read_with_the_highest_priority_first(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    mlp, down = read_rules(path)
    assert (mlp.priority, mlp.match_first_option, down.priority) == (20, True, 1)
    assert mlp.length(["linear", "tanh", "linear", "mul"]) == 3
    assert mlp.length(["linear", "linear"]) == 2
    assert mlp.length(["linear", "mul", "linear"]) == 0
    assert down.length(["mul", "dot_general"]) == 2


def test_of_alternatives_the_longest_or_the_first_is_taken() -> None:
    steps = {"a": PatternStep(("add",)), "b": PatternStep(("add",), required=False)}
    assert FusionRule(pattern=steps).length(["add", "add"]) == 2
    early = {"a": PatternStep(("add",), required=False), "b": PatternStep(("add",))}
    assert FusionRule(pattern=early, match_first_option=True).length(["add", "add"]) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {pattern: {}}", "a has no pattern"),
        ("a: {pattern: {x: {op_type: add, child: y}}}", "child 'y' of 'x' is no later step"),
        ("a: {pattern: {x: {}}}", "op_type: Field required|op_type: Missing"),
        ("a: {surprise: 1}", "surprise: Unexpected"),
        ("a: [", "not YAML"),
        ("7", "valid dictionary"),
    ],
    ids=["empty", "child", "no type", "unknown key", "syntax", "no rules"],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        read_rules(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read fusion rules .*rules.yaml"):
        read_rules(tmp_path / "rules.yaml")
