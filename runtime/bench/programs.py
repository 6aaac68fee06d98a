"""What a bundle's programs take on this machine, run by the executor that serves, one after the other.

Each program runs with its shortest and its longest context on every row of its batch. What the executor does around a
program (inputs, results, greedy draws) is in its time; scheduling, replies and HTTP are not.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator

from ...compiler.bundle.manifest import ModelEntry
from ...compiler.bundle.reader import Bundle
from ...compiler.configuration import Configuration
from ...compiler.target import ProgramSeconds, Target
from ..events import Decode, Embed, EmbedEntry, Evict, Prefill, Sampling, SequenceEntry, Step, TierName, Transfer
from ..executor import JaxExecutor
from ..tiers import TransferRecord

__all__ = ["ProgramTimes", "measure_programs"]

_GREEDY = Sampling(0.0, 1.0, 0)
_FEWEST_RUNS, _MOST_RUNS = 3, 20
_ENOUGH_SECONDS = 0.5  # of runs of one step
_NUM_LOADS = 3


@dataclasses.dataclass(frozen=True)
class ProgramTimes:
    """What was measured."""

    programs: dict[str, ProgramSeconds]  # by model/configuration
    pool_bytes_per_s: float | None  # None: no model has a KV pool


def measure_programs(
    bundle: Bundle, target: Target, *, progress: Callable[[int, int], None] | None = None
) -> ProgramTimes:
    """Measures all programs of a bundle, each model alone in hbm.

    Args:
        bundle: An opened bundle.
        target: Of this machine; its links' paces don't count.
        progress: Told how many programs of how many are done.

    Raises:
        BundleIntegrityError: if the bundle is not what its manifest says.
        ExecutionError: if a program does not run here.
    """
    links = {name: dataclasses.replace(link, pace=False) for name, link in target.links.items()}
    models = bundle.manifest.models
    needed = max(entry.resident_bytes for entry in models)
    executor = JaxExecutor(bundle, dataclasses.replace(target, links=links), hbm_bytes=needed)
    report, total = progress or (lambda done, total: None), sum(len(entry.programs) for entry in models)
    found: dict[str, ProgramSeconds] = {}
    rates: list[tuple[int, float]] = []
    try:
        executor.load_programs(lambda done, total: None)
        for entry in models:
            rates += _load(executor, entry, tiered=target.kind == "tiered")
            for program in entry.programs:
                found[f"{entry.name}/{program.configuration.id}"] = _measure(executor, entry, program.configuration)
                report(len(found), total)
            executor.evict(Evict(entry.name, "hbm"))
    finally:
        executor.release()
    return ProgramTimes(found, max(rates)[1] if rates else None)


def _load(executor: JaxExecutor, entry: ModelEntry, *, tiered: bool) -> Iterator[tuple[int, float]]:
    """Makes a model hot, a few times; yields the bytes of its KV pool with the rate at which it was cleared."""
    hops: list[tuple[TierName, TierName]] = [("disk", "ddr"), ("ddr", "hbm")] if tiered else [("disk", "hbm")]
    for number in range(_NUM_LOADS):
        records = [_move(executor, entry, *hop) for hop in (hops[-1:] if number else hops)]
        if entry.kv_bytes and number:  # memory of the first one is new
            clearing = max(records[-1].seconds - records[-1].copy_seconds, 1e-6)
            yield entry.kv_bytes, entry.kv_bytes / clearing
        if number < _NUM_LOADS - 1:
            executor.evict(Evict(entry.name, "hbm"))


def _move(executor: JaxExecutor, entry: ModelEntry, source: TierName, destination: TierName) -> TransferRecord:
    transfer = Transfer(0, entry.name, source, destination, entry.moved_bytes)
    moved = executor.copy(transfer, lambda done: None)
    executor.arrived(transfer, moved)
    return moved.record


def _measure(executor: JaxExecutor, entry: ModelEntry, shapes: Configuration) -> ProgramSeconds:
    if shapes.phase == "embed":
        return ProgramSeconds(_median_seconds(executor, _embed(entry, shapes)))
    assert entry.kv is not None, entry.name
    room = min(shapes.context, entry.kv.num_blocks * entry.kv.block_tokens // shapes.batch)
    starts = (0, room - shapes.new_tokens)
    short, long = (_median_seconds(executor, _forward(entry, shapes, start)) for start in starts)
    a_token = max(0.0, (long - short) / (starts[1] - starts[0])) if starts[1] > starts[0] else 0.0
    seconds = short - a_token * shapes.new_tokens if a_token else (short + long) / 2
    return ProgramSeconds(max(seconds, 0.0), a_token * shapes.context)


def _embed(entry: ModelEntry, shapes: Configuration) -> Step:
    entries = tuple(EmbedEntry(1, row, (0,) * shapes.new_tokens) for row in range(shapes.batch))
    return Embed(1, entry.name, shapes, entries)


def _forward(entry: ModelEntry, shapes: Configuration, start: int) -> Step:
    """Returns a step on all rows, each with blocks of its own."""
    assert entry.kv is not None, entry.name
    blocks = itertools.count()
    num_blocks = -(-(start + shapes.new_tokens) // entry.kv.block_tokens)
    entries = tuple(
        SequenceEntry(row, (0,) * shapes.new_tokens, start, tuple(itertools.islice(blocks, num_blocks)), _GREEDY, 0)
        for row in range(shapes.batch)
    )
    if shapes.phase == "decode":
        return Decode(1, entry.name, shapes, entries, 1)
    return Prefill(1, entry.name, shapes, entries)


def _median_seconds(executor: JaxExecutor, step: Step) -> float:
    """Returns the median time of a step; the first run does not count."""
    executor.run(step)
    seconds: list[float] = []
    while len(seconds) < _FEWEST_RUNS or (sum(seconds) < _ENOUGH_SECONDS and len(seconds) < _MOST_RUNS):
        began = time.perf_counter()
        executor.run(step)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
