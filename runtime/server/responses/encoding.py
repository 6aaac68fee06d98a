"""Answers of the endpoints of encoders: vectors, labels, scores, rankings."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from ...request import JoulesSource
from ...request import Usage as EngineUsage
from .usage import Seconds

__all__ = [
    "Classification",
    "ClassificationList",
    "EmbeddingItem",
    "EmbeddingList",
    "EmbeddingUsage",
    "Ranked",
    "RankedDocument",
    "Ranking",
    "Score",
    "ScoreList",
]


class EmbeddingItem(BaseModel):
    """One vector: a list of numbers, or little-endian f32 in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """What vectors, labels or scores cost."""

    prompt_tokens: int
    total_tokens: int
    total_latency: Seconds
    queue_ms: float
    switch_ms: float
    joules: float | None
    joules_per_token: float | None
    joules_source: JoulesSource | None

    @classmethod
    def of(cls, usage: EngineUsage) -> EmbeddingUsage:
        """Returns the engine's account in the API's terms."""
        return cls(
            prompt_tokens=usage.prompt_tokens,
            total_tokens=usage.prompt_tokens,
            total_latency=usage.total_seconds,
            queue_ms=usage.queue_seconds * 1000,
            switch_ms=usage.switch_seconds * 1000,
            joules=usage.energy.joules if usage.energy else None,
            joules_per_token=usage.joules_per_token,
            joules_source=usage.energy.source if usage.energy else None,
        )


class EmbeddingList(BaseModel):
    """Body of an embeddings response."""

    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage


class Classification(BaseModel):
    """One input's most probable label, and the probability of each label in the model's order."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class ClassificationList(BaseModel):
    """Body of a classification response."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    labels: list[str]  # what each of `probs` is the probability of
    data: list[Classification]
    usage: EmbeddingUsage


class Score(BaseModel):
    """One pair's score, between 0 and 1."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreList(BaseModel):
    """Body of a score response."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Score]
    usage: EmbeddingUsage


class RankedDocument(BaseModel):
    """A document as it was sent."""

    text: str


class Ranked(BaseModel):
    """One document's place; `document` is left out unless the client asked for it."""

    index: int  # in the request
    relevance_score: float  # between 0 and 1
    document: RankedDocument | None = None


class Ranking(BaseModel):
    """Body of a rerank response, the most relevant document first."""

    id: str
    model: str
    results: list[Ranked]
    usage: EmbeddingUsage
