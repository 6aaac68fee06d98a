"""Tiny decoders of all families: their config.json, as transformers 5 saves it and as older files were published.

Sizes are such that what tells families apart shows: windows of 16 tokens and original contexts of 32 against prompts
of 96, head sizes that are not hidden size / heads, blocks that do not divide. `decoder_files` writes the directories.
"""

from __future__ import annotations

from collections.abc import Mapping

from decoder_case import DecoderCase
from decoder_zoo_dense import dense_cases
from decoder_zoo_experts import expert_cases

__all__ = ["CASES"]

CASES: Mapping[str, DecoderCase] = {case.name: case for case in (*dense_cases(), *expert_cases())}
