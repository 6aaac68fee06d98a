"""Structured output: from a schema, an expression or a grammar to the tokens that may come next.

Comes in: what an answer must look like, and a model's tokenizer. Goes out: a `Constraint` of one answer, which says of
any beginning of it which tokens may follow. The work is llguidance's (https://github.com/guidance-ai/llguidance): an
Earley parser over the bytes of tokens, whose state after the newest answer is kept. It is a memory, not an input: asked
of another answer, it starts over.

White space in JSON is bounded between any two of its symbols, for a model may go on with it for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from

from ..errors import InvalidRequestError
from .request import Structure
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

__all__ = ["Grammars", "StructuredAnswer", "json_options"]

_WHITE_SPACE = r"( |\n {0,16})?"  # what JSON is printed with, a space or a new line and its indentation, or nothing
_LIMITS = LLParserLimits(verbose_errors=False)
_SHOWN_CHARACTERS = 300  # of a complaint about a grammar


def json_options(*, is_lenient: bool) -> JsonCompileOptions:
    """Returns what llguidance is told of JSON; if lenient, what it does not know in a schema is left out of account."""
    return {"whitespace_flexible": True, "whitespace_pattern": _WHITE_SPACE, "lenient": is_lenient}


class StructuredAnswer:
    """The constraint of one answer; used by one thread at a time.

    Args:
        matcher: At the beginning of an answer; taken over.
        eos_token_ids: Tokens that may follow a complete answer.
    """

    def __init__(self, matcher: LLMatcher, eos_token_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._ends = list(eos_token_ids)
        self._consumed: list[int] = []  # tokens that the matcher has seen
        self._is_stuck = False

    @property
    def failure(self) -> str:
        """Why answers can no longer be constrained, e.g. the grammar became too complex; "" while they can."""
        if self._matcher.is_error():
            return self._matcher.get_error()
        return "no token of the model can follow" if self._is_stuck else ""

    def allowed(self, answer: Sequence[int], vocab_size: int) -> Bool[np.ndarray, " vocab"]:
        """Returns which tokens may follow an answer; an end if it may be complete, or if the constraint has failed."""
        self._advance(answer)
        allowed = np.zeros(vocab_size, bool)
        if not self._matcher.is_stopped():
            mask = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
            count = min(vocab_size, len(mask))
            allowed[:count] = mask[:count]
            self._is_stuck = not allowed.any()
        if self._is_stuck or self._matcher.is_stopped():
            allowed[:] = False
            allowed[self._ends] = True
        return allowed

    def is_complete(self, answer: Sequence[int]) -> bool:
        """Returns whether nothing but an end may follow an answer."""
        self._advance(answer)
        return self._matcher.is_stopped()

    def _advance(self, answer: Sequence[int]) -> None:
        """Brings the matcher to the end of an answer."""
        known = len(self._consumed)
        if list(answer[:known]) != self._consumed:
            self._matcher.reset()
            known = 0
        self._matcher.consume_tokens(list(answer[known:]))
        self._consumed = list(answer)


class Grammars:
    """Makes constraints for a model's answers.

    Args:
        tokenizer: The model's; read when the first constraint is made, which takes a second for a large vocabulary.
        eos_token_ids: The model's own ends.
    """

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ends = list(eos_token_ids)
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None

    def constrain(self, structure: Structure) -> StructuredAnswer:
        """Returns the constraint of one answer. Takes up to a second for a complex structure.

        Raises:
            InvalidRequestError: if the structure is none, or the model's tokenizer of a kind that can't be constrained.
        """
        matcher = LLMatcher(self._read_vocabulary(structure), _grammar(structure), log_level=0, limits=_LIMITS)
        matcher.compute_bitmask()  # the first takes longest, and some structures turn out to have no answer
        if matcher.is_error():
            raise _refusal(structure, matcher.get_error())
        return StructuredAnswer(matcher, self._ends)

    def _read_vocabulary(self, structure: Structure) -> LLTokenizer:
        with self._lock:
            if self._vocabulary is None:
                if not self._ends:
                    raise _refusal(structure, "the model has no token that ends an answer")
                try:
                    self._vocabulary = LLTokenizer(self._tokenizer.to_json(), eos_token=self._ends)
                except ValueError as error:
                    raise _refusal(structure, f"the model's tokenizer cannot be constrained: {error}") from None
            return self._vocabulary


def _grammar(structure: Structure) -> str:
    """Returns a structure in llguidance's terms."""
    try:
        if structure.kind == "json":
            return LLMatcher.grammar_from_json_schema(structure.source, overrides=json_options(is_lenient=False))
        return grammar_from(structure.kind, structure.source)
    except ValueError as error:
        raise _refusal(structure, str(error)) from None


def _refusal(structure: Structure, reason: str) -> InvalidRequestError:
    line = " ".join(reason.split())[:_SHOWN_CHARACTERS]
    return InvalidRequestError(f"'{structure.param}' cannot be answered with: {line}", param=structure.param)
