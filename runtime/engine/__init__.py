"""`Runtime`, the way in from Python."""

from __future__ import annotations

from .runtime import Runtime
from .served import Messages, Prompt, TextOrPair

__all__ = ["Messages", "Prompt", "Runtime", "TextOrPair"]
