"""What clients may ask, field by field: what is not described here is refused by name."""

from __future__ import annotations

from .chat import ChatRequest
from .encoding import ClassifyRequest, EmbeddingRequest, RerankRequest, ScoreRequest
from .generation import CompletionRequest
from .management import LoadRequest, UnloadRequest

__all__ = [
    "ChatRequest",
    "ClassifyRequest",
    "CompletionRequest",
    "EmbeddingRequest",
    "LoadRequest",
    "RerankRequest",
    "ScoreRequest",
    "UnloadRequest",
]
