"""Where plait keeps what it can make or fetch again."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_directory"]


def cache_directory() -> Path:
    """Returns where pulled models and compiled programs are kept: `$XDG_CACHE_HOME/plait`, or `~/.cache/plait`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "plait"
