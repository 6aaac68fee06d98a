"""A verifier of what a scheduler did: a machine that carries its record out again and objects to every broken rule.

Written from the definitions, and sharing no code with the scheduler, the residency manager or the KV book-keeping: it
knows only the manifest's numbers, the events and the actions.

- Bytes, transfers and evictions: as `virtual_tiers.py` says.
- Checks: none computes while somebody waits for a model, or keeps a model. What is asked of a model that failed its
  check fails.
- Routes: a request by a route's name goes to one of its models at once, and to no model that is not hot while one is.
- Loads are answered when their model is hot; unloads when it is gone, after all that was asked of it before, and before
  anything that was asked later begins.
- Steps: one at a time, of a hot model, within the shapes of one of its programs.
- KV cache: whatever a step takes to be in the cache was computed, after the same tokens and for the same salt, and has
  come there by a step, or by copies of what was there. No step writes to a block that another of its sequences has.
- Drafts: a draft proposes, and computes what its target has, for open requests of its own targets; the tokens that it
  proposes after are those at the end of what is known, and are kept in neither cache unless the answer has them.
- Answers: the tokens that a request streams are those of the pure draw function, each once, with one end.
- Order: of one client in one model and class, first come is first begun; but a prompt that a step completes may pass
  one that needs several, and a prompt may be passed whose beginning is being computed for another, or of which only
  the last token is not in the cache. One that is passed because another is to compute its beginning begins after that.
- Timing: what a reply says of waits, switches and cached tokens is what happened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from virtual_tiers import Client, Step, VirtualTiers

from plait.compiler.bundle.manifest import ModelEntry, TierBudget
from plait.runtime.events import (
    Arrival,
    Cancel,
    CancelTransfer,
    Check,
    Checked,
    CopyBlocks,
    Decode,
    DropBlocks,
    Embed,
    EmbedEntry,
    EmbedWork,
    Evict,
    GenerateWork,
    LoadBlocks,
    LoadWork,
    Prefill,
    Reply,
    Request,
    Routed,
    RouteWork,
    SaveBlocks,
    SequenceEntry,
    StepDone,
    StepFailed,
    Transfer,
    TransferCancelled,
    TransferDone,
    TransferFailed,
    UnloadWork,
    Verify,
)
from plait.runtime.simulator import Record

Answer = Callable[[Request], tuple[tuple[int, ...], str]]  # the whole of it, and why it ends


class VirtualMachine(VirtualTiers):
    """Carries a record out again. `see` each item in order, then `finish`."""

    def __init__(
        self,
        models: Sequence[ModelEntry],
        budget: TierBudget,
        answer: Answer,
        routes: Mapping[str, Sequence[str]] | None = None,
        drafts: Mapping[str, str] | None = None,  # by target
    ) -> None:
        super().__init__(models, budget)
        self.drafts = drafts or {}
        self.answer = answer
        self.routes = {alias: [model.name] for model in models for alias in model.aliases} | dict(routes or {})
        self.unhealthy: set[str] = set()
        self.unrouted: Request | None = None  # has come and must be routed next
        self.histories: dict[tuple[int | str, int], int] = {}  # ids by (history before or salt, token)

    def see(self, record: Record) -> None:
        """Takes the next event or action in."""
        item = record.item
        self._pass_time(record.at_seconds)
        assert self.unrouted is None or isinstance(item, Routed), f"{self.unrouted} is not routed"
        may_follow = isinstance(item, Evict | Transfer | DropBlocks)
        assert not self.leaving or may_follow, f"{self.leaving} evicted for nothing"
        match item:
            case Arrival() | Routed() | Check() | Checked():
                self._come(item, record.at_seconds)
            case Cancel(request_id):
                self._leave(self.clients[request_id])
                self.clients[request_id].is_gone = True
            case Transfer():
                self._begin_transfer(item)
            case CancelTransfer():
                self._cancel_transfer(item)
            case TransferDone() | TransferCancelled() | TransferFailed():
                self._end_transfer(item)
            case Evict():
                self._evict(item)
            case Prefill() | Decode() | Verify() | Embed():
                self._begin_step(item)
            case CopyBlocks() | SaveBlocks() | LoadBlocks() | DropBlocks():
                self._see_copy(item)
            case StepDone() | StepFailed():
                if isinstance(self.step, SaveBlocks | LoadBlocks):
                    self._end_copy(self.step, item)
                else:
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
            assert client.is_open, f"{step} computes for {client}"
            if client.is_check:
                assert self._asked_for() <= self.tiers["hbm"], f"{step} checks while somebody waits for a model"
            else:
                assert step.model not in self.unhealthy, f"{step} computes for {client} on a damaged model"
            if client.request.model != step.model:
                assert isinstance(step, Prefill), f"{step} computes for {client}"
                assert self.drafts[client.request.model] == step.model, f"{step} computes for {client}"
                assert client.has_begun, f"{step} is a draft's of {client}, before its target's"
                continue
            self._check_turn(client, is_whole=isinstance(entry, EmbedEntry) or entry.sampling is not None)
            if not client.has_begun:
                self._check_waited(client)
                client.has_begun, client.begun_at = True, self.now
        self.step = step
        if isinstance(step, Embed):
            self._check_embed(step)
        else:
            self._check_blocks(step)
            if isinstance(step, Verify):
                self._check_draft(step)
            for entry in step.entries:
                self._check_sequence(step, entry)

    def _check_draft(self, verify: Verify) -> None:
        """Checks the proposals of a verify step as steps of the draft model."""
        draft, target = verify.draft, verify.entries
        assert self.drafts[verify.model] == draft.model
        assert draft.model in self.tiers["hbm"], f"{verify} with a draft that is not hot"
        programs = [program.configuration for program in self.models[draft.model].programs]
        assert {draft.first, draft.rest} <= set(programs)
        assert (draft.first.phase, draft.rest.phase) in {("decode", "decode"), ("verify", "decode")}
        assert 1 <= len(draft.entries) <= min(draft.first.batch, draft.rest.batch)
        ids = [entry.request_id for entry in draft.entries]
        assert len(set(ids)) == len(ids)
        assert set(ids) <= {entry.request_id for entry in target}, f"{verify} proposes for others"
        kv = self.models[draft.model].kv
        assert kv is not None
        for entry, count in zip(draft.entries, draft.num_tokens, strict=True):
            client = self.clients[entry.request_id]
            known, end = (*client.prompt, *client.streamed), entry.start + len(entry.tokens)
            assert 1 <= count < verify.configuration.new_tokens
            assert 1 <= len(entry.tokens) <= draft.first.new_tokens
            assert entry.tokens == known[entry.start :], f"{verify} does not propose after what is known"
            assert entry.num_generated == len(client.streamed)
            assert end + count - 1 <= min(len(entry.blocks) * kv.block_tokens, draft.rest.context)
            self._check_cached(draft.model, entry)
            for other in draft.entries:
                written = entry.blocks[entry.start // kv.block_tokens : (end + count - 2) // kv.block_tokens + 1]
                assert other is entry or set(written).isdisjoint(other.blocks), f"{verify} writes to what another has"

    def _num_more(self, step: Prefill | Decode | Verify, entry: SequenceEntry) -> int:
        """Returns how many tokens a step computes of a sequence after those that it was given."""
        if isinstance(step, Verify):
            counts = zip(step.draft.entries, step.draft.num_tokens, strict=True)
            return next((count for other, count in counts if other.request_id == entry.request_id), 0)
        return step.max_steps - 1 if isinstance(step, Decode) else 0

    def _check_turn(self, client: Client, *, is_whole: bool) -> None:
        if client.has_begun:
            return
        for other in self._of(client.request.model):
            if isinstance(other.request.work, UnloadWork):
                is_later = client.serial > other.serial and _comes_after(client, other)
                assert not is_later, f"{client.request} begins before {other.request}"
            if not isinstance(other.request.work, GenerateWork | EmbedWork):
                continue
            if other.has_begun or other.serial >= client.serial or other.request.client != client.request.client:
                continue
            if other.is_check:  # it has no turn
                continue
            if is_whole and isinstance(client.request.work, GenerateWork):
                continue
            if other.request.priority == client.request.priority:
                self._check_passed(client, other)

    def _check_passed(self, client: Client, other: Client) -> None:
        """Checks that a client which begins now may pass another that has come before."""
        if other.may_be_passed or self._is_cached(other):
            return
        alike = self._alike(other)
        if not any(one.has_begun for one in alike):  # one may be about to begin, and the other has to wait for it
            other.waits_for = [one for one in alike if one is not client]
            assert other.waits_for, f"{client.request} begins before {other.request}"

    def _check_waited(self, client: Client) -> None:
        """Checks that a client which was passed, for another was to compute its beginning, begins after that one."""
        over = (one.has_begun or one.was_short or not one.is_open for one in client.waits_for)
        assert not client.waits_for or any(over), f"{client.request} did not wait for {client.waits_for}"

    def _is_cached(self, client: Client) -> bool:
        """Whether all but the last token of a client's prompt is in the cache, so that it begins with a decode step."""
        work = client.request.work
        if not isinstance(work, GenerateWork):
            return False
        history: int | str = work.salt
        for token in work.prompt[:-1]:
            history = self._history(history, token)
        return history in self.cache[client.request.model].values()

    def _alike(self, client: Client) -> list[Client]:
        """Returns the others whose steps compute, or will compute, the beginning of a client's prompt."""
        work = client.request.work
        if not isinstance(work, GenerateWork):
            return []
        num_tokens = min(len(work.prompt) - 1, self._block_tokens(client.request.model))
        return [
            other
            for other in self._of(client.request.model)
            if other is not client
            and isinstance(other.request.work, GenerateWork)
            and other.request.work.salt == work.salt
            and (*other.prompt, *other.streamed)[:num_tokens] == work.prompt[:num_tokens]
        ]

    def _check_embed(self, step: Embed) -> None:
        keys = [(entry.request_id, entry.index) for entry in step.entries]
        assert len(set(keys)) == len(keys), f"{step} computes a sequence twice"
        for entry in step.entries:
            client = self.clients[entry.request_id]
            assert isinstance(client.request.work, EmbedWork)
            assert entry.tokens == client.request.work.sequences[entry.index]
            assert entry.index not in client.embedded, f"{step} computes a sequence again"

    def _check_blocks(self, step: Prefill | Decode | Verify) -> None:
        kv = self.models[step.model].kv
        assert kv is not None
        for entry in step.entries:
            assert len(set(entry.blocks)) == len(entry.blocks), f"{step}: a block is twice in a table"
            assert all(0 <= block < kv.num_blocks for block in entry.blocks)
            last = (entry.start + len(entry.tokens) + self._num_more(step, entry) - 1) // kv.block_tokens
            written = set(entry.blocks[entry.start // kv.block_tokens : last + 1])
            for other in step.entries:
                assert other is entry or written.isdisjoint(other.blocks), f"{step} writes to what another has"

    def _check_sequence(self, step: Prefill | Decode | Verify, entry: SequenceEntry) -> None:
        client = self.clients[entry.request_id]
        work, kv = client.request.work, self.models[step.model].kv
        assert isinstance(work, GenerateWork)
        assert kv is not None
        known = (*client.prompt, *client.streamed)
        num_steps = 1 + self._num_more(step, entry)
        end = entry.start + len(entry.tokens)
        assert num_steps >= 1
        assert end + num_steps - 1 <= min(len(entry.blocks) * kv.block_tokens, step.configuration.context)
        assert entry.tokens == known[entry.start : end], f"{step} computes other tokens than those that follow"
        if client.request.model != step.model:
            assert entry.sampling is None, f"{step} draws for another model"
            self._check_cached(step.model, entry)
            return
        assert (entry.sampling is not None) == (end == len(known)), f"{step} draws in the middle, or not at the end"
        assert entry.sampling in (None, work.sampling)
        assert entry.num_generated == len(client.streamed)
        assert len(client.streamed) + num_steps <= work.max_tokens
        self._check_cached(step.model, entry)
        client.cached_tokens += max(0, entry.start - client.num_known)
        client.num_known = end

    def _check_cached(self, model: str, entry: SequenceEntry) -> None:
        """Checks that a model's cache holds what is before an entry's tokens."""
        client, kv = self.clients[entry.request_id], self.models[model].kv
        assert isinstance(client.request.work, GenerateWork)
        assert kv is not None
        history: int | str = client.request.work.salt
        for position, token in enumerate((*client.prompt, *client.streamed)[: entry.start]):
            history = self._history(history, token)
            place = (entry.blocks[position // kv.block_tokens], position % kv.block_tokens)
            found = self.cache[model].get(place)
            assert found == history, f"{model} for {entry}: {place} holds {found}"

    def _history(self, before: int | str, token: int) -> int:
        """Returns the id of a sequence of tokens under a salt, by that of all but its last."""
        return self.histories.setdefault((before, token), len(self.histories))

    def _end_step(self, event: StepDone | StepFailed) -> None:
        step = self.step
        assert step is not None
        assert step.step_id == event.step_id
        self.step = None
        assert isinstance(step, Step)
        if isinstance(event, StepFailed):
            self._lose_pool(step.model)
            if isinstance(step, Verify):
                self._lose_pool(step.draft.model)
        elif isinstance(step, Embed):
            for entry in step.entries:
                self.clients[entry.request_id].embedded.add(entry.index)
        else:
            for entry, drawn in zip(step.entries, event.tokens, strict=True):
                num_more = self._num_more(step, entry)
                assert len(drawn) <= 1 + num_more, f"{step} gave {drawn}"
                self._write(step.model, entry, (*entry.tokens, *drawn[:-1]), num_more - len(drawn[:-1]))
            if isinstance(step, Verify):
                self._end_draft(step, event)

    def _end_draft(self, verify: Verify, event: StepDone) -> None:
        drawn_for = {entry.request_id: drawn for entry, drawn in zip(verify.entries, event.tokens, strict=True)}
        for entry, count in zip(verify.draft.entries, verify.draft.num_tokens, strict=True):
            right = drawn_for[entry.request_id][:-1][: count - 1]  # the last of its proposals it has not computed
            self._write(verify.draft.model, entry, (*entry.tokens, *right), count - 1 - len(right))

    def _write(self, model: str, entry: SequenceEntry, tokens: tuple[int, ...], num_rejected: int = 0) -> None:
        """Notes what a step has computed of a sequence: tokens, and after them others that turned out wrong."""
        client, kv = self.clients[entry.request_id], self.models[model].kv
        work = client.request.work
        assert isinstance(work, GenerateWork)
        assert kv is not None
        history: int | str = work.salt
        for token in (*client.prompt, *client.streamed)[: entry.start]:
            history = self._history(history, token)
        for position, token in enumerate(tokens, entry.start):
            history = self._history(history, token)
            self.cache[model][entry.blocks[position // kv.block_tokens], position % kv.block_tokens] = history
        end = entry.start + len(tokens)
        for position in range(end, end + num_rejected):
            self.cache[model].pop((entry.blocks[position // kv.block_tokens], position % kv.block_tokens), None)
        if client.request.model == model:
            client.num_known = end

    # Clients

    def _arrive(self, request: Request, now: float) -> None:
        assert request.id not in self.clients
        if request.model in self.routes or isinstance(request.work, RouteWork):
            self.unrouted = request
            return
        self.clients[request.id] = Client(request, now, len(self.clients))
        kv = self.models[request.model].kv
        if kv is None:
            return
        rivals = [client for client in self._of(request.model) if isinstance(client.request.work, GenerateWork)]
        demand = sum(-(-(len(c.prompt) + _max_tokens(c)) // kv.block_tokens) for c in rivals)
        for client in rivals:
            client.was_short |= demand > kv.num_blocks

    def _come(self, item: Arrival | Routed | Check | Checked, now: float) -> None:
        if isinstance(item, Arrival):
            self._arrive(item.request, now)
        elif isinstance(item, Check):
            self._arrive(item.request, now)
            self.clients[item.request.id].is_check = True
        elif isinstance(item, Checked):
            (self.unhealthy.add if item.message else self.unhealthy.discard)(item.model)
        else:
            self._route(item, now)

    def _route(self, routed: Routed, now: float) -> None:
        request, self.unrouted = self.unrouted, None
        assert request is not None, f"{routed} of nothing"
        assert request.id == routed.request_id
        models = self.routes.get(request.model, [request.model])
        assert routed.model in models, f"{request} goes to {routed.model}"
        hot = self.tiers["hbm"].intersection(models) - self.unhealthy
        assert not hot or routed.model in hot, f"{request} goes to {routed.model}, while {hot} are hot"
        if not isinstance(request.work, RouteWork):
            self._arrive(replace(request, model=routed.model), now)

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
        elif isinstance(client.request.work, LoadWork | UnloadWork):
            self._check_moved(client, reply)
        elif reply.finish_reason is not None:
            assert isinstance(client.request.work, EmbedWork), f"{reply} to {client.request}"
            assert client.embedded == set(range(len(client.request.work.sequences)))
        assert reply.tokens or reply.finish_reason or reply.failure, f"{reply} says nothing"
        if reply.failure == "timeout":
            assert not client.has_begun, f"{reply} to {client.request}, which has begun"
        elif reply.failure == "unhealthy":
            assert client.request.model in self.unhealthy, f"{reply} and nothing is wrong with the model"
        elif reply.failure == "dropped":
            assert client.is_check, f"{reply} to {client.request}"
        elif reply.failure == "failed":
            assert self.failures, f"{reply} and nothing has failed"
        if reply.failure is None and not client.is_check and isinstance(client.request.work, GenerateWork | EmbedWork):
            self._check_timing(client, reply)
        if reply.finish_reason or reply.failure:
            self._leave(client)
            client.end = reply

    def _leave(self, client: Client) -> None:
        """Notes who had to wait for what a client's steps compute, or would have computed."""
        for other in self._of(client.request.model):
            if not other.has_begun:
                others = [one for one in self._alike(other) if one.has_begun or one is client]
                other.may_be_passed |= bool(others) or self._is_cached(other)

    def _check_moved(self, client: Client, reply: Reply) -> None:
        work, model = client.request.work, client.request.model
        if reply.failure is not None:
            return
        if isinstance(work, LoadWork):
            assert model in self.tiers["hbm"], f"{reply} to {client.request}, which is not hot"
            return
        assert isinstance(work, UnloadWork)
        left = {"hbm", "ddr"} - {work.tier, self.models[model].pin}
        assert not [tier for tier in left if model in self.tiers[tier]], f"{reply} to {client.request}, which is there"
        late = [other.request for other in self._of(model) if _comes_after(client, other) and not other.is_check]
        assert not late, f"{client.request} is gone before {late}"
        if work.tier == "disk":
            assert model not in {name for name, _ in self.saved.values()}, f"{reply} and blocks of {model} are left"

    def _check_timing(self, client: Client, reply: Reply) -> None:
        assert reply.timing is not None
        assert (reply.timing.arrived_at, reply.timing.started_at) == (client.arrived_at, client.begun_at)
        assert abs(reply.timing.switch_seconds - client.cold_seconds) < 1e-9, f"{reply}: {client.cold_seconds}"
        assert reply.timing.cached_tokens <= client.cached_tokens
        assert client.was_short or reply.timing.cached_tokens == client.cached_tokens, f"{reply}: {client}"


def _comes_after(client: Client, other: Client) -> bool:
    """Whether a client's turn is after another's, by class and arrival."""
    return (client.request.priority, client.serial) > (other.request.priority, other.serial)


def _max_tokens(client: Client) -> int:
    assert isinstance(client.request.work, GenerateWork)
    return client.request.work.max_tokens


def verify(
    records: Sequence[Record],
    models: Sequence[ModelEntry],
    budget: TierBudget,
    answer: Answer,
    routes: Mapping[str, Sequence[str]] | None = None,
    drafts: Mapping[str, str] | None = None,
) -> None:
    """Checks a record against every rule above.

    Raises:
        AssertionError: naming the rule that is broken, and by what.
    """
    machine = VirtualMachine(models, budget, answer, routes, drafts)
    for record in records:
        machine.see(record)
    machine.finish()
