"""A verifier of what a scheduler did: a machine that carries its record out again and objects to every broken rule.

Written from the definitions, and sharing no code with the scheduler, the residency manager or the KV book-keeping: it
knows only the manifest's numbers, the events and the actions.

- Bytes: weights, KV pools and the largest workspace never pass a tier's budget.
- Transfers: one at a time, from a tier that has the model to one that hasn't, for somebody who waits.
- Evictions: never of a pinned or busy model, nor of one that a transfer reads from.
- Steps: one at a time, of a hot model, within the shapes of one of its programs.
- KV cache: whatever a step takes to be in the cache was computed there, for the same request at the same position.
- Answers: the tokens that a request streams are those of the pure draw function, each once, with one end.
- Order: in one model and class, first come is first begun.
- Timing: what a reply says of waits and switches is what happened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from plait.compiler.bundle.manifest import ModelEntry, TierBudget
from plait.runtime.events import (
    Arrival,
    Cancel,
    Decode,
    Embed,
    EmbedWork,
    Evict,
    GenerateWork,
    Prefill,
    Reply,
    Request,
    SequenceEntry,
    StepDone,
    StepFailed,
    Transfer,
    TransferDone,
    TransferFailed,
)
from plait.runtime.simulator import Record

Answer = Callable[[Request], tuple[tuple[int, ...], str]]  # the whole of it, and why it ends
Step = Prefill | Decode | Embed


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
    was_short: bool = False  # of KV blocks, at some time: it may have been preempted

    @property
    def is_open(self) -> bool:
        return self.end is None and not self.is_gone

    @property
    def prompt(self) -> tuple[int, ...]:
        assert isinstance(self.request.work, GenerateWork)
        return self.request.work.prompt


class VirtualMachine:
    """Carries a record out again. `see` each item in order, then `finish`."""

    def __init__(self, models: Sequence[ModelEntry], budget: TierBudget, answer: Answer) -> None:
        self.models = {model.name: model for model in models}
        self.budget = {"hbm": budget.hbm, "ddr": budget.ddr}
        self.answer = answer
        self.tiers: dict[str, set[str]] = {"disk": set(self.models), "ddr": set(), "hbm": set()}
        self.cache: dict[str, dict[tuple[int, int], tuple[int, int, int]]] = {name: {} for name in self.models}
        self.clients: dict[int, Client] = {}
        self.transfer: Transfer | None = None
        self.step: Step | None = None
        self.leaving: list[str] = []  # models that left hbm just now, for a transfer that must follow
        self.failures = 0
        self.now = 0.0

    def see(self, record: Record) -> None:
        """Takes the next event or action in."""
        item = record.item
        self._pass_time(record.at_seconds)
        assert not self.leaving or isinstance(item, Evict | Transfer), f"{self.leaving} evicted for nothing"
        match item:
            case Arrival(request):
                self._arrive(request, record.at_seconds)
            case Cancel(request_id):
                self.clients[request_id].is_gone = True
            case Transfer():
                self._begin_transfer(item)
            case TransferDone() | TransferFailed():
                self._end_transfer(item)
            case Evict():
                self._evict(item)
            case Prefill() | Decode() | Embed():
                self._begin_step(item)
            case StepDone() | StepFailed():
                self._end_step(item)
            case Reply():
                self._reply(item)
            case _:
                pass  # timers and progress change nothing here
        self._check_bytes()

    def finish(self) -> None:
        """Checks that nothing was left undone."""
        assert self.transfer is None, f"{self.transfer} never ended"
        assert self.step is None, f"{self.step} never ended"
        lost = [client.request for client in self.clients.values() if client.is_open]
        assert not lost, f"never ended: {lost}"

    def _pass_time(self, now: float) -> None:
        assert now >= self.now, "time goes back"
        for client in self.clients.values():
            if client.is_open and not client.has_begun and client.request.model not in self.tiers["hbm"]:
                client.cold_seconds += now - self.now
        self.now = now

    # Bytes and tiers

    def _check_bytes(self) -> None:
        holders = {tier: set(self.tiers[tier]) for tier in ("hbm", "ddr")}
        if self.transfer is not None:
            holders[self.transfer.destination].add(self.transfer.model)
        hot = [self.models[name] for name in holders["hbm"]]
        hbm = sum(m.weights_bytes for m in hot)
        hbm += sum(m.kv.block_tokens * m.kv.num_blocks * m.kv.bytes_per_token for m in hot if m.kv)
        hbm += max((s.temporary_bytes + s.output_bytes for m in hot for p in m.programs for s in p.stages), default=0)
        assert hbm <= self.budget["hbm"], f"hbm holds {hbm} bytes of {self.budget['hbm']}: {sorted(holders['hbm'])}"
        ddr = sum(self.models[name].weights_bytes for name in holders["ddr"])
        assert ddr <= self.budget["ddr"], f"ddr holds {ddr} bytes of {self.budget['ddr']}: {sorted(holders['ddr'])}"

    def _begin_transfer(self, transfer: Transfer) -> None:
        name = transfer.model
        assert self.transfer is None, f"{transfer} beside {self.transfer}"
        assert name in self.tiers[transfer.source], f"{transfer} from where the model is not"
        assert name not in self.tiers[transfer.destination], f"{transfer} to where the model is"
        assert transfer.num_bytes == self.models[name].weights_bytes
        is_asked_for = any(c.is_open and c.request.model == name for c in self.clients.values())
        is_pinned = self.models[name].pin is not None
        if transfer.destination == "hbm" or self.leaving:
            assert is_asked_for or is_pinned, f"{transfer} and {self.leaving} evicted, and nobody asks for it"
        self.leaving = []
        self.transfer = transfer

    def _end_transfer(self, event: TransferDone | TransferFailed) -> None:
        assert self.transfer is not None
        assert self.transfer.transfer_id == event.transfer_id
        if isinstance(event, TransferDone):
            self.tiers[self.transfer.destination].add(self.transfer.model)
        else:
            self.failures += 1
        self.transfer = None

    def _evict(self, evict: Evict) -> None:
        name = evict.model
        assert name in self.tiers[evict.tier], f"{evict} of a model that is not there"
        assert self.models[name].pin != evict.tier, f"{evict} of a pinned model"
        assert self.transfer is None, f"{evict} during {self.transfer}"
        if evict.tier == "hbm":
            assert self.step is None or self.step.model != name, f"{evict} during {self.step}"
            for client in self._of(name):
                is_busy = client.has_begun and not client.was_short
                assert not is_busy, f"{evict} with {client.request} begun and not ended"
            self.cache[name].clear()
        self.tiers[evict.tier].remove(name)
        self.leaving.append(name)

    # Steps and the KV cache

    def _begin_step(self, step: Step) -> None:
        assert self.step is None, f"{step} beside {self.step}"
        assert step.model in self.tiers["hbm"], f"{step} of a model that is not hot"
        assert step.entries, f"{step} computes nothing"
        shapes = step.configuration
        assert shapes in [program.configuration for program in self.models[step.model].programs]
        assert shapes.phase == type(step).__name__.lower()
        assert len(step.entries) <= shapes.batch
        assert all(1 <= len(entry.tokens) <= shapes.new_tokens for entry in step.entries)
        for entry in step.entries:
            client = self.clients[entry.request_id]
            assert client.request.model == step.model
            assert client.is_open, f"{step} computes for {client}"
            self._check_turn(client)
            if not client.has_begun:
                client.has_begun, client.begun_at = True, self.now
        self.step = step
        if isinstance(step, Embed):
            self._check_embed(step)
        else:
            self._check_blocks(step)
            for entry in step.entries:
                self._check_sequence(step, entry)

    def _check_turn(self, client: Client) -> None:
        if client.has_begun:
            return
        for other in self._of(client.request.model):
            if other.request.priority == client.request.priority and other.serial < client.serial:
                assert other.has_begun, f"{client.request} begins before {other.request}"

    def _check_embed(self, step: Embed) -> None:
        keys = [(entry.request_id, entry.index) for entry in step.entries]
        assert len(set(keys)) == len(keys), f"{step} computes a sequence twice"
        for entry in step.entries:
            client = self.clients[entry.request_id]
            assert isinstance(client.request.work, EmbedWork)
            assert entry.tokens == client.request.work.sequences[entry.index]
            assert entry.index not in client.embedded, f"{step} computes a sequence again"

    def _check_blocks(self, step: Prefill | Decode) -> None:
        kv = self.models[step.model].kv
        assert kv is not None
        blocks = [block for entry in step.entries for block in entry.blocks]
        assert len(set(blocks)) == len(blocks), f"{step}: two sequences own a block"
        assert all(0 <= block < kv.num_blocks for block in blocks)

    def _check_sequence(self, step: Prefill | Decode, entry: SequenceEntry) -> None:
        client = self.clients[entry.request_id]
        work, kv = client.request.work, self.models[step.model].kv
        assert isinstance(work, GenerateWork)
        assert kv is not None
        known = (*client.prompt, *client.streamed)
        num_steps = step.max_steps if isinstance(step, Decode) else 1
        end = entry.start + len(entry.tokens)
        assert num_steps >= 1
        assert end + num_steps - 1 <= min(len(entry.blocks) * kv.block_tokens, step.configuration.context)
        assert entry.tokens == known[entry.start : end], f"{step} computes other tokens than those that follow"
        assert (entry.sampling is not None) == (end == len(known)), f"{step} draws in the middle, or not at the end"
        assert entry.sampling in (None, work.sampling)
        assert entry.num_generated == len(client.streamed)
        assert len(client.streamed) + num_steps <= work.max_tokens
        for position in range(entry.start):
            place = (entry.blocks[position // kv.block_tokens], position % kv.block_tokens)
            found = self.cache[step.model].get(place)
            assert found == (entry.request_id, position, known[position]), f"{step}: {place} holds {found}"

    def _end_step(self, event: StepDone | StepFailed) -> None:
        step = self.step
        assert step is not None
        assert step.step_id == event.step_id
        self.step = None
        if isinstance(event, StepFailed):
            self.failures += 1
        elif isinstance(step, Embed):
            for entry in step.entries:
                self.clients[entry.request_id].embedded.add(entry.index)
        else:
            for entry, drawn in zip(step.entries, event.tokens, strict=True):
                self._write(step.model, entry, (*entry.tokens, *drawn[:-1]))

    def _write(self, model: str, entry: SequenceEntry, tokens: tuple[int, ...]) -> None:
        kv = self.models[model].kv
        assert kv is not None
        for position, token in enumerate(tokens, entry.start):
            place = (entry.blocks[position // kv.block_tokens], position % kv.block_tokens)
            self.cache[model][place] = (entry.request_id, position, token)

    # Clients

    def _of(self, model: str) -> list[Client]:
        return [c for c in self.clients.values() if c.is_open and c.request.model == model]

    def _arrive(self, request: Request, now: float) -> None:
        assert request.id not in self.clients
        self.clients[request.id] = Client(request, now, len(self.clients))
        kv = self.models[request.model].kv
        if kv is None:
            return
        rivals = self._of(request.model)
        demand = sum(-(-(len(c.prompt) + _max_tokens(c)) // kv.block_tokens) for c in rivals)
        for client in rivals:
            client.was_short |= demand > kv.num_blocks

    def _reply(self, reply: Reply) -> None:
        client = self.clients[reply.request_id]
        assert client.end is None, f"{reply} after {client.end}"
        assert not client.is_gone, f"{reply} to nobody"
        client.streamed += reply.tokens
        if isinstance(client.request.work, GenerateWork):
            whole, reason = self.answer(client.request)
            assert tuple(client.streamed) == whole[: len(client.streamed)], f"{reply}: {whole} was expected"
            if reply.finish_reason is not None:
                assert (tuple(client.streamed), reply.finish_reason) == (whole, reason)
        elif reply.finish_reason is not None:
            assert client.embedded == set(range(len(client.request.work.sequences)))
        assert reply.tokens or reply.finish_reason or reply.failure, f"{reply} says nothing"
        if reply.failure == "timeout":
            assert not client.has_begun, f"{reply} to {client.request}, which has begun"
        elif reply.failure == "failed":
            assert self.failures, f"{reply} and nothing has failed"
        if reply.failure is None:
            self._check_timing(client, reply)
        if reply.finish_reason or reply.failure:
            client.end = reply

    def _check_timing(self, client: Client, reply: Reply) -> None:
        assert reply.timing is not None
        assert (reply.timing.arrived_at, reply.timing.started_at) == (client.arrived_at, client.begun_at)
        assert abs(reply.timing.switch_seconds - client.cold_seconds) < 1e-9, f"{reply}: {client.cold_seconds}"


def _max_tokens(client: Client) -> int:
    assert isinstance(client.request.work, GenerateWork)
    return client.request.work.max_tokens


def verify(records: Sequence[Record], models: Sequence[ModelEntry], budget: TierBudget, answer: Answer) -> None:
    """Checks a record against every rule above.

    Raises:
        AssertionError: naming the rule that is broken, and by what.
    """
    machine = VirtualMachine(models, budget, answer)
    for record in records:
        machine.see(record)
    machine.finish()
