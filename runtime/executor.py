"""The executor: carries the scheduler's actions out on JAX's devices.

Steps and evictions run on the engine thread, copies on the transfer thread. The executor decides nothing and keeps no
book but of the arrays themselves; `measure` reads from JAX what they take.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import jax
import numpy as np
from jax.core import ShapedArray
from jax.sharding import Sharding

from ..compiler.bundle.manifest import ModelEntry
from ..compiler.bundle.placement import DeviceShare
from ..compiler.bundle.reader import Bundle
from ..compiler.configuration import BLOCK_TOKENS, Configuration
from ..compiler.executable import Executable, provide_devices
from ..compiler.target import Target
from ..errors import ExecutionError
from .arena import Arena, GrowingArena
from .events import (
    CopyBlocks,
    Decode,
    Draft,
    DropBlocks,
    Embed,
    Evict,
    LoadBlocks,
    Prefill,
    SaveBlocks,
    SequenceEntry,
    Step,
    StepDone,
    TierName,
    Transfer,
    Verify,
)
from .gaps import StepGaps
from .pool_copies import PoolCopier
from .program_loader import Awaited, ProgramLoader
from .sampler import Proposal, draw_logprobs, propose, sample
from .tiers import Copier, Moved

__all__ = ["JaxExecutor", "Logprobs", "MemoryReading", "Vectors"]

Logprobs = tuple[tuple[int, float], ...]  # (token, logarithm of its probability): the drawn one, then the likeliest
Vectors = dict[tuple[int, int], np.ndarray]  # by (request id, index of the sequence)
_SAVED_AHEAD = 64 << 20  # most bytes of memory that is made ready at once for KV blocks in ddr
_Memory: TypeAlias = tuple[str | None, Hashable]  # (memory kind, device)


@dataclass(frozen=True)
class MemoryReading:
    """Bytes in use, by the plan or by JAX. A program is in use if it ran since the models in the tiers changed."""

    hbm_bytes: int  # of the fullest device's memory: arrays, and temporaries and results of its largest step in use
    ddr_bytes: int  # of the fullest device's pinned_host memory: arrays


class JaxExecutor:
    """Runs the programs of a bundle on this machine's devices.

    Args:
        bundle: The opened bundle.
        target: What its tiers and links are; the bundle's own or a calibrated one.
        hbm_bytes: What it may use of hbm on each device.

    Raises:
        ConfigurationError: if this process has fewer devices than the bundle needs and can make no more.
    """

    def __init__(self, bundle: Bundle, target: Target, *, hbm_bytes: int) -> None:
        provide_devices(bundle.manifest.num_devices)
        self._foreign = [weakref.ref(array) for array in jax.live_arrays()]  # what others of this process hold
        self._bundle = bundle
        self._entries = {entry.name: entry for entry in bundle.manifest.models}
        loads = _device_loads(bundle.manifest.models, lambda share: share.weights_bytes)
        needed = sum(min(hbm_bytes, load) for load in loads)
        has_stand_in = target.kind == "tiered" and jax.default_backend() == "cpu"
        self._gaps = StepGaps()
        self._copier = Copier(bundle, target, Arena(needed) if has_stand_in else None, self._gaps)
        self._link = target.link("ddr", "hbm") if target.kind == "tiered" else None
        self._pool_copiers: dict[str, Awaited[PoolCopier]] = {}  # of decoders
        self._copies: dict[str, list[tuple[int, int]]] = {}  # of blocks, to be made before a model's next step
        kv_bytes = sum(entry.kv_bytes for entry in bundle.manifest.models) if self._link else 0
        self._saved_memory = GrowingArena(min(_SAVED_AHEAD, kv_bytes))
        self._saved: dict[int, tuple[np.ndarray, int]] = {}  # by slot: a block, and its bytes on the fullest device
        self._saved_bytes = 0  # of them all: adding them up at every switch takes longer the more there are
        self._kinds = {name: tier.memory_kind for name, tier in target.tiers.items()}
        self._loader: ProgramLoader | None = None
        self._tiers: dict[TierName, dict[str, Moved]] = {"hbm": {}, "ddr": {}}
        self._rests: dict[str, tuple[Moved, int]] = {}  # of models that left hbm: segments that stayed, and how many
        self._in_use: set[tuple[str, Configuration]] = set()
        self._live: Counter[_Memory] = Counter()  # bytes of live arrays when they were read, and of what moved since
        self.has_news = False  # whether more may be in use than when `measure` was called
        self.vectors: Vectors = {}  # of finished embedding steps, until somebody takes them
        self.logprobs: dict[int, list[Logprobs]] = {}  # by request id, of drawn tokens, until somebody takes them

    def load_programs(self, progress: Callable[[int, int], None]) -> tuple[ModelEntry, ...]:
        """Begins to compile every program for this machine, most of them out of the compilation cache.

        Returns:
            The models, with the bytes that XLA says here where they differ from those in the manifest.

        Raises:
            BundleIntegrityError: if a program is not what the manifest says.
            ExecutionError: if one does not compile here.
        """
        self._loader = loader = ProgramLoader(self._bundle, progress)
        self._entries = {entry.name: entry for entry in loader.entries()}
        for entry in self._entries.values():
            if entry.kv is not None:
                shardings = self._copier.pool_shardings(entry)
                self._pool_copiers[entry.name] = loader.submit(PoolCopier, entry, shardings, self._link)
        return tuple(self._entries.values())

    def run(self, step: Step | SaveBlocks | LoadBlocks) -> StepDone:
        """Runs a step, or the copy of blocks in its place, to its end.

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
                case Verify():
                    return self._verify(step)
                case SaveBlocks():
                    return self._save(step)
                case LoadBlocks():
                    return self._load_saved(step)
        except RuntimeError as error:
            for model in (step.model, step.draft.model) if isinstance(step, Verify) else (step.model,):
                self._copies.pop(model, None)
                empty = self._copier.empty_pools(self._entries[model])  # the failed step had them donated
                self._tiers["hbm"][model].pools[:] = empty
            raise ExecutionError(f"the device failed: {str(error).splitlines()[0]}") from error

    def copy(self, transfer: Transfer, progress: Callable[[int], None]) -> Moved:
        """Moves a model's bytes; runs on the transfer thread and touches no state. See `arrived`."""
        source = None if transfer.source == "disk" else self._tiers[transfer.source][transfer.model]
        kept, _ = self._rests.get(transfer.model, (None, 0)) if transfer.destination == "hbm" else (None, 0)
        return self._copier.copy(transfer, self._entries[transfer.model], source, progress, kept)

    def arrived(self, transfer: Transfer, moved: Moved) -> None:
        """Takes over what `copy` made."""
        self._tiers[transfer.destination][transfer.model] = moved
        self._live += _live_bytes(moved.arrays)
        self.has_news = True
        if transfer.destination == "hbm" and (rest := self._rests.pop(transfer.model, None)) is not None:
            self._live -= _live_bytes(rest[0].arrays)  # is a part of what was made
        self._in_use.clear()

    def evict(self, evict: Evict) -> bool:
        """Frees a model's bytes in a tier, but for the segments that it keeps; returns whether it was there whole."""
        name, segments = evict.model, self._entries[evict.model].segments
        whole = self._tiers[evict.tier].pop(name, None)
        moved = self._rests.pop(name)[0] if whole is None else whole
        gone = _live_bytes(moved.arrays)
        if evict.num_kept:
            names = frozenset(tensor for segment in segments[: evict.num_kept] for tensor in segment.tensors)
            rest = moved.keep(names if segments else moved.shapes.keys())
            self._rests[name] = rest, evict.num_kept
            gone -= _live_bytes(rest.arrays)
        else:
            moved.release()
        self._live -= gone
        if evict.tier == "hbm":
            self._copies.pop(name, None)
        self._in_use.clear()
        return whole is not None

    def copy_blocks(self, copy: CopyBlocks) -> None:
        """Notes copies within a model's pool: they are made at the beginning of its next step, and fail with it."""
        self._copies.setdefault(copy.model, []).extend(copy.copies)

    def drop_blocks(self, drop: DropBlocks) -> None:
        """Frees saved blocks."""
        for slot in drop.slots:
            if slot in self._saved:  # of a copy that failed there is none
                content, num_bytes = self._saved.pop(slot)
                self._saved_memory.release(content)
                self._saved_bytes -= num_bytes
        self.has_news = True

    def release(self) -> None:
        """Frees everything; called once the threads have ended."""
        if self._loader is not None:
            self._loader.close()
        self._copier.close()
        self._saved.clear()
        self._saved_bytes = 0
        self._saved_memory.close()
        for models in self._tiers.values():
            for moved in models.values():
                moved.release()
            models.clear()
        for moved, _ in self._rests.values():
            moved.release()
        self._rests.clear()

    def measure(self, *, reads_arrays: bool) -> MemoryReading:
        """Returns the bytes in use: live arrays by memory kind, and the buffers that XLA assigned.

        Args:
            reads_arrays: Reads anew from JAX which arrays are alive: there are thousands, and steps wait meanwhile.
                Otherwise what was read last counts, with what came and went since. Arrays from before the executor was
                made are somebody else's.
        """
        self.has_news = False
        if reads_arrays:
            foreign = {id(array) for reference in self._foreign if (array := reference()) is not None}
            self._live = _live_bytes([array for array in jax.live_arrays() if id(array) not in foreign])
        live = self._live
        used = [self._entries[name] for name in {name for name, _ in self._in_use}]
        steps = _most_per_device(self._used_only(entry) for entry in used)
        hbm, ddr = self._kinds["hbm"], self._kinds.get("ddr")
        devices = jax.devices()[: self._bundle.manifest.num_devices]
        return MemoryReading(
            max(live[hbm, device] + (steps[i] if i < len(steps) else 0) for i, device in enumerate(devices)),
            max(live[ddr, device] for device in devices) + self._saved_bytes if ddr else 0,
        )

    def predict(self) -> MemoryReading:
        """Returns the bytes in use by the manifest."""
        models = {entry.name: entry for entry in self._bundle.manifest.models}
        used = [models[name] for name in {name for name, _ in self._in_use}]
        steps = _most_per_device(self._used_only(entry) for entry in used)
        held = _device_loads([models[name] for name in self._tiers["hbm"]], lambda share: share.resident_bytes)
        rests = [models[name].segment_ends[num_segments] for name, (_, num_segments) in self._rests.items()]
        held = [sum(loads) for loads in itertools.zip_longest(held, *rests, fillvalue=0)]
        warm = _device_loads([models[name] for name in self._tiers["ddr"]], lambda share: share.weights_bytes)
        return MemoryReading(
            max((sum(pair) for pair in itertools.zip_longest(held, steps, fillvalue=0)), default=0),
            max(warm, default=0) + self._saved_bytes,
        )

    def _used_only(self, entry: ModelEntry) -> list[int]:
        """Returns the workspace on each of a model's devices, of those programs that are in use."""
        programs = tuple(program for program in entry.programs if (entry.name, program.configuration) in self._in_use)
        return [share.workspace_bytes for share in dataclasses.replace(entry, programs=programs).shares]

    def _executable(self, model: str, configuration: Configuration) -> Executable:
        key = (model, configuration)
        self.has_news |= key not in self._in_use
        self._in_use.add(key)
        assert self._loader is not None, "programs are loaded before a step runs"
        return self._loader.executable(*key)

    def _embed(self, step: Embed) -> StepDone:
        shapes = step.configuration
        tokens = np.zeros((shapes.batch, shapes.new_tokens), np.int32)
        lengths = np.zeros((shapes.batch,), np.int32)
        for row, entry in enumerate(step.entries):
            tokens[row, : len(entry.tokens)] = entry.tokens
            lengths[row] = len(entry.tokens)
        inputs = {"tokens": tokens, "lengths": lengths}
        executable = self._executable(step.model, shapes)
        with self._gaps.step():
            vectors, _ = executable(self._tiers["hbm"][step.model].weights, inputs, [])
            result = np.array(vectors)
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
            if any(
                entry.sampling is not None and entry.sampling.is_end(now[-1], ends)
                for entry, now in zip(entries, fresh, strict=True)
            ):
                break
            entries = tuple(_advanced(entry, now) for entry, now in zip(entries, fresh, strict=True))
        return StepDone(step.step_id, tuple(drawn))

    def _verify(self, step: Verify) -> StepDone:
        """Has the draft propose, computes the proposals with the target, and returns what is drawn with their help."""
        proposals = self._propose(step.draft, self._entries[step.model].config.vocab_size)
        entries = [
            e._replace(tokens=(*e.tokens, *(one.token for one in proposals.get(e.request_id, []))))
            for e in step.entries
        ]
        logits = self._logits(step.model, step.configuration, entries)
        ends = self._entries[step.model].eos_token_ids
        return StepDone(
            step.step_id,
            tuple(
                self._accept(rows[len(entry.tokens) - 1 :], entry, proposals.get(entry.request_id, []), ends)
                for rows, entry in zip(logits, step.entries, strict=False)
            ),
        )

    def _propose(self, draft: Draft, vocab_size: int) -> dict[int, list[Proposal]]:
        """Returns a draft's proposals by request, of tokens that a target's vocabulary has too."""
        ends = self._entries[draft.model].eos_token_ids
        proposals: dict[int, list[Proposal]] = {entry.request_id: [] for entry in draft.entries}
        entries = draft.entries
        for number in range(max(draft.num_tokens, default=0)):
            shapes = draft.rest if number else draft.first
            logits = self._logits(draft.model, shapes, entries)
            rows = [_last_row(row, entry) for row, entry in zip(logits, entries, strict=False)]
            wanted: list[SequenceEntry] = []
            for row, entry in zip(rows, entries, strict=True):
                assert entry.sampling is not None, "a draft has what precedes its proposals"
                one = propose(row[:vocab_size], entry.sampling, entry.num_generated, entry.context, ends)
                proposals[entry.request_id].append(one)
                wanted.append(_advanced(entry, (one.token,)))
            left = dict(zip((entry.request_id for entry in draft.entries), draft.num_tokens, strict=True))
            entries = tuple(entry for entry in wanted if left[entry.request_id] > number + 1)
        return proposals

    def _accept(
        self, logits: np.ndarray, entry: SequenceEntry, proposals: Sequence[Proposal], ends: Sequence[int]
    ) -> tuple[int, ...]:
        """Returns what is drawn from one row of logits after the other, as long as it is what was proposed."""
        drawn: tuple[int, ...] = ()
        for row, proposal in itertools.zip_longest(logits[: len(proposals) + 1], proposals):
            now = self._draw(row, entry, ends, proposal)
            drawn += now
            assert entry.sampling is not None, "an answer is verified at its end"
            if proposal is None or now != (proposal.token,) or entry.sampling.is_end(proposal.token, ends):
                break
            entry = _advanced(entry, now)
        return drawn

    def _ready(self, model: str) -> Moved:
        """Returns what a hot model has, with the copies within its pool made."""
        hot = self._tiers["hbm"][model]
        copies = self._copies.pop(model, [])
        if copies:
            self._pool_copiers[model].result().copy(hot.pools, copies)
        return hot

    def _save(self, save: SaveBlocks) -> StepDone:
        pools = self._ready(save.model).pools
        copier = self._pool_copiers[save.model].result()
        entry = self._entries[save.model]
        contents = [self._saved_memory.allocate(copier.saved_bytes) for _ in save.copies]
        try:
            copier.save(pools, [block for block, _ in save.copies], contents, save.num_bytes)
        except RuntimeError:
            for content in contents:
                self._saved_memory.release(content)
            raise
        num_bytes = copier.saved_bytes * max(share.kv_bytes for share in entry.shares) // entry.kv_bytes
        for (_, slot), content in zip(save.copies, contents, strict=True):
            self._saved[slot] = (content, num_bytes)
            self._saved_bytes += num_bytes
        self.has_news = True
        return StepDone(save.step_id)

    def _load_saved(self, load: LoadBlocks) -> StepDone:
        contents = [self._saved[slot][0] for slot, _ in load.copies]
        blocks = [block for _, block in load.copies]
        copier = self._pool_copiers[load.model].result()
        copier.load(self._ready(load.model).pools, blocks, contents, load.num_bytes)
        return StepDone(load.step_id)

    def _forward(self, step: Prefill | Decode, entries: Iterable[SequenceEntry]) -> tuple[tuple[int, ...], ...]:
        """Runs one program on the entries' tokens and returns what is drawn for each of them."""
        listed = tuple(entries)
        logits = self._logits(step.model, step.configuration, listed)
        ends = self._entries[step.model].eos_token_ids
        return tuple(self._draw(row, entry, ends) for row, entry in zip(logits, listed, strict=False))

    def _logits(self, model: str, shapes: Configuration, entries: Sequence[SequenceEntry]) -> np.ndarray:
        """Runs one program on the entries' tokens and returns its logits; rows after the entries' mean nothing.

        They are [batch, vocab], or in a verify step [batch, new tokens, vocab].
        """
        hot = self._ready(model)
        kv = self._entries[model].kv
        assert kv is not None, model
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
        inputs = {"tokens": tokens, "start": start, "lengths": lengths, "tables": tables}
        executable = self._executable(model, shapes)
        with self._gaps.step():
            logits, hot.pools[:] = executable(hot.weights, inputs, hot.pools)
            return np.asarray(logits)

    def _draw(
        self, logits: np.ndarray, entry: SequenceEntry, ends: Sequence[int], proposal: Proposal | None = None
    ) -> tuple[int, ...]:
        """Returns the next token, if one is wanted, and an end right after it if nothing else may follow."""
        sampling = entry.sampling
        if sampling is None:
            return ()
        token = sample(logits, sampling, entry.num_generated, entry.context, ends, proposal)
        if sampling.num_logprobs is not None:
            drawn = draw_logprobs(logits, token, sampling.num_logprobs)
            self.logprobs.setdefault(entry.request_id, []).append(drawn)
        if sampling.constraint is not None and not sampling.is_end(token, ends):
            answer = entry.context[len(entry.context) - entry.num_generated :]
            if sampling.constraint.is_complete((*answer, token)):
                return (token, ends[0])
        return (token,)


