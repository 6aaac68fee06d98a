"""Fusion: a partitioned graph becomes sections, each of which runs as one dataflow kernel."""

from .search import fuse
from .sections import MODES, Mode, Section, Sections, StageUnits

__all__ = ["MODES", "Mode", "Section", "Sections", "StageUnits", "fuse"]
