"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64

import numpy as np
from fastapi import APIRouter, Request, Response
from jaxtyping import Float

from ...errors import ContextLengthError
from ..request import EmbedResult
from .completions import token_lists
from .engine import choose_model, engine_of
from .requests import EmbeddingRequest
from .responses import EmbeddingItem, EmbeddingList, EmbeddingUsage
from .sse import unless_disconnected

__all__ = ["router"]

router = APIRouter(tags=["embeddings"])


@router.post("/v1/embeddings", response_model=EmbeddingList)
async def create_embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """Returns a vector for each text, as numbers or as base64 of little-endian f32."""
    engine = engine_of(request)
    model = await choose_model(engine, body.model, "embedding", "sparse_embedding")
    inputs = await asyncio.to_thread(token_lists, engine, model, body.inputs())
    try:
        result = await unless_disconnected(request.receive, _embed(request, model, inputs))
    except ContextLengthError as error:
        error.param = error.param or "input"
        raise
    is_base64 = body.encoding_format == "base64"
    text = await asyncio.to_thread(_as_json, result, model, is_base64=is_base64)
    return Response(text, media_type="application/json")


async def _embed(request: Request, model: str, inputs: list[list[int]]) -> EmbedResult:
    return await engine_of(request).embed_async(model, inputs)


def _as_json(result: EmbedResult, model: str, *, is_base64: bool) -> str:
    items = [
        EmbeddingItem(index=index, embedding=_base64(vector) if is_base64 else vector.tolist())
        for index, vector in enumerate(result.vectors)
    ]
    return EmbeddingList(data=items, model=model, usage=EmbeddingUsage.of(result.usage)).model_dump_json()


def _base64(vector: Float[np.ndarray, " size"]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
