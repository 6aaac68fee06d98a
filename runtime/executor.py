"""The executor: carries the scheduler's actions out on JAX's devices.

Steps and evictions run on the engine thread, copies on the transfer thread. The executor decides nothing and keeps no
book but of the arrays themselves; `measure` reads from JAX what they take.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax
import numpy as np

from ..compiler.bundle.manifest import ModelEntry, ProgramEntry
from ..compiler.bundle.programs import load_exported
from ..compiler.bundle.reader import Bundle
from ..compiler.configuration import BLOCK_TOKENS, Configuration
from ..compiler.executable import Executable, compile_exported, use_compilation_cache
from ..compiler.target import Target
from ..errors import ExecutionError
from .arena import Arena
from .events import Decode, Embed, Evict, Prefill, SequenceEntry, Step, StepDone, TierName, Transfer
from .sampler import sample
from .tiers import Copier, Moved

__all__ = ["JaxExecutor", "MemoryReading", "Vectors"]

Vectors = dict[tuple[int, int], np.ndarray]  # by (request id, index of the sequence)

_LOADERS = 2  # programs that are compiled or read from the cache at once


@dataclass(frozen=True)
class MemoryReading:
    """Bytes in use, by the plan or by JAX. A program is in use if it ran since the models in the tiers changed."""

    hbm_bytes: int  # of the device's memory: arrays, and temporaries and results of the largest program in use
    ddr_bytes: int  # of pinned_host memory: arrays


class JaxExecutor:
    """Runs the programs of a bundle on the first device.

    Args:
        bundle: The opened bundle.
        target: What its tiers and links are; the bundle's own or a calibrated one.
        hbm_bytes: What it may use of hbm.
    """

    def __init__(self, bundle: Bundle, target: Target, *, hbm_bytes: int) -> None:
        self._bundle = bundle
        self._entries = {entry.name: entry for entry in bundle.manifest.models}
        needed = min(hbm_bytes, sum(entry.weights_bytes for entry in bundle.manifest.models))
        has_stand_in = target.kind == "tiered" and jax.default_backend() == "cpu"
        self._copier = Copier(bundle, target, Arena(needed) if has_stand_in else None)
        self._kinds = {name: tier.memory_kind for name, tier in target.tiers.items()}
        self._programs: dict[tuple[str, Configuration], Executable] = {}
        self._tiers: dict[TierName, dict[str, Moved]] = {"hbm": {}, "ddr": {}}
        self._in_use: set[tuple[str, Configuration]] = set()
        self.has_news = False  # whether `measure` would read other bytes than the last time
        self.vectors: Vectors = {}  # of finished embedding steps, until somebody takes them

    def load_programs(self, progress: Callable[[int, int], None]) -> tuple[ModelEntry, ...]:
        """Compiles every program for this machine, most of them out of the compilation cache.

        Returns:
            The models, with the bytes that XLA says here where they differ from those in the manifest.

        Raises:
            BundleIntegrityError: if a program is not what the manifest says.
            ExecutionError: if one does not compile here.
        """
        use_compilation_cache()
        jobs = [(entry, program) for entry in self._entries.values() for program in entry.programs]
        with ThreadPoolExecutor(_LOADERS) as pool:
            for done, ((entry, program), executable) in enumerate(zip(jobs, pool.map(self._load, jobs), strict=True)):
                self._programs[entry.name, program.configuration] = executable
                progress(done + 1, len(jobs))
        self._entries = {name: self._as_compiled(entry) for name, entry in self._entries.items()}
        return tuple(self._entries.values())

    def run(self, step: Step) -> StepDone:
        """Runs a step to its end.

        Raises:
            ExecutionError: if the device fails.
        """
        try:
            match step:
                case Embed():
                    return self._embed(step)
                case Prefill():
                    return StepDone(step.step_id, self._forward(step, step.entries))
                case Decode():
                    return self._decode(step)
        except RuntimeError as error:
            hot = self._tiers["hbm"][step.model]
            hot.pools[:] = self._copier.empty_pools(self._entries[step.model])  # the failed step had them donated
            raise ExecutionError(f"the device failed: {str(error).splitlines()[0]}") from error

    def copy(self, transfer: Transfer, progress: Callable[[int], None]) -> Moved:
        """Moves a model's bytes; runs on the transfer thread and touches no state. See `arrived`."""
        source = None if transfer.source == "disk" else self._tiers[transfer.source][transfer.model]
        return self._copier.copy(transfer, self._entries[transfer.model], source, progress)

    def arrived(self, transfer: Transfer, moved: Moved) -> None:
        """Takes over what `copy` made."""
        self._tiers[transfer.destination][transfer.model] = moved
        self._in_use.clear()

    def evict(self, evict: Evict) -> None:
        """Frees a model's bytes in a tier."""
        self._tiers[evict.tier].pop(evict.model).release()
        self._in_use.clear()

    def release(self) -> None:
        """Frees everything; called once the threads have ended."""
        self._copier.close()
        for models in self._tiers.values():
            for moved in models.values():
                moved.release()
            models.clear()

    def measure(self) -> MemoryReading:
        """Reads the bytes in use from JAX: live arrays by memory kind, and the buffers that XLA assigned."""
        self.has_news = False
        by_kind: dict[str | None, int] = {}
        for array in jax.live_arrays():
            kind = array.sharding.memory_kind
            by_kind[kind] = by_kind.get(kind, 0) + array.nbytes
        programs = (self._programs[key] for key in self._in_use)
        step = max((program.temporary_bytes + program.output_bytes for program in programs), default=0)
        ddr = self._kinds.get("ddr")
        return MemoryReading(by_kind.get(self._kinds["hbm"], 0) + step, by_kind.get(ddr, 0) if ddr else 0)

    def predict(self) -> MemoryReading:
        """Returns the bytes in use by the manifest."""
        models = {entry.name: entry for entry in self._bundle.manifest.models}
        step = max(
            (
                program.temporary_bytes + program.output_bytes
                for name, entry in models.items()
                for program in entry.programs
                if (name, program.configuration) in self._in_use
            ),
            default=0,
        )
        return MemoryReading(
            sum(models[name].resident_bytes for name in self._tiers["hbm"]) + step,
            sum(models[name].weights_bytes for name in self._tiers["ddr"]),
        )

    def _load(self, job: tuple[ModelEntry, ProgramEntry]) -> Executable:
        entry, program = job
        exported = load_exported(self._bundle.read_bytes(program.file), name=program.file)
        return compile_exported(exported, program.donated, num_blocks=entry.kv.num_blocks if entry.kv else 0)

    def _as_compiled(self, entry: ModelEntry) -> ModelEntry:
        programs: list[ProgramEntry] = []
        for program in entry.programs:
            executable = self._programs[entry.name, program.configuration]
            programs.append(
                dataclasses.replace(
                    program, temporary_bytes=executable.temporary_bytes, output_bytes=executable.output_bytes
                )
            )
        return dataclasses.replace(entry, programs=tuple(programs))

    def _executable(self, step: Step) -> Executable:
        key = (step.model, step.configuration)
        self.has_news |= key not in self._in_use
        self._in_use.add(key)
        return self._programs[key]

    def _embed(self, step: Embed) -> StepDone:
        shapes = step.configuration
        tokens = np.zeros((shapes.batch, shapes.new_tokens), np.int32)
        lengths = np.zeros((shapes.batch,), np.int32)
        for row, entry in enumerate(step.entries):
            tokens[row, : len(entry.tokens)] = entry.tokens
            lengths[row] = len(entry.tokens)
        result = np.array(self._executable(step)(self._tiers["hbm"][step.model].weights, tokens, lengths))
        for row, entry in enumerate(step.entries):
            self.vectors[entry.request_id, entry.index] = result[row]
        return StepDone(step.step_id)

    def _decode(self, step: Decode) -> StepDone:
        """Runs up to `max_steps` steps, each on the tokens that the one before drew; ends with the first end."""
        ends = self._entries[step.model].eos_token_ids
        drawn: list[tuple[int, ...]] = [() for _ in step.entries]
        entries = step.entries
        for _ in range(step.max_steps):
            fresh = self._forward(step, entries)
            drawn = [(*before, *now) for before, now in zip(drawn, fresh, strict=True)]
            if any(token in ends for (token,) in fresh):
                break
            entries = tuple(
                dataclasses.replace(entry, tokens=now, start=entry.start + 1, num_generated=entry.num_generated + 1)
                for entry, now in zip(entries, fresh, strict=True)
            )
        return StepDone(step.step_id, tuple(drawn))

    def _forward(self, step: Prefill | Decode, entries: Iterable[SequenceEntry]) -> tuple[tuple[int, ...], ...]:
        """Runs one program on the entries' tokens and returns what is drawn for each of them."""
        shapes = step.configuration
        hot = self._tiers["hbm"][step.model]
        kv = self._entries[step.model].kv
        assert kv is not None, step.model
        tokens = np.zeros((shapes.batch, shapes.new_tokens), np.int32)
        start = np.zeros((shapes.batch,), np.int32)
        lengths = np.ones((shapes.batch,), np.int32)
        # A block that no sequence has is out of range: writes to it are dropped.
        tables = np.full((shapes.batch, -(-shapes.context // BLOCK_TOKENS)), kv.num_blocks, np.int32)
        for row, entry in enumerate(entries):
            tokens[row, : len(entry.tokens)] = entry.tokens
            start[row] = entry.start
            lengths[row] = len(entry.tokens)
            tables[row, : len(entry.blocks)] = entry.blocks
        logits, hot.pools[:] = self._executable(step)(hot.weights, tokens, start, lengths, hot.pools, tables)
        rows = np.asarray(logits)
        return tuple(
            () if entry.sampling is None else (sample(rows[row], entry.sampling, entry.num_generated),)
            for row, entry in enumerate(entries)
        )