def _last_row(logits: np.ndarray, entry: SequenceEntry) -> np.ndarray:
    """Returns the logits after an entry's last token, from its part of a step's."""
    return logits[len(entry.tokens) - 1] if logits.ndim == 2 else logits


def _advanced(entry: SequenceEntry, drawn: tuple[int, ...]) -> SequenceEntry:
    """Returns the next decode step's entry."""
    return entry._replace(
        tokens=drawn,
        start=entry.start + len(entry.tokens),
        num_generated=entry.num_generated + 1,
        context=(*entry.context, *drawn) if entry.context else (),
    )


def _live_bytes(arrays: Iterable[jax.Array]) -> Counter[_Memory]:
    """Returns the bytes of arrays by memory kind and device; of many alike, one is looked at."""
    shardings: dict[int, Sharding] = {}
    alike: Counter[tuple[int, ShapedArray]] = Counter()
    for array in arrays:
        sharding = array.sharding
        shardings[id(sharding)] = sharding
        alike[id(sharding), array.aval] += 1
    live: Counter[_Memory] = Counter()
    for (key, aval), count in alike.items():
        sharding = shardings[key]
        num_bytes = count * math.prod(sharding.shard_shape(aval.shape)) * aval.dtype.itemsize
        for device in sharding.device_set:
            live[sharding.memory_kind, device] += num_bytes
    return live


def _device_loads(models: Iterable[ModelEntry], part: Callable[[DeviceShare], int]) -> list[int]:
    """Returns the bytes of each device that these models take together."""
    return [sum(shares) for shares in itertools.zip_longest(*_parts_of(models, part), fillvalue=0)]


def _parts_of(models: Iterable[ModelEntry], part: Callable[[DeviceShare], int]) -> list[list[int]]:
    return [[part(share) for share in model.shares] for model in models]


def _most_per_device(models: Iterable[list[int]]) -> list[int]:
    """Returns the most bytes that any model takes of each device."""
    return [max(needs) for needs in itertools.zip_longest(*models, fillvalue=0)]
