"""POST /v1/completions."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from fastapi import APIRouter, Request, Response

from ..request import Usage as EngineUsage
from .engine import Engine, choose_model, engine_of
from .generation import Answering, answer, collect, of_key, total_usage
from .requests import CompletionRequest
from .responses import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionLogprobs,
    Usage,
    new_id,
    now,
    system_fingerprint,
)
from .sse import DONE, EventStream, event, unless_disconnected

__all__ = ["router", "token_lists"]

router = APIRouter(tags=["generation"])


@router.post("/v1/completions", response_model=Completion)
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Continues one or several texts, at once or as they are generated (`stream`)."""
    engine = engine_of(request)
    model = await choose_model(engine, body.model, "completion")
    prompts = await asyncio.to_thread(token_lists, engine, model, body.prompts())
    params = of_key(body.sampling(), request)
    answering = answer(engine, model, prompts, params, num_choices=body.num_choices, param="prompt")
    head = CompletionChunk(
        id=new_id("cmpl"),
        created=now(),
        model=model,
        system_fingerprint=system_fingerprint(engine.name),
        choices=[],
    )
    if body.stream:
        return EventStream(_events(answering, head, body))
    answers = await unless_disconnected(request.receive, collect(answering, len(prompts) * body.num_choices))
    completion = Completion(
        id=head.id,
        created=head.created,
        model=head.model,
        system_fingerprint=head.system_fingerprint,
        choices=[
            CompletionChoice(
                index=index,
                text=whole.text,
                logprobs=None if body.logprobs is None else CompletionLogprobs.of(whole.logprobs),
                finish_reason=whole.finish_reason,
            )
            for index, whole in enumerate(answers)
        ],
        usage=Usage.of(total_usage([whole.usage for whole in answers], body.num_choices)),
    )
    return Response(completion.model_dump_json(), media_type="application/json")


def token_lists(engine: Engine, model: str, prompts: Sequence[str | list[int]]) -> list[list[int]]:
    """Returns the tokens of each prompt. Blocks: call it off the event loop."""
    return [engine.tokenize(model, prompt) if isinstance(prompt, str) else prompt for prompt in prompts]


async def _events(answering: Answering, head: CompletionChunk, body: CompletionRequest) -> AsyncGenerator[bytes, None]:
    def chunk(choices: list[CompletionChunkChoice], usage: Usage | None = None) -> bytes:
        full = head.model_copy(update={"choices": choices, "usage": usage})
        return event(full.model_dump_json(exclude=None if body.includes_usage else {"usage"}))

    usages: list[EngineUsage] = []
    offsets: Counter[int] = Counter()  # where the text of each answer's next token begins
    async with aclosing(answering):
        async for index, piece in answering:
            logprobs = None
            if piece.logprobs:
                logprobs = CompletionLogprobs.of(piece.logprobs, offsets[index])
                offsets[index] = logprobs.end_offset
            if piece.text or logprobs is not None or piece.finish_reason is not None:
                reason = piece.finish_reason
                yield chunk(
                    [CompletionChunkChoice(index=index, text=piece.text, logprobs=logprobs, finish_reason=reason)]
                )
            if piece.usage is not None:
                usages.append(piece.usage)
    if body.includes_usage:
        yield chunk([], Usage.of(total_usage(usages, body.num_choices)))
    yield DONE
