"""Bodies of /v1/models."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from ...request import Health, Residency

__all__ = ["ListedItem", "ModelBytes", "ModelItem", "ModelList", "ModelMove", "RouteItem"]


class ModelBytes(BaseModel):
    """What a model takes of memory while it is hot."""

    weights: int
    kv: int
    workspace: int


class ModelMove(BaseModel):
    """The last transfer that brought a model to another tier."""

    source: str
    destination: str
    bytes: int
    seconds: float
    ended_at: float  # seconds since the epoch


class ListedItem(BaseModel):
    """A name that can be asked for, and what it can do."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "plait"
    context_length: int
    max_completion_tokens: int
    capabilities: list[str]
    residency: Residency


class ModelItem(ListedItem):
    """A model, what it can do and where it is now."""

    bytes: ModelBytes
    health: Health
    tiers: dict[str, int]  # bytes in each tier that the model is in
    running: int
    waiting: int
    last_move: ModelMove | None
    aliases: list[str]
    pin: str | None


class RouteItem(ListedItem):
    """A name for models that can stand for each other; an answer's `model` says which one it was."""

    models: list[str]
    policy: str


class ModelList(BaseModel):
    """Body of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelItem | RouteItem]
