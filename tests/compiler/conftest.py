"""Fixtures of the compiler's tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # test modules import `bundle_factory` by its plain name


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user cache of the test's own, so that no record of an earlier test counts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "plait"


@pytest.fixture
def bundle_path(tmp_path: Path, own_cache: Path) -> Path:
    """A tiny bundle of two models."""
    from bundle_factory import write_bundle

    path = tmp_path / "agent.plait"
    write_bundle(path)
    return path
