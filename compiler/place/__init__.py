"""Placement: sections get units of the chip's grid, their flows get routes on its mesh, launches get devices."""

from .place import place
from .placement import PlacedSection, PlacedStage, Placement, Route, StageDevices

__all__ = ["PlacedSection", "PlacedStage", "Placement", "Route", "StageDevices", "place"]
