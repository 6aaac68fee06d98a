"""What a bundle's programs take on this machine, run by the executor that serves, one after the other.

Each program runs with its shortest and its longest context on every row of its batch. What the executor does around a
program (inputs, results, greedy draws) is in its time; scheduling, replies and HTTP are not. Models come and go
meanwhile, and blocks of their KV pools are copied: what that takes is measured, too. All is measured in several rounds,
so that a disturbance meets all programs alike, and means are taken without what took more than twice the median: of a
program, of all models that have it.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import defaultdict
from collections.abc import Callable
from typing import TypeAlias

from ...compiler.bundle.manifest import Manifest, ModelEntry, ProgramEntry
from ...compiler.bundle.reader import Bundle
from ...compiler.configuration import Configuration
from ...compiler.target import ProgramSeconds, Target
from ..events import (
    Decode,
    Draft,
    Embed,
    EmbedEntry,
    Evict,
    LoadBlocks,
    Prefill,
    Sampling,
    SaveBlocks,
    SequenceEntry,
    Step,
    TierName,
    Transfer,
    Verify,
)
from ..executor import JaxExecutor
from ..pool_copies import GROUP_BLOCKS
from ..tiers import TransferRecord
from .measures import usual_mean

__all__ = ["ProgramKey", "ProgramTimes", "key_of_program", "measure_programs"]

ProgramKey: TypeAlias = tuple[tuple[str, ...], Configuration]  # digests of stages, shapes: models can share it

_GREEDY = Sampling(0.0, 1.0, 0)
_NUM_ROUNDS = 3
_MOST_RUNS = 7  # of a step in a round
_ENOUGH_SECONDS = 0.2  # of them


@dataclasses.dataclass(frozen=True)
class ProgramTimes:
    """What was measured."""

    programs: dict[str, ProgramSeconds]  # by model/configuration
    pool_bytes_per_s: float | None  # None: no model has a KV pool
    save_seconds: float  # of a group of KV blocks; 0: no model has a pool, or there is no ddr
    load_seconds: float
    evict_seconds: float
    reading_seconds: float


def measure_programs(
    bundle: Bundle, target: Target, *, progress: Callable[[int, int], None] | None = None
) -> ProgramTimes:
    """Measures all programs of a bundle, each model alone in hbm.

    Args:
        bundle: An opened bundle.
        target: Of this machine; its links' paces don't count.
        progress: Told how many measurements of how many are done.

    Raises:
        BundleIntegrityError: if the bundle is not what its manifest says.
        ExecutionError: if a program does not run here.
    """
    links = {name: dataclasses.replace(link, pace=False) for name, link in target.links.items()}
    models = bundle.manifest.models
    needed = max(entry.resident_bytes for entry in models)
    executor = JaxExecutor(bundle, dataclasses.replace(target, links=links), hbm_bytes=needed)
    report, total = progress or (lambda done, total: None), _NUM_ROUNDS * sum(len(entry.programs) for entry in models)
    done = itertools.count(1)
    try:
        executor.load_programs(lambda done, total: None)
        measuring = _Measuring(executor, bundle.manifest, is_tiered=target.kind == "tiered")
        for _ in range(_NUM_ROUNDS):
            for entry in models:
                measuring.bring(entry)
                for program in entry.programs:
                    measuring.run(entry, program)
                    report(next(done), total)
                measuring.drop(entry)
    finally:
        executor.release()
    return measuring.found()


class _Measuring:
    """Carries steps and moves out and keeps what each took."""

    def __init__(self, executor: JaxExecutor, manifest: Manifest, *, is_tiered: bool) -> None:
        self._executor = executor
        self._manifest = manifest
        self._is_tiered = is_tiered
        self._is_known: set[str] = set()  # models that have been in hbm
        # By program and the number of tokens that come before its.
        self._seconds: defaultdict[tuple[ProgramKey, int], list[float]] = defaultdict(list)
        self._pools: list[tuple[int, float]] = []  # (bytes, bytes a second at which they were cleared)
        self._slots = itertools.count()  # of saved blocks
        self._saves: list[float] = []  # seconds
        self._loads: list[float] = []  # seconds
        self._evictions: list[float] = []  # seconds
        self._readings: list[float] = []  # seconds

    def bring(self, entry: ModelEntry) -> None:
        """Makes a model hot, and copies blocks of its KV pool to ddr and back."""
        is_first = entry.name not in self._is_known
        self._is_known.add(entry.name)
        if self._is_tiered and is_first:
            self._move(entry, "disk", "ddr")
        record = self._move(entry, "ddr" if self._is_tiered else "disk", "hbm")
        self._readings.append(
            self._timed(lambda: (self._executor.measure(reads_arrays=True), self._executor.predict()))
        )
        if entry.kv_bytes and not is_first:  # memory of the first one is new
            self._pools.append((entry.kv_bytes, entry.kv_bytes / max(record.seconds - record.copy_seconds, 1e-6)))
        if entry.kv is not None and self._is_tiered:
            self._copy_blocks(entry, entry.kv.num_blocks, counts=not is_first)

    def run(self, entry: ModelEntry, program: ProgramEntry) -> None:
        """Runs a hot model's program, as often as takes a while."""
        for start in _starts(entry, program.configuration):
            step = _step(entry, program.configuration, start)
            self._executor.run(step)  # the first run is slower
            seconds: list[float] = []
            while not seconds or (sum(seconds) < _ENOUGH_SECONDS and len(seconds) < _MOST_RUNS):
                seconds.append(self._timed(lambda step=step: self._executor.run(step)))
            self._seconds[key_of_program(self._manifest, program), start] += seconds

    def drop(self, entry: ModelEntry) -> None:
        """Evicts a hot model."""
        self._evictions.append(self._timed(lambda: self._executor.evict(Evict(entry.name, "hbm"))))

    def found(self) -> ProgramTimes:
        """Returns the means."""
        programs = {
            f"{entry.name}/{program.configuration.id}": self._program(entry, program)
            for entry in self._manifest.models
            for program in entry.programs
        }
        return ProgramTimes(
            programs,
            max(self._pools)[1] if self._pools else None,
            usual_mean(self._saves) if self._saves else 0.0,
            usual_mean(self._loads) if self._loads else 0.0,
            usual_mean(self._evictions),
            usual_mean(self._readings),
        )

    def _program(self, entry: ModelEntry, program: ProgramEntry) -> ProgramSeconds:
        key, shapes = key_of_program(self._manifest, program), program.configuration
        starts = _starts(entry, shapes)
        short, *more = (usual_mean(self._seconds[key, start]) for start in starts)
        if not more:
            return ProgramSeconds(short)
        (long,) = more
        a_token = max(0.0, (long - short) / (starts[1] - starts[0]))
        seconds = short - a_token * shapes.new_tokens if a_token else (short + long) / 2
        return ProgramSeconds(max(seconds, 0.0), a_token * shapes.context)

    def _move(self, entry: ModelEntry, source: TierName, destination: TierName) -> TransferRecord:
        transfer = Transfer(0, entry.name, source, destination, entry.moved_bytes)
        moved = self._executor.copy(transfer, lambda done: None)
        self._executor.arrived(transfer, moved)
        return moved.record

    def _copy_blocks(self, entry: ModelEntry, num_blocks: int, *, counts: bool) -> None:
        """Saves a group of blocks and loads it; what is saved stays, as served, so that each group takes new memory."""
        blocks = range(min(num_blocks, GROUP_BLOCKS))
        slots = [next(self._slots) for _ in blocks]
        num_bytes = len(blocks) * max(share.kv_bytes for share in entry.shares) // num_blocks
        save = SaveBlocks(1, entry.name, tuple(zip(blocks, slots, strict=True)), num_bytes)
        load = LoadBlocks(1, entry.name, tuple(zip(slots, blocks, strict=True)), num_bytes)
        for copy, found in ((save, self._saves), (load, self._loads)):
            seconds = self._timed(lambda copy=copy: self._executor.run(copy))
            if counts:
                found.append(seconds)

    @staticmethod
    def _timed(run: Callable[[], object]) -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began


def key_of_program(manifest: Manifest, program: ProgramEntry) -> ProgramKey:
    """Returns what programs have in common that are the same for several models."""
    return tuple(manifest.files[stage.file].sha256 for stage in program.stages), program.configuration


def _starts(entry: ModelEntry, shapes: Configuration) -> tuple[int, ...]:
    """Returns how many tokens come before a program's: as few and as many as can be."""
    if shapes.phase == "embed":
        return (0,)
    assert entry.kv is not None, entry.name
    room = min(shapes.context, entry.kv.num_blocks * entry.kv.block_tokens // shapes.batch)
    return (0, room - shapes.new_tokens) if room > shapes.new_tokens else (0,)


def _step(entry: ModelEntry, shapes: Configuration, start: int) -> Step:
    return _embed(entry, shapes) if shapes.phase == "embed" else _forward(entry, shapes, start)


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
    if shapes.phase == "verify":
        return Verify(1, entry.name, shapes, entries, Draft(entry.name, shapes, shapes, (), ()))
    return Prefill(1, entry.name, shapes, entries)
