"""Segments of a model's weights: whole layers in the order of the file, and what each device has of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from bundle_factory import ENCODER, WEIGHTS_BYTES, make_manifest, make_model, write_bundle
from hypothesis import given
from hypothesis import strategies as st

from plait.compiler.bundle.placement import Placement, StagePlacement
from plait.compiler.bundle.segments import Segment, divide
from plait.errors import BundleIntegrityError

LAYERS = ["up.weight", "down.weight", "norm.weight"]


@given(
    num_layers=st.integers(1, 90),
    layer=st.tuples(st.integers(0, 100), st.integers(0, 100), st.integers(0, 5)),
    table=st.integers(1, 5000),
)
def test_a_segment_is_whole_layers_and_there_are_a_few_dozen(
    num_layers: int, layer: tuple[int, int, int], table: int
) -> None:
    sizes = {"embedding": table, "head": table}
    sizes |= {f"layers.{i}.{n}": size for i in range(num_layers) for n, size in zip(LAYERS, layer, strict=True)}
    segments = divide(sizes, None)
    assert [name for segment in segments for name in segment.tensors] == list(sizes)
    assert all(segment.device_bytes == (sum(sizes[name] for name in segment.tensors),) for segment in segments)
    assert len(segments) <= 33
    layers = [{name.rsplit(".", 2)[0] for name in s.tensors if name.startswith("layers.")} for s in segments]
    assert sum(map(len, layers)) == num_layers  # no layer is in two


def test_layers_of_a_small_model_are_segments_of_their_own() -> None:
    sizes = {"embedding": 50, "layers.0.a": 10, "layers.0.b": 10, "layers.1.a": 10, "layers.1.b": 10, "norm": 1}
    names = [segment.tensors for segment in divide(sizes, None)]
    assert names == [("embedding",), ("layers.0.a", "layers.0.b"), ("layers.1.a", "layers.1.b"), ("norm",)]


def test_a_segment_takes_of_each_device_what_the_placement_gives_it() -> None:
    divided, copied = (("tensor",), ()), ((), ())
    stages = (
        StagePlacement({"embedding": copied, "layers.0.a": divided}, (0,), 110, 0),
        StagePlacement({"embedding": copied, "layers.1.a": divided}, (1,), 115, 0),
    )
    sizes = {"embedding": 100, "layers.0.a": 20, "layers.1.a": 30}
    segments = divide(sizes, Placement({"tensor": 2}, (), stages))
    assert [segment.device_bytes for segment in segments] == [(100, 100, 100, 100), (10, 10, 0, 0), (0, 0, 15, 15)]


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (
            [("a", WEIGHTS_BYTES - 1)],
            rf"\[{WEIGHTS_BYTES - 1}\] bytes .* its weights are \[{WEIGHTS_BYTES}\]",
        ),
        ([("a", WEIGHTS_BYTES), ("a", 0)], "tensor in a segment of model 'chat' 'a' 2 times"),
        ([("a", WEIGHTS_BYTES, 0)], "a segment that is not on its 1 devices"),
    ],
    ids=["bytes", "twice", "devices"],
)
def test_segments_that_are_not_the_weights_are_refused(
    tmp_path: Path, segments: list[tuple[str, int]], message: str
) -> None:
    damaged = replace(make_model(), segments=tuple(Segment((name,), tuple(sizes)) for name, *sizes in segments))
    with pytest.raises(BundleIntegrityError, match=message):
        write_bundle(tmp_path / "agent.plait", make_manifest(damaged, make_model("embed", ENCODER)))
