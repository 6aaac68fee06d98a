"""How likely the tokens of an answer were, in the forms of both endpoints."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from ...request import TokenLogprobs, TokenScore

__all__ = ["ChatLogprobs", "ChatTokenLogprobs", "ChatTokenScore", "CompletionLogprobs"]

_LEAST_LOGPROB = -9999.0  # OpenAI's, for tokens that are out of the question


def _shown(score: TokenScore) -> str:
    """Returns a token's text; a part of a character becomes U+FFFD, its bytes are in `bytes`."""
    return score.data.decode(errors="replace")


class ChatTokenScore(BaseModel):
    """One token and the logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]

    @classmethod
    def of(cls, score: TokenScore) -> ChatTokenScore:
        """Returns a score in the API's terms."""
        return cls(token=_shown(score), logprob=_finite(score.logprob), bytes=list(score.data))


class ChatTokenLogprobs(ChatTokenScore):
    """One token of an answer, and the likeliest ones in its place."""

    top_logprobs: list[ChatTokenScore]


class ChatLogprobs(BaseModel):
    """The tokens of an answer, or of one step of it."""

    content: list[ChatTokenLogprobs]
    refusal: None = None

    @classmethod
    def of(cls, logprobs: Sequence[TokenLogprobs]) -> ChatLogprobs:
        """Returns scores in the API's terms."""
        return cls(
            content=[
                ChatTokenLogprobs(
                    **ChatTokenScore.of(one.drawn).model_dump(),
                    top_logprobs=[ChatTokenScore.of(score) for score in one.likeliest],
                )
                for one in logprobs
            ]
        )


class CompletionLogprobs(BaseModel):
    """The tokens of a text completion, or of one step of it, list by list."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]  # the likeliest, and the token itself
    text_offset: list[int]  # characters of the answer before each token

    @classmethod
    def of(cls, logprobs: Sequence[TokenLogprobs], offset: int = 0) -> CompletionLogprobs:
        """Returns scores in the API's terms, the first token's text beginning at an offset."""
        texts = [_shown(one.drawn) for one in logprobs]
        return cls(
            tokens=texts,
            token_logprobs=[_finite(one.drawn.logprob) for one in logprobs],
            top_logprobs=[
                {_shown(score): _finite(score.logprob) for score in (one.drawn, *reversed(one.likeliest))}
                for one in logprobs
            ],
            text_offset=[offset + sum(map(len, texts[:index])) for index in range(len(texts))],
        )

    @property
    def end_offset(self) -> int:
        """Where the text after these tokens begins."""
        return self.text_offset[-1] + len(self.tokens[-1]) if self.tokens else 0


def _finite(logprob: float) -> float:
    """JSON has no infinity."""
    return max(logprob, _LEAST_LOGPROB)
