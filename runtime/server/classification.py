"""POST /v1/classify, /v1/score and /v1/rerank: what classifiers say of texts and pairs of texts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from ...errors import ContextLengthError
from ..request import ClassifyResult
from .completions import token_lists
from .engine import Engine, choose_model, engine_of
from .requests import ClassifyRequest, RerankRequest, ScoreRequest
from .responses import (
    Classification,
    ClassificationList,
    EmbeddingUsage,
    Ranked,
    RankedDocument,
    Ranking,
    Score,
    ScoreList,
    new_id,
    now,
)
from .sse import unless_disconnected

__all__ = ["router"]

router = APIRouter(tags=["classification"])


@router.post("/v1/classify", response_model=ClassificationList)
async def create_classification(body: ClassifyRequest, request: Request) -> Response:
    """Returns the probability of each of a model's labels for each text."""
    engine = engine_of(request)
    model = await choose_model(engine, body.model, "classification", "score")
    inputs = await asyncio.to_thread(token_lists, engine, model, body.inputs())
    result = await _classify(request, model, inputs, param="input")
    labels = list(result.labels)
    items = [
        Classification(index=index, label=labels[row.argmax()], probs=row.tolist(), num_classes=len(labels))
        for index, row in enumerate(result.probabilities)
    ]
    usage = EmbeddingUsage.of(result.usage)
    answer = ClassificationList(
        id=new_id("classify"), created=now(), model=model, labels=labels, data=items, usage=usage
    )
    return Response(answer.model_dump_json(), media_type="application/json")


@router.post("/v1/score", response_model=ScoreList)
async def create_score(body: ScoreRequest, request: Request) -> Response:
    """Returns how well the second text of each pair answers the first."""
    engine = engine_of(request)
    model = await choose_model(engine, body.model, "score")
    pairs = await asyncio.to_thread(_pair_tokens, engine, model, body.pairs())
    result = await _classify(request, model, pairs, param="text_2")
    items = [Score(index=index, score=score) for index, score in enumerate(result.probabilities[:, 0].tolist())]
    usage = EmbeddingUsage.of(result.usage)
    answer = ScoreList(id=new_id("score"), created=now(), model=model, data=items, usage=usage)
    return Response(answer.model_dump_json(), media_type="application/json")


@router.post("/v1/rerank", response_model=Ranking)
@router.post("/rerank", response_model=Ranking, include_in_schema=False)
async def create_ranking(body: RerankRequest, request: Request) -> Response:
    """Returns the documents that answer a query best, the most relevant first."""
    engine = engine_of(request)
    model = await choose_model(engine, body.model, "score")
    texts = body.texts()
    pairs = await asyncio.to_thread(_pair_tokens, engine, model, [(body.query, text) for text in texts])
    result = await _classify(request, model, pairs, param="documents")
    scores: list[float] = result.probabilities[:, 0].tolist()
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n]  # equal ones stay in their order
    ranked = [
        Ranked(
            index=index,
            relevance_score=scores[index],
            document=RankedDocument(text=texts[index]) if body.return_documents else None,
        )
        for index in best
    ]
    answer = Ranking(id=new_id("rerank"), model=model, results=ranked, usage=EmbeddingUsage.of(result.usage))
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")


def _pair_tokens(engine: Engine, model: str, pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
    return [engine.tokenize_pair(model, first, second) for first, second in pairs]


async def _classify(request: Request, model: str, inputs: list[list[int]], *, param: str) -> ClassifyResult:
    """Returns what the model says, if the client waits for it; `param` is to blame for what is too long."""
    try:
        return await unless_disconnected(request.receive, engine_of(request).classify_async(model, inputs))
    except ContextLengthError as error:
        error.param = param
        raise
