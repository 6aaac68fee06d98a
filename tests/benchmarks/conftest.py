"""What benchmarks share: the example bundle of real weights, made once or taken from PLAIT_AGENT_BUNDLE."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import plait
from plait.compiler.bundle.reader import Bundle

SPEC = Path(__file__).parents[2] / "examples" / "agent.yaml"


@pytest.fixture(scope="session")
def agent_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Three real models: chat, embed and sparse."""
    if path := os.environ.get("PLAIT_AGENT_BUNDLE"):
        return plait.load(path)
    return plait.bundle(plait.read_spec(SPEC), tmp_path_factory.mktemp("agent") / "agent.plait", base=SPEC.parent)
