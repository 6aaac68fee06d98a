"""Transfers of real arrays: where bytes go, and what is left of a transfer that ends early."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.compiler.bundle.reader import Bundle, open_bundle
from plait.compiler.target import Link
from plait.runtime.arena import Arena
from plait.runtime.chunks import ChunkCopier
from plait.runtime.engine import Runtime
from plait.runtime.events import Action, Event, Transfer, TransferCancelled
from plait.runtime.gaps import StepGaps
from plait.runtime.request import SamplingParams
from plait.runtime.tiers import Copier, Moved

CHUNK = 64 << 10  # the tiny decoder has about eight
FEW = SamplingParams(max_tokens=6, temperature=0)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def arena(bundle: Bundle) -> Arena:
    return Arena(bundle.manifest.model("chat").weights_bytes + (64 << 10))


@pytest.fixture
def copier(bundle: Bundle, arena: Arena) -> Iterator[Copier]:
    copier = Copier(bundle, bundle.manifest.target, arena, StepGaps())
    yield copier
    copier.close()


class StopError(Exception):
    """Ends a transfer in these tests."""


def move(
    copier: Copier,
    bundle: Bundle,
    destination: str,
    source: Moved | None,
    stop_after: int | None = None,
    kept: Moved | None = None,
) -> tuple[Moved, list[int]]:
    """Carries out a transfer of the model "chat"; returns it and the bytes that were reported, chunk by chunk."""
    seen: list[int] = []

    def progress(num_bytes: int) -> None:
        seen.append(num_bytes)
        if len(seen) == stop_after:
            raise StopError

    entry = bundle.manifest.model("chat")
    origin = "disk" if source is None else "ddr"
    transfer = Transfer(1, "chat", origin, destination, entry.weights_bytes, CHUNK)  # type: ignore[arg-type]
    return copier.copy(transfer, entry, source, progress, kept), seen


def whole(arena: Arena) -> int:
    """The address of a piece as large as the arena, which is free again afterwards."""
    piece = arena.allocate(arena.num_bytes)
    arena.release(piece)
    return piece.ctypes.data


def num_mapped(bundle: Bundle) -> int:
    return Path("/proc/self/maps").read_text().count(bundle.manifest.model("chat").weights)


def test_a_model_arrives_in_each_tier_as_it_is_in_the_file(copier: Copier, bundle: Bundle) -> None:
    warm, _ = move(copier, bundle, "ddr", None)
    hot, seen = move(copier, bundle, "hbm", warm)
    with_names = bundle.map_weights("chat")
    for moved, kind in ((warm, "pinned_host"), (hot, "device")):
        (weights,) = moved.weights
        assert weights.keys() == with_names.keys()
        for name, array in weights.items():
            assert array.sharding.memory_kind == kind
            assert np.array_equal(np.asarray(array), with_names[name])
    assert seen[-1] == bundle.manifest.model("chat").weights_bytes == hot.record.num_bytes
    assert all(0 < late - early <= CHUNK for early, late in zip([0, *seen], seen, strict=False))
    for moved in (warm, hot):
        moved.release()


@pytest.mark.parametrize("destination", ["ddr", "hbm"])
@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_transfer_that_ends_early_leaves_nothing(
    copier: Copier, bundle: Bundle, arena: Arena, destination: str, stop_after: int
) -> None:
    source = None if destination == "ddr" else move(copier, bundle, "ddr", None)[0]
    gc.collect()
    before = (len(jax.live_arrays()), num_mapped(bundle), whole(arena))
    with pytest.raises(StopError):
        move(copier, bundle, destination, source, stop_after)
    assert (len(jax.live_arrays()), num_mapped(bundle), whole(arena)) == before
    if source is not None:
        source.release()


def test_a_model_comes_back_to_the_segments_that_it_has_kept(copier: Copier, bundle: Bundle, arena: Arena) -> None:
    entry = bundle.manifest.model("chat")
    num_kept = entry.num_segments // 2
    names = {name for segment in entry.segments[:num_kept] for name in segment.tensors}
    whole_file = bundle.map_weights("chat")
    warm, _ = move(copier, bundle, "ddr", None)
    hot, _ = move(copier, bundle, "hbm", warm)
    before = {name: array.unsafe_buffer_pointer() for name, array in hot.weights[0].items()}
    for stop_after in (1, None):
        rest = hot.keep(names)
        assert rest.weights[0].keys() == names
        held = sum(array.nbytes for array in rest.weights[0].values())
        assert held == entry.segment_ends[num_kept][0]
        if stop_after is not None:
            with pytest.raises(StopError):
                move(copier, bundle, "hbm", warm, stop_after, rest)
        hot, seen = move(copier, bundle, "hbm", warm, None, rest)
        assert seen[-1] == entry.missing_bytes[num_kept] == entry.weights_bytes - held
        for name, array in hot.weights[0].items():
            assert np.array_equal(np.asarray(array), whole_file[name])
            assert name not in names or array.unsafe_buffer_pointer() == before[name]
    for moved in (warm, hot):
        moved.release()
    assert whole(arena)


@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=12),
    chunk_bytes=st.integers(1, 4000),
    num_columns=st.integers(1, 7),
)
def test_chunks_are_no_larger_than_asked_and_hold_every_byte_once(
    sizes: list[int], chunk_bytes: int, num_columns: int
) -> None:
    generator = np.random.default_rng(1)
    source: Mapping[str, np.ndarray] = {
        f"t{i}": generator.integers(0, 256, (size // num_columns, num_columns), np.uint8)
        for i, size in enumerate(sizes)
    }
    destination = {name: np.zeros_like(tensor) for name, tensor in source.items()}
    copier = ChunkCopier()
    arrived: list[str] = []
    num_bytes = 0
    for tensors, size in copier.copy(source, destination, chunk_bytes):
        assert size <= max(2, chunk_bytes)
        for name, tensor in tensors.items():
            assert np.array_equal(tensor, source[name]), name
        arrived += tensors
        num_bytes += size
    copier.close()
    assert arrived == list(source)
    assert num_bytes == sum(tensor.nbytes for tensor in source.values())


@pytest.mark.parametrize("within", [None, contextlib.nullcontext])
def test_parts_of_wider_tensors_arrive_whole_among_others(
    within: Callable[[], contextlib.nullcontext[None]] | None,
) -> None:
    wide = np.random.default_rng(3).integers(0, 256, (40, 30), np.uint8)
    source: Mapping[str, np.ndarray] = {"rows": wide[3:20], "columns": wide[:, 5:9], "all": wide, "turned": wide.T}
    destination = {name: np.zeros(tensor.shape, np.uint8) for name, tensor in source.items()}
    copier = ChunkCopier()
    for tensors, _ in copier.copy(source, destination, 100, within):
        for name, tensor in tensors.items():
            assert np.array_equal(tensor, source[name]), name
    copier.close()
    assert all(np.array_equal(tensor, source[name]) for name, tensor in destination.items())


def test_a_fetch_ahead_gives_way_to_a_request_for_another_model(bundle: Bundle) -> None:
    """After chat comes other, which takes a second on this link; embed is asked for meanwhile."""
    link = Link(bundle.manifest.model("other").weights_bytes, pace=True)
    target = dataclasses.replace(bundle.manifest.target, links={**bundle.manifest.target.links, "ddr->hbm": link})
    manifest = dataclasses.replace(bundle.manifest, workflows={"loop": ("chat", "other")})
    with Runtime(dataclasses.replace(bundle, manifest=manifest), target=target) as runtime:
        runtime._scheduler._moves._chunk_bytes = CHUNK
        events = recorded(runtime)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(runtime.complete, "chat", "The cat", FEW)
            wait_until(
                lambda: (transfer := runtime._scheduler._state.transfer) is not None and transfer.model == "other"
            )
            vectors = runtime.embed("embed", "a cat")
        answer = runtime.complete("other", "The cat", FEW)
        moved = [record.model for record in runtime.transfers() if record.destination == "hbm"]
        uses = runtime.tier_uses()
    assert [type(event) for event in events if isinstance(event, TransferCancelled)] == [TransferCancelled]
    assert moved == ["chat", "embed", "other"]
    assert all(use.measured_bytes <= use.peak_charged_bytes <= use.budget_bytes for use in uses)
    with Runtime(bundle) as calm:
        assert np.array_equal(calm.embed("embed", "a cat"), vectors)
        assert calm.complete("other", "The cat", FEW).text == answer.text


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def recorded(runtime: Runtime) -> list[Event]:
    """Returns a list that every event of the scheduler is added to from now on."""
    events: list[Event] = []
    handle = runtime._scheduler.handle

    def handle_and_keep(event: Event, now: float) -> list[Action]:
        events.append(event)
        return handle(event, now)

    runtime._scheduler.handle = handle_and_keep  # type: ignore[method-assign]
    return events
