"""A small plan, inspected once for all tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from plait.compiler.configuration import Configuration
from plait.compiler.pipeline import Compilation, Parallelism, compile_model
from plait.compiler.report.inspection import Inspection, inspect_plan
from plait.compiler.subject import read_subject
from plait.compiler.target import load_target
from plait.models.config import DecoderConfig, ModelConfig

MODEL = "smollm2-360m"  # of the zoo


def small_model() -> ModelConfig:
    """Returns a decoder of a few layers."""
    config = read_subject(MODEL, base=Path()).config
    assert isinstance(config, DecoderConfig)
    return replace(config, num_layers=6)


def compiled(*, num_stages: int = 1, target: str = "sn40l-8") -> Compilation:
    """Returns the plan of a decode step, up to its partition."""
    parallelism = Parallelism(num_devices=1 if target == "cpu" else 4, num_stages=num_stages)
    made = compile_model(
        small_model(),
        Configuration("decode", 4, 1, 512),
        dtype="bfloat16",
        target=load_target(target),
        parallelism=parallelism,
        stop_after="partition",
    )
    return replace(made, memory=None, cost=None)


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    """The model of all plans."""
    return small_model()


@pytest.fixture(scope="session")
def seen() -> Inspection:
    """A plan on four sockets, with other plans beside it."""
    return inspect_plan(compiled(), time_limit_seconds=60.0)


@pytest.fixture(scope="session")
def staged() -> Inspection:
    """A plan of two pipeline stages of two sockets."""
    return inspect_plan(compiled(num_stages=2), time_limit_seconds=0.0)


@pytest.fixture(scope="session")
def running() -> Inspection:
    """A plan for a target that runs programs."""
    return inspect_plan(compiled(target="cpu"), time_limit_seconds=0.0)


@pytest.fixture(scope="session")
def chipless() -> Inspection:
    """A plan for devices that have no grid of units."""
    return inspect_plan(compiled(target="h100-8"), time_limit_seconds=0.0)
