"""Models without weights for tests of the scheduler: their sizes are chosen, and their tokens computed by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from plait.compiler.bundle.manifest import (
    KVPlan,
    ModelEntry,
    ProgramEntry,
    Route,
    SpeculativePair,
    StageProgram,
    TierBudget,
)
from plait.compiler.bundle.segments import Segment
from plait.compiler.configuration import Configuration
from plait.compiler.target import Compute, Link, Target, Tier
from plait.runtime.events import EmbedWork, Event, GenerateWork, LoadWork, Request, Sampling, UnloadWork
from plait.runtime.scheduler import Scheduler
from plait.runtime.simulator import Record, SimExecutor, simulate

VOCAB = 17
END = 0  # the end-of-text token of every model
SEQUENCE = 16
BLOCK_TOKENS = 4


def draw(model: str, prompt: tuple[int, ...], position: int, seed: int) -> int:
    """The token at a position of an answer: arithmetic on everything that it may depend on."""
    return (sum(prompt) + 3 * len(prompt) + 5 * position + 7 * seed + 11 * len(model)) % VOCAB


def draw_alike(model: str, prompt: tuple[int, ...], position: int, seed: int) -> int:
    """As `draw`, but two models in three draw the same at most positions: they agree on what a draft proposes."""
    is_odd = position % 3 == 2 or len(model) % 3 == 0
    return draw(model if is_odd else "alike", prompt, position, seed)


def never_ends(model: str, prompt: tuple[int, ...], position: int, seed: int) -> int:
    """As `draw`, without the end-of-text token."""
    return 1 + draw(model, prompt, position, seed) % (VOCAB - 1)


def answer_of(request: Request, draw_token=draw) -> tuple[tuple[int, ...], str]:
    """The whole answer to a request and why it ends, from the definition."""
    work = request.work
    assert isinstance(work, GenerateWork)
    answer: list[int] = []
    while len(answer) < work.max_tokens:
        token = draw_token(request.model, work.prompt, len(answer), work.sampling.seed)
        if token == END:
            return tuple(answer), "stop"
        answer.append(token)
    return tuple(answer), "length"


def decoder(
    name: str = "chat",
    *,
    weights_bytes: int = 1000,
    num_blocks: int = 16,
    batch: int = 4,
    workspace_bytes: int = 10,
    pin: str | None = None,
    step_seconds: float = 0.01,
    prefill_batch: int = 1,
    num_segments: int = 1,
) -> ModelEntry:
    """A decoder whose KV pool takes one byte a token; chunks of 4 and 8 tokens, and short ones of several prompts."""
    chunks = [Configuration("prefill", 1, chunk, SEQUENCE) for chunk in (4, 8)]
    chunks += [Configuration("prefill", prefill_batch, 4, SEQUENCE)] if prefill_batch > 1 else []
    decodes = [Configuration("decode", size, 1, SEQUENCE) for size in range(1, batch + 1)]
    kv = KVPlan(BLOCK_TOKENS, num_blocks, 1, "f32")
    entry = _entry(name, [*chunks, *decodes], weights_bytes, workspace_bytes, pin, step_seconds, batch, kv)
    return in_segments(entry, num_segments)


def in_segments(entry: ModelEntry, num_segments: int) -> ModelEntry:
    """A model of one device whose weights leave hbm in so many parts, about alike."""
    if num_segments == 1:
        return entry
    ends = [entry.weights_bytes * number // num_segments for number in range(num_segments + 1)]
    sizes = [end - begin for begin, end in itertools.pairwise(ends)]
    return replace(entry, segments=tuple(Segment((f"t{i}",), (size,)) for i, size in enumerate(sizes)))


def with_verify(models: list[ModelEntry], pairs: Sequence[SpeculativePair]) -> list[ModelEntry]:
    """Returns models with the programs that pairs of them need."""
    tokens = {(pair.target, pair.tokens + 1) for pair in pairs} | {(pair.draft, 2) for pair in pairs}
    return [
        replace(
            model,
            programs=model.programs
            + tuple(
                replace(model.programs[-1], configuration=Configuration("verify", size, number, SEQUENCE))
                for name, number in sorted(tokens)
                for size in range(1, model.batch + 1)
                if name == model.name
            ),
        )
        for model in models
    ]


def encoder(
    name: str = "embed",
    *,
    weights_bytes: int = 500,
    batch: int = 4,
    workspace_bytes: int = 10,
    pin: str | None = None,
    step_seconds: float = 0.01,
    num_segments: int = 1,
) -> ModelEntry:
    """An encoder with steps of short sequences, many at once, and of long ones."""
    shapes = [Configuration("embed", batch, 4, 4), Configuration("embed", 1, SEQUENCE, SEQUENCE)]
    entry = _entry(name, shapes, weights_bytes, workspace_bytes, pin, step_seconds, batch, None)
    return in_segments(entry, num_segments)


def _entry(
    name: str,
    shapes: list[Configuration],
    weights_bytes: int,
    workspace_bytes: int,
    pin: str | None,
    step_seconds: float,
    batch: int,
    kv: KVPlan | None,
) -> ModelEntry:
    stage = StageProgram("", workspace_bytes - 1, 1, ())
    programs = tuple(ProgramEntry(shape, (stage,), 0, workspace_bytes - 1, step_seconds) for shape in shapes)
    return ModelEntry(
        name=name,
        aliases=(),
        source="tiny",
        capabilities=("chat",) if kv else ("embedding",),
        architecture={},
        dtype="f32",
        sequence=SEQUENCE,
        batch=batch,
        pin=pin,  # type: ignore[arg-type]
        weights="",
        weights_bytes=weights_bytes,
        kv=kv,
        programs=programs,
        tokenizer="",
        chat_template=None,
        bos_token=None,
        eos_token=None,
        eos_token_ids=(END,),
    )


def target(*, tiered: bool = True, bytes_per_s: float = 10_000.0) -> Target:
    """A machine with slow links: 1000 bytes take a tenth of a second."""
    link = Link(bytes_per_s, 0.001)
    names = ("ddr->hbm", "disk->ddr") if tiered else ("disk->hbm",)
    tiers = {name: Tier(10**9, 1.0) for name in (("hbm", "ddr") if tiered else ("hbm",))}
    kind = "tiered" if tiered else "unified"
    return Target("tiny", "", kind, 1, Compute({}), tiers, dict.fromkeys(names, link), "made up")


def generate(
    request_id: int,
    model: str = "chat",
    *,
    prompt: int | tuple[int, ...] = 3,
    max_tokens: int = 4,
    seed: int = 1,
    priority: int = 0,
    salt: str = "",
    client: str = "",
) -> Request:
    """A request for an answer to a prompt, or to one of so many tokens that begins as no other's."""
    if isinstance(prompt, int):
        prompt = tuple(1 + (request_id + index) % (VOCAB - 1) for index in range(prompt))
    return Request(
        request_id, model, GenerateWork(prompt, max_tokens, Sampling(0.0, 1.0, seed), salt), priority, client
    )


