"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request, Response
from pydantic import JsonValue

from ..request import Usage as EngineUsage
from .engine import choose_model, engine_of
from .generation import Answering, answer, collect, of_key, total_usage
from .requests import ChatRequest
from .responses import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChatToolCallDelta,
    Usage,
    new_id,
    now,
    system_fingerprint,
)
from .sse import DONE, EventStream, event, unless_disconnected

__all__ = ["router"]

router = APIRouter(tags=["generation"])


@router.post("/v1/chat/completions", response_model=ChatCompletion)
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Answers a conversation, at once or as it is generated (`stream`)."""
    engine = engine_of(request)
    model = await choose_model(engine, body.model, "chat")
    params = of_key(body.sampling(), request)
    prompt = await asyncio.to_thread(engine.chat_prompt, model, body.conversation(), params.tools)
    answering = answer(engine, model, [prompt], params, num_choices=body.num_choices, param="messages")
    head = ChatChunk(
        id=new_id("chatcmpl"),
        created=now(),
        model=model,
        system_fingerprint=system_fingerprint(engine.name),
        choices=[],
    )
    if body.stream:
        return EventStream(_events(answering, head, body))
    answers = await unless_disconnected(request.receive, collect(answering, body.num_choices))
    completion = ChatCompletion(
        id=head.id,
        created=head.created,
        model=head.model,
        system_fingerprint=head.system_fingerprint,
        choices=[
            ChatChoice(
                index=index,
                message=ChatMessage.of(whole.text, whole.tool_calls),
                logprobs=ChatLogprobs.of(whole.logprobs) if body.logprobs else None,
                finish_reason=whole.finish_reason,
            )
            for index, whole in enumerate(answers)
        ],
        usage=Usage.of(total_usage([whole.usage for whole in answers], body.num_choices)),
    )
    return Response(completion.model_dump_json(), media_type="application/json")


async def _events(answering: Answering, head: ChatChunk, body: ChatRequest) -> AsyncGenerator[bytes, None]:
    def chunk(choices: list[ChatDelta], usage: Usage | None = None) -> bytes:
        full = head.model_copy(update={"choices": choices, "usage": usage})
        return event(full.model_dump_json(exclude=None if body.includes_usage else {"usage"}))

    usages: list[EngineUsage] = []
    started: set[int] = set()
    async with aclosing(answering):
        async for index, piece in answering:
            if index not in started:
                started.add(index)
                yield chunk([ChatDelta(index=index, delta={"role": "assistant", "content": "", "refusal": None})])
            logprobs = ChatLogprobs.of(piece.logprobs) if body.logprobs and piece.logprobs else None
            if piece.text or logprobs is not None:
                yield chunk([ChatDelta(index=index, delta={"content": piece.text}, logprobs=logprobs)])
            if piece.tool_calls:
                steps: list[JsonValue] = [
                    ChatToolCallDelta.of(one).model_dump(exclude_none=True) for one in piece.tool_calls
                ]
                yield chunk([ChatDelta(index=index, delta={"tool_calls": steps})])
            if piece.finish_reason is not None:
                yield chunk([ChatDelta(index=index, delta={}, finish_reason=piece.finish_reason)])
            if piece.usage is not None:
                usages.append(piece.usage)
    if body.includes_usage:
        yield chunk([], Usage.of(total_usage(usages, body.num_choices)))
    yield DONE
