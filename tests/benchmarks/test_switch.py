"""How fast a switch copies, without the link's pace, against a numpy memcpy of the same bytes in the same run."""

from __future__ import annotations

import dataclasses
import statistics
import time
from pathlib import Path

import numpy as np

import plait
from plait.compiler.target import Target
from plait.runtime.engine import Runtime
from plait.runtime.request import SamplingParams

SPEC = Path(__file__).parents[2] / "examples" / "agent.yaml"
NUM_SWITCHES = 15
ONE_TOKEN = SamplingParams(max_tokens=1, temperature=0)


def unpaced(target: Target) -> Target:
    """Returns a target whose links are as fast as this machine."""
    links = {name: dataclasses.replace(link, pace=False) for name, link in target.links.items()}
    return dataclasses.replace(target, links=links)


def memcpy_bytes_per_s(shapes: list[int]) -> float:
    """Returns the median rate of copying arrays of so many bytes into memory that has been touched before."""
    sources = [np.ones(size, np.uint8) for size in shapes]
    destinations = [np.ones(size, np.uint8) for size in shapes]
    seconds: list[float] = []
    for _ in range(NUM_SWITCHES):
        began = time.perf_counter()
        for source, destination in zip(sources, destinations, strict=True):
            np.copyto(destination, source)
        seconds.append(time.perf_counter() - began)
    return sum(shapes) / statistics.median(seconds)


def test_a_switch_copies_at_half_the_speed_of_memcpy_or_more(tmp_path: Path) -> None:
    bundle = plait.bundle(plait.read_spec(SPEC), tmp_path / "agent.plait", base=SPEC.parent)
    weights = bundle.map_weights("chat")
    memcpy = memcpy_bytes_per_s([tensor.nbytes for tensor in weights.values()])
    with Runtime(bundle, target=unpaced(bundle.manifest.target)) as runtime:
        for _ in range(NUM_SWITCHES):
            runtime.complete("chat", "hi", ONE_TOKEN)
            runtime.embed("embed", "hi")
        records = [r for r in runtime.transfers() if r.destination == "hbm" and r.model == "chat"]
    copy = statistics.median(record.num_bytes / record.copy_seconds for record in records)
    ready = statistics.median(record.seconds for record in records)
    print(
        f"\n{len(records)} switches of {records[0].num_bytes / 1e6:.0f} MB: copy {copy / 1e9:.1f} GB/s, "
        f"memcpy {memcpy / 1e9:.1f} GB/s, ratio {copy / memcpy:.2f}; ready in {ready * 1000:.0f} ms, KV pool included"
    )
    assert copy >= 0.5 * memcpy
