"""What all tests share: eight virtual devices and the named models' real weights."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from plait.models.registry import pull

jax.config.update("jax_num_cpu_devices", 8)  # before the first use of a device


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of SmolLM2 135M Instruct, pulled into the cache if it isn't there."""
    return pull("smollm2-135m")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The directory of all-MiniLM-L6-v2."""
    return pull("minilm-l6")


@pytest.fixture(scope="session")
def splade() -> Path:
    """The directory of SPLADE tiny."""
    return pull("splade-tiny")
