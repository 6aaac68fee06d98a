"""How models are loaded and unloaded: bodies of POST /v1/models/{id}/load and /unload, which may be left out."""

from __future__ import annotations

from typing import Literal

from .fields import Strict

__all__ = ["LoadRequest", "UnloadRequest"]


class LoadRequest(Strict):
    """Body of POST /v1/models/{id}/load."""

    wait: bool = True  # answer when the model is hot, rather than at once


class UnloadRequest(Strict):
    """Body of POST /v1/models/{id}/unload."""

    tier: Literal["ddr", "disk"] = "disk"  # where the model is to be left
    wait: bool = True  # answer when the model is gone, rather than at once
