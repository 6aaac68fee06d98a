"""A program: one stage of a model in one configuration, as exported StableHLO."""

from __future__ import annotations

from dataclasses import dataclass

from jax import export

from .configuration import Configuration

__all__ = ["Program"]


@dataclass(frozen=True)
class Program:
    """One stage of one configuration as exported StableHLO.

    It takes (parameters by name, inputs by name, pools of the stage's layers, values that earlier stages hand it) and
    returns (values that it hands on, pools). A decoder has the inputs tokens, start, lengths and tables, an encoder
    tokens and lengths and no pools. What the last stage hands on last is the result: logits or vectors.
    """

    configuration: Configuration
    exported: export.Exported
    donated: tuple[int, ...]  # positions of arguments that the program overwrites
    takes: tuple[int, ...] = ()  # ids of the values that earlier stages hand it
    gives: tuple[int, ...] = ()  # ids of those that it hands on

    def to_bytes(self) -> bytes:
        """Returns the serialized program, as `bundle.programs.load_exported` reads it."""
        return bytes(self.exported.serialize())
