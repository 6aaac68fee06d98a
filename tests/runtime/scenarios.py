"""Random bundles under random budgets, and what happens to them; `play` carries one out, `check` verifies it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from hypothesis import strategies as st
from tiny_models import (
    BLOCK_TOKENS,
    SEQUENCE,
    answer_of,
    decoder,
    draw_alike,
    embed,
    encoder,
    generate,
    load,
    run,
    unload,
    with_verify,
)
from virtual_machine import verify

from plait.compiler.bundle.manifest import ModelEntry, Route, SpeculativePair, TierBudget
from plait.runtime.events import Check, Checked, Request, Transfer
from plait.runtime.simulator import Record

MIN_BLOCKS = SEQUENCE // BLOCK_TOKENS
BEGINNINGS = ((1,) * 15, (*(1,) * 9, *(2,) * 6), tuple(range(1, 16)))
FIRST_CHECK = 1000  # id of its request
ANY_DECODER = "any"  # a route
BATCHING = partial(decoder, prefill_batch=2)


@dataclass(frozen=True)
class Scenario:
    """A bundle under a budget, and what happens to it."""

    models: list[ModelEntry]
    budget: TierBudget
    tiered: bool
    decode_steps: int
    prefill_tokens: int | None
    kv_bytes_per_s: float | None
    workflows: tuple[tuple[str, ...], ...]
    pairs: tuple[SpeculativePair, ...]
    queue_timeout_seconds: float | None
    patience_seconds: float
    arrivals: list[tuple[float, Request]]
    cancels: list[tuple[float, int]]
    broken: frozenset[int]  # ids of steps and transfers that fail
    checks: list[tuple[float, Check | Checked]]
    chunk_bytes: int


def least_hbm(models: list[ModelEntry]) -> int:
    """The hbm that the largest model needs beside the pinned ones."""

    def together(chosen: list[ModelEntry]) -> int:
        return sum(m.weights_bytes + m.kv_bytes for m in chosen) + max(m.workspace_bytes for m in chosen)

    pinned = [model for model in models if model.pin == "hbm"]
    return max(together(pinned if model in pinned else [*pinned, model]) for model in models)


def least_ddr(models: list[ModelEntry]) -> int:
    """The ddr that the largest model needs beside the pinned ones."""
    pinned = sum(model.weights_bytes for model in models if model.pin == "ddr")
    return max(pinned + (0 if model.pin == "ddr" else model.weights_bytes) for model in models)


@st.composite
def bundles(draw: st.DrawFn) -> list[ModelEntry]:
    models: list[ModelEntry] = []
    for index in range(draw(st.integers(2, 5))):
        make = draw(st.sampled_from([decoder, BATCHING, encoder]))
        model = make(
            f"m{index}" + "x" * index,
            weights_bytes=draw(st.integers(1, 2000)),
            workspace_bytes=draw(st.integers(1, 300)),
            batch=draw(st.integers(1, 4)),
            pin=draw(st.sampled_from([None, None, None, "hbm", "ddr"])),
            step_seconds=draw(st.sampled_from([0.001, 0.01, 0.2])),
            num_segments=draw(st.sampled_from([1, 2, 7])),
        )
        if model.kv is not None:
            blocks = draw(st.sampled_from([MIN_BLOCKS, MIN_BLOCKS + 1, 3 * MIN_BLOCKS]))
            model = replace(model, kv=replace(model.kv, num_blocks=blocks))
        models.append(model)
    return models


@st.composite
def pairs_of(draw: st.DrawFn, models: list[ModelEntry]) -> tuple[SpeculativePair, ...]:
    decoders = [model.name for model in models if model.kv is not None]
    targets = draw(st.lists(st.sampled_from(decoders), unique=True, max_size=2)) if len(decoders) > 1 else []
    return tuple(
        SpeculativePair(draw(st.sampled_from([name for name in decoders if name != target])), target, tokens)
        for target, tokens in ((target, draw(st.integers(1, 4))) for target in targets)
    )


@st.composite
def requests(draw: st.DrawFn, models: list[ModelEntry], request_id: int) -> Request:
    model = draw(st.sampled_from(models))
    priority = draw(st.sampled_from([0, 0, 0, 1, 2]))
    if not draw(st.integers(0, 9)):
        return load(request_id, model.name, priority=priority)
    if not draw(st.integers(0, 9)):
        return unload(request_id, model.name, tier=draw(st.sampled_from(["ddr", "disk"])), priority=priority)
    if model.kv is None:
        lengths = tuple(draw(st.lists(st.integers(1, SEQUENCE), min_size=1, max_size=6)))
        return embed(request_id, model.name, lengths=lengths, priority=priority)
    length = draw(st.integers(1, SEQUENCE - 1))
    # Most prompts begin like others', for as long as these go.
    prompt = draw(st.sampled_from(BEGINNINGS))[:length] if draw(st.integers(0, 3)) else length
    used = length if isinstance(prompt, int) else len(prompt)
    return generate(
        request_id,
        draw(st.sampled_from([model.name] * 5 + [ANY_DECODER])),
        prompt=prompt,
        max_tokens=draw(st.integers(1, SEQUENCE - used)),
        seed=draw(st.integers(0, 9)),
        priority=priority,
        salt=draw(st.sampled_from(["", "", "", "other"])),
        client=draw(st.sampled_from(["", "", "a", "b"])),
    )


@st.composite
def checks(draw: st.DrawFn, models: list[ModelEntry], request_id: int) -> Check | Checked:
    model = draw(st.sampled_from(models))
    if not draw(st.integers(0, 4)):
        return Checked(model.name, draw(st.sampled_from(["", "damaged"])))
    return Check(embed(request_id, model.name) if model.kv is None else generate(request_id, model.name))


def routes_of(models: list[ModelEntry]) -> dict[str, Route]:
    decoders = tuple(model.name for model in models if model.kv is not None)
    return {ANY_DECODER: Route(decoders)} if decoders else {}


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    models = draw(bundles())
    pairs = draw(pairs_of(models))
    models = with_verify(models, pairs)
    last = draw(st.sampled_from([0.1, 1.0, 4.0]))
    times = st.integers(0, 100).map(lambda part: part * last / 100)
    num_requests = draw(st.integers(1, 30))
    slack = draw(st.sampled_from([0, 100, 2000, 20_000]))
    return Scenario(
        models,
        TierBudget(least_hbm(models) + slack, least_ddr(models) + draw(st.sampled_from([0, 500, 20_000]))),
        draw(st.booleans()),
        draw(st.integers(1, 4)),
        draw(st.sampled_from([None, 1, 3, 4])),
        draw(st.sampled_from([None, 10_000.0, 1e6, 1e6])),
        draw(st.sampled_from([(), (tuple(draw(st.permutations([model.name for model in models]))),)])),
        pairs,
        draw(st.sampled_from([None, None, 0.05, 1.0])),
        draw(st.sampled_from([0.0, 0.0, 0.1, 3.0])),
        [(draw(times), _in_time(draw, draw(requests(models, index)))) for index in range(num_requests)],
        [(seconds + draw(times), index) for seconds, index in _some_requests(draw, num_requests)],
        frozenset(draw(st.lists(st.integers(1, 60), max_size=draw(st.sampled_from([0, 0, 5]))))),
        [(draw(times), draw(checks(models, FIRST_CHECK + index))) for index in range(draw(st.sampled_from([0, 0, 4])))],
        draw(st.sampled_from([50, 300, 10_000])),
    )


def _in_time(draw: st.DrawFn, request: Request) -> Request:
    return replace(request, deadline_seconds=draw(st.sampled_from([None, None, 0.01, 0.5])))


def _some_requests(draw: st.DrawFn, num_requests: int) -> list[tuple[float, int]]:
    indices = draw(st.lists(st.integers(0, num_requests - 1), unique=True, max_size=5))
    return [(0.0, index) for index in indices]


def play(scenario: Scenario) -> tuple[Record, ...]:
    """Everything that happens in a scenario."""
    arrived = {request.id: seconds for seconds, request in scenario.arrivals}
    return run(
        scenario.models,
        scenario.arrivals,
        hbm=scenario.budget.hbm,
        ddr=scenario.budget.ddr,
        tiered=scenario.tiered,
        events=[*scenario.checks],
        cancels=[(arrived[index] + seconds, index) for seconds, index in scenario.cancels],
        queue_timeout_seconds=scenario.queue_timeout_seconds,
        patience_seconds=scenario.patience_seconds,
        decode_steps=scenario.decode_steps,
        prefill_tokens=scenario.prefill_tokens,
        kv_bytes_per_s=scenario.kv_bytes_per_s,
        workflows=scenario.workflows,
        chunk_bytes=scenario.chunk_bytes,
        routes=routes_of(scenario.models),
        speculative=scenario.pairs,
        draw_token=draw_alike,
        is_broken=lambda work: (work.transfer_id if isinstance(work, Transfer) else work.step_id) in scenario.broken,
    )


def check(scenario: Scenario, records: Sequence[Record]) -> None:
    """Holds a record of a scenario against every rule."""
    routes = {name: route.models for name, route in routes_of(scenario.models).items()}
    drafts = {pair.target: pair.draft for pair in scenario.pairs}
    verify(records, scenario.models, scenario.budget, partial(answer_of, draw_token=draw_alike), routes, drafts)
