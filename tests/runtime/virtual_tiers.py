"""The tiers of the virtual machine: what is in them, what moves between them, and the requests that wait for that.

- Bytes: weights, KV pools, the largest workspace and saved KV blocks never pass a tier's budget, nor do they with the
  segments that models have left in hbm. A model that makes room there keeps the segments that fit, and what comes back
  brings only what is missing.
- Transfers: one at a time, from a tier that has the model to one that hasn't, for somebody who waits. Only one that
  nobody waits for is told to end early, once, and for somebody who waits for another model.
- Evictions: never of a pinned or busy model, nor of one that a transfer reads from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from plait.compiler.bundle.manifest import ModelEntry, TierBudget
from plait.compiler.bundle.segments import Segment
from plait.runtime.events import (
    CancelTransfer,
    CopyBlocks,
    Decode,
    DropBlocks,
    Embed,
    Evict,
    GenerateWork,
    LoadBlocks,
    Prefill,
    Reply,
    Request,
    SaveBlocks,
    StepDone,
    StepFailed,
    Transfer,
    TransferCancelled,
    TransferDone,
    TransferFailed,
    UnloadWork,
    Verify,
)

Step = Prefill | Decode | Verify | Embed
Copy = SaveBlocks | LoadBlocks


@dataclass
class Client:
    """One request as its client sees it, and what was computed for it."""

    request: Request
    arrived_at: float
    serial: int  # of its arrival
    streamed: list[int] = field(default_factory=list)
    embedded: set[int] = field(default_factory=set)
    has_begun: bool = False
    begun_at: float = 0.0
    cold_seconds: float = 0.0  # of the wait, while the model was not in hbm
    is_gone: bool = False
    end: Reply | None = None
    is_check: bool = False
    may_be_passed: bool = False  # its beginning was computed for one that has ended; others were admitted meanwhile
    waits_for: list[Client] = field(default_factory=list)  # one of them is to compute its beginning; others passed it
    was_short: bool = False  # of KV blocks, at some time, or lost them: it may have been preempted
    cached_tokens: int = 0  # that steps took to be there, and that no step had computed for it
    num_known: int = 0  # tokens in the cache after its last step

    @property
    def is_open(self) -> bool:
        return self.end is None and not self.is_gone

    @property
    def prompt(self) -> tuple[int, ...]:
        assert isinstance(self.request.work, GenerateWork)
        return self.request.work.prompt


class VirtualTiers:
    """Knows what each tier holds, and who waits."""

    def __init__(self, models: Sequence[ModelEntry], budget: TierBudget) -> None:
        self.models = {model.name: model for model in models}
        self.budget = {"hbm": budget.hbm, "ddr": budget.ddr}
        self.tiers: dict[str, set[str]] = {"disk": set(self.models), "ddr": set(), "hbm": set()}
        self.cache: dict[str, dict[tuple[int, int], int]] = {name: {} for name in self.models}  # histories by place
        self.saved: dict[int, tuple[str, list[int]]] = {}  # by slot: model, and the histories in its block
        self.past_slots: set[int] = set()
        self.clients: dict[int, Client] = {}
        self.transfer: Transfer | None = None
        self.is_cancelled = False  # the transfer, but it goes on until its chunk is done
        self.step: Step | Copy | None = None
        self.kept: dict[str, int] = {}  # segments in hbm of models that are not whole there
        self.leaving: list[str] = []  # models that left hbm just now, for a transfer that must follow
        self.dropped: dict[str, int] = {}  # of them: the first segment that is gone from hbm
        self.failures = 0
        self.now = 0.0

    def _pass_time(self, now: float) -> None:
        assert now >= self.now, "time goes back"
        for client in self.clients.values():
            if client.is_open and not client.has_begun and client.request.model not in self.tiers["hbm"]:
                client.cold_seconds += now - self.now
        self.now = now

    def _hbm_bytes(self) -> int:
        names = set(self.tiers["hbm"])
        if self.transfer is not None and self.transfer.destination == "hbm":
            names.add(self.transfer.model)
        hot = [self.models[name] for name in names]
        hbm = sum(m.weights_bytes for m in hot)
        hbm += sum(m.kv.block_tokens * m.kv.num_blocks * m.kv.bytes_per_token for m in hot if m.kv)
        hbm += max((s.temporary_bytes + s.output_bytes for m in hot for p in m.programs for s in p.stages), default=0)
        return hbm + sum(self._kept_bytes(name) for name in self.kept if name not in names)

    def _kept_bytes(self, name: str) -> int:
        return sum(segment.device_bytes[0] for segment in self._segments(name)[: self.kept.get(name, 0)])

    def _segments(self, name: str) -> Sequence[Segment]:
        model = self.models[name]
        return model.segments or (Segment(("all",), (model.weights_bytes,)),)

    def _check_bytes(self) -> None:
        holders = {tier: set(self.tiers[tier]) for tier in ("hbm", "ddr")}
        if self.transfer is not None:
            holders[self.transfer.destination].add(self.transfer.model)
        hbm = self._hbm_bytes()
        assert hbm <= self.budget["hbm"], f"hbm holds {hbm} bytes of {self.budget['hbm']}: {sorted(holders['hbm'])}"
        ddr = sum(self.models[name].weights_bytes for name in holders["ddr"])
        ddr += sum(self._block_bytes(name) for name, _ in self.saved.values())
        if isinstance(self.step, SaveBlocks):
            ddr += len(self.step.copies) * self._block_bytes(self.step.model)
        assert ddr <= self.budget["ddr"], f"ddr holds {ddr} bytes of {self.budget['ddr']}: {sorted(holders['ddr'])}"

    def _begin_transfer(self, transfer: Transfer) -> None:
        name = transfer.model
        assert self.transfer is None, f"{transfer} beside {self.transfer}"
        assert name in self.tiers[transfer.source], f"{transfer} from where the model is not"
        assert name not in self.tiers[transfer.destination], f"{transfer} to where the model is"
        kept_bytes = self._kept_bytes(name) if transfer.destination == "hbm" else 0
        assert transfer.num_bytes == self.models[name].weights_bytes - kept_bytes
        is_asked_for = name in self._asked_for()
        is_pinned = self.models[name].pin is not None
        if not (is_asked_for or is_pinned) and (transfer.destination == "hbm" or self.leaving):
            self._check_ahead(transfer)
        self.transfer = transfer
        for other, first in self.dropped.items() if transfer.source != "disk" else ():
            segment = self._segments(other)[first].device_bytes[0]
            assert self._hbm_bytes() + segment > self.budget["hbm"], f"{transfer} has room for more of {other}"
        self.leaving, self.dropped = [], {}

    def _check_ahead(self, transfer: Transfer) -> None:
        """Nobody asks for what is on its way: it must take nothing from those who ask for something."""
        asked_for = self._asked_for()
        assert asked_for <= self.tiers["hbm"], f"{transfer} ahead of {asked_for}, and nobody asks for it"
        assert asked_for.isdisjoint(self.leaving), f"{self.leaving} evicted for {transfer}, and nobody asks for it"

    def _asked_for(self) -> set[str]:
        open_ones = (client.request for client in self.clients.values() if client.is_open and not client.is_check)
        return {request.model for request in open_ones if not isinstance(request.work, UnloadWork)}

    def _cancel_transfer(self, cancel: CancelTransfer) -> None:
        assert self.transfer is not None, f"{cancel} of nothing"
        assert self.transfer.transfer_id == cancel.transfer_id
        assert not self.is_cancelled, f"{cancel} again"
        assert self.models[self.transfer.model].pin is None, f"{cancel} of a pinned model"
        asked_for = self._asked_for()
        assert self.transfer.model not in asked_for, f"{cancel}, and somebody asks for {self.transfer.model}"
        assert asked_for - self.tiers["hbm"], f"{cancel} for nobody"
        self.is_cancelled = True

    def _end_transfer(self, event: TransferDone | TransferCancelled | TransferFailed) -> None:
        assert self.transfer is not None
        assert self.transfer.transfer_id == event.transfer_id
        if isinstance(event, TransferDone):
            self.tiers[self.transfer.destination].add(self.transfer.model)
            if self.transfer.destination == "hbm":
                self.kept.pop(self.transfer.model, None)
        elif isinstance(event, TransferCancelled):
            assert self.is_cancelled, f"{event} of its own accord"
            assert event.done_bytes < self.transfer.num_bytes, f"{event} of a transfer that was done"
        else:
            self.failures += 1
        self.transfer, self.is_cancelled = None, False

    def _evict(self, evict: Evict) -> None:
        name = evict.model
        is_whole = name in self.tiers[evict.tier]
        num_held = len(self._segments(name)) if is_whole else self.kept.get(name, 0)
        assert is_whole or (evict.tier == "hbm" and num_held), f"{evict} of a model that is not there"
        assert evict.num_kept <= num_held, f"{evict} keeps what is not there"
        assert self.models[name].pin != evict.tier, f"{evict} of a pinned model"
        assert self.transfer is None, f"{evict} during {self.transfer}"
        if evict.tier == "hbm":
            assert self.step is None or self.step.model != name, f"{evict} during {self.step}"
            assert not isinstance(self.step, Verify) or self.step.draft.model != name, f"{evict} during {self.step}"
            for client in self._of(name):
                is_busy = client.has_begun and not client.was_short and not client.is_check
                assert not is_busy, f"{evict} with {client.request} begun and not ended"
            self.cache[name].clear()
            self.kept[name] = evict.num_kept
        self.tiers[evict.tier].discard(name)
        if not any(isinstance(client.request.work, UnloadWork) for client in self._of(name)):
            self.leaving.append(name)
            if evict.tier == "hbm" and evict.num_kept < num_held:
                self.dropped[name] = evict.num_kept

    def _of(self, model: str) -> list[Client]:
        return [c for c in self.clients.values() if c.is_open and c.request.model == model]

    # Copies of KV blocks

    def _block_bytes(self, model: str) -> int:
        kv = self.models[model].kv
        assert kv is not None
        return kv.block_tokens * kv.bytes_per_token

    def _block_tokens(self, model: str) -> int:
        return self._block_bytes(model) // self.models[model].kv.bytes_per_token  # type: ignore[union-attr]

    def _see_copy(self, copy: CopyBlocks | Copy | DropBlocks) -> None:
        match copy:
            case CopyBlocks():
                self._copy(copy)
            case DropBlocks(slots):
                for slot in slots:
                    assert self.saved.pop(slot, None) or self.failures, f"{copy} of what is not there"
            case _:
                self._begin_copy(copy)

    def _copy(self, copy: CopyBlocks) -> None:
        assert copy.model in self.tiers["hbm"], f"{copy} of a model that is not hot"
        cache = self.cache[copy.model]
        for source, destination in copy.copies:
            for offset in range(self._block_tokens(copy.model)):
                cache.pop((destination, offset), None)
                if (source, offset) in cache:
                    cache[destination, offset] = cache[source, offset]

    def _begin_copy(self, copy: Copy) -> None:
        assert self.step is None, f"{copy} beside {self.step}"
        assert copy.model in self.tiers["hbm"], f"{copy} of a model that is not hot"
        assert copy.copies, f"{copy} copies nothing"
        assert copy.num_bytes == len(copy.copies) * self._block_bytes(copy.model)
        for source, destination in copy.copies:
            if isinstance(copy, LoadBlocks):
                assert self.saved[source][0] == copy.model, f"{copy} of another model's block"
            else:
                assert destination not in self.past_slots, f"{copy} to a slot that was used"
                self.past_slots.add(destination)
        self.step = copy

    def _end_copy(self, copy: Copy, event: StepDone | StepFailed) -> None:
        assert copy.step_id == event.step_id
        self.step = None
        if isinstance(event, StepFailed):
            self._lose_pool(copy.model)
            return
        cache, size = self.cache[copy.model], self._block_tokens(copy.model)
        for source, destination in copy.copies:
            if isinstance(copy, SaveBlocks):
                self.saved[destination] = (copy.model, [cache[source, offset] for offset in range(size)])
            else:
                cache.update({(destination, offset): self.saved[source][1][offset] for offset in range(size)})

    def _lose_pool(self, model: str) -> None:
        self.failures += 1
        self.cache[model].clear()
        for client in self._of(model):
            client.was_short = True
