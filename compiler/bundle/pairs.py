"""Pairs of speculative decoding in a bundle file: whether two models fit together, and the programs that takes."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from ...errors import ConfigurationError
from ...models import registry
from ...models.checkpoint import Checkpoint, open_checkpoint
from ...models.config import DecoderConfig
from .spec import BundleSpec

__all__ = ["check_pairs", "verify_tokens"]

_DRAFT_TOKENS = 2  # that a draft lacks at most: the last one that it proposed, and the one that the target added


def verify_tokens(spec: BundleSpec, model: str) -> tuple[int, ...]:
    """Returns how many new tokens the verify steps of a model of a bundle file have; several sizes, or none."""
    as_target = {pair.tokens + 1 for pair in spec.speculative if spec.name_of(pair.target) == model}
    as_draft = {_DRAFT_TOKENS for pair in spec.speculative if spec.name_of(pair.draft) == model}
    return tuple(sorted(as_target | as_draft))


def check_pairs(spec: BundleSpec, base: Path) -> None:
    """Checks that drafts and their targets are decoders of one vocabulary.

    Args:
        spec: The bundle file.
        base: Directory that its relative paths are relative to.

    Raises:
        ConfigurationError: naming the pair and what differs.
        PlaitError: whatever pulling or reading a model raises.
    """
    for pair in spec.speculative:
        draft, target = (_checkpoint(spec, name, base) for name in (pair.draft, pair.target))
        for name, checkpoint in ((pair.draft, draft), (pair.target, target)):
            if not isinstance(checkpoint.config, DecoderConfig):
                raise ConfigurationError(f"model {name!r} is an encoder: it can be in no pair for speculative decoding")
        if (difference := _difference(draft, target)) is not None:
            raise ConfigurationError(
                f"{pair.draft!r} cannot be the draft of {pair.target!r}: they must share a tokenizer, and {difference}"
            )


def _checkpoint(spec: BundleSpec, name: str, base: Path) -> Checkpoint:
    source = spec.models[spec.name_of(name)].source
    return open_checkpoint(registry.resolve(source, base=base))


def _difference(draft: Checkpoint, target: Checkpoint) -> str | None:
    """Returns a token that two tokenizers have not in the same place; None if there is none."""
    ours, theirs = (Tokenizer.from_str(one.tokenizer_json).get_vocab() for one in (draft, target))
    for text in sorted(ours.keys() | theirs.keys()):
        if ours.get(text) != theirs.get(text):
            return f"{text!r} is {_place(ours.get(text))} in one and {_place(theirs.get(text))} in the other"
    return None


def _place(token: int | None) -> str:
    return "missing" if token is None else f"token {token}"
