"""Segments: the consecutive tensors of a model that come to hbm and leave it together, as data of the manifest.

A model that has to make room keeps as many of its first segments as there is room for, and gets only the others when
it comes back. A segment is whole layers, or a tensor of none; small ones are joined, so that a model has a few dozen.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import pydantic
from pydantic import NonNegativeInt

from .placement import Placement

__all__ = ["Segment", "divide", "segment_ends"]

_MOST_SEGMENTS = 32  # of a model whose layers are all alike; a chunk of a large transfer is no smaller
_LAYER = re.compile(r"^.*?\blayers?\.\d+\.")


@dataclass(frozen=True)
class Segment:
    """Consecutive tensors of a weight file."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    tensors: Annotated[tuple[str, ...], pydantic.Field(min_length=1)]
    device_bytes: tuple[NonNegativeInt, ...]  # on each of the model's devices


def divide(sizes: Mapping[str, int], placement: Placement | None) -> tuple[Segment, ...]:
    """Returns the segments of a model.

    Args:
        sizes: Bytes of each tensor, in the order of the weight file.
        placement: Of the model.
    """
    least_bytes = sum(sizes.values()) / _MOST_SEGMENTS
    segments: list[Segment] = []
    joined: list[str] = []
    for _, names in itertools.groupby(sizes, key=_layer_of):
        joined += names
        if sum(sizes[name] for name in joined) >= least_bytes:
            segments.append(_segment(joined, sizes, placement))
            joined = []
    return (*segments, *([_segment(joined, sizes, placement)] if joined else []))


def segment_ends(segments: Iterable[Segment], num_devices: int) -> tuple[tuple[int, ...], ...]:
    """Returns the bytes on each device of no segment, of the first, of the first two, and so on."""
    ends = itertools.accumulate(
        (segment.device_bytes for segment in segments),
        lambda before, own: tuple(map(int.__add__, before, own)),
        initial=(0,) * num_devices,
    )
    return tuple(ends)


def _layer_of(name: str) -> str:
    """Returns what the tensors of a layer have in common; of a tensor of no layer, its own name."""
    match = _LAYER.match(name)
    return name if match is None else match.group()


def _segment(names: list[str], sizes: Mapping[str, int], placement: Placement | None) -> Segment:
    if placement is None:
        return Segment(tuple(names), (sum(sizes[name] for name in names),))
    stages = _stage_bytes(names, sizes, placement)
    return Segment(tuple(names), tuple(size for size in stages for _ in range(placement.mesh.num_devices)))


def _stage_bytes(names: list[str], sizes: Mapping[str, int], placement: Placement) -> Iterator[int]:
    """Yields the bytes of some tensors on a device of each stage."""
    for stage in placement.stages:
        held = (name for name in names if name in stage.parameters)
        yield sum(sizes[name] // placement.mesh.num_shards(stage.layout(name).axes) for name in held)