def embed(request_id: int, model: str = "embed", *, lengths: tuple[int, ...] = (3,), priority: int = 0) -> Request:
    """A request for the vectors of sequences of such lengths."""
    sequences = tuple(tuple(range(1, length + 1)) for length in lengths)
    return Request(request_id, model, EmbedWork(sequences), priority)


def load(request_id: int, model: str = "chat", *, priority: int = 0) -> Request:
    """A request to make a model hot."""
    return Request(request_id, model, LoadWork(), priority)


def unload(request_id: int, model: str = "chat", *, tier: str = "disk", priority: int = 0) -> Request:
    """A request to drop a model from the tiers above one."""
    return Request(request_id, model, UnloadWork(tier), priority)  # type: ignore[arg-type]


def run(
    models: list[ModelEntry],
    arrivals: list[tuple[float, Request]],
    *,
    hbm: int = 10**6,
    ddr: int = 10**6,
    tiered: bool = True,
    cancels: list[tuple[float, int]] | None = None,
    events: list[tuple[float, Event]] | None = None,
    queue_timeout_seconds: float | None = None,
    patience_seconds: float = 0.0,
    decode_steps: int = 1,
    prefill_tokens: int | None = None,
    kv_bytes_per_s: float | None = None,
    workflows: tuple[tuple[str, ...], ...] = (),
    routes: dict[str, Route] | None = None,
    speculative: tuple[SpeculativePair, ...] = (),
    chunk_bytes: int = 200,
    draw_token=draw,
    is_broken=lambda _: False,
) -> tuple[Record, ...]:
    """Simulates a trace on a new scheduler."""
    scheduler = Scheduler(
        models,
        TierBudget(hbm, ddr),
        tiered=tiered,
        queue_timeout_seconds=queue_timeout_seconds,
        patience_seconds=patience_seconds,
        decode_steps=decode_steps,
        prefill_tokens=prefill_tokens,
        kv_bytes_per_s=kv_bytes_per_s,
        workflows=workflows,
        routes=routes,
        speculative=speculative,
        links=target(tiered=tiered).links,
        chunk_bytes=chunk_bytes,
    )
    executor = SimExecutor(models, target(tiered=tiered), draw=draw_token, is_broken=is_broken)
    records = simulate(scheduler, executor, arrivals, cancels=cancels or (), events=events or (), until_seconds=1000.0)
    for queue in scheduler.queues.values():
        assert queue.pool is None or queue.pool.num_free == queue.pool.num_blocks, f"{queue.entry.name} leaks blocks"
    return records
