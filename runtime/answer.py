"""From tokens to text: what becomes of the scheduler's replies before a client sees them."""

from __future__ import annotations

from .events import Reply, Timing
from .request import Piece, Usage
from .tokenizer import Detokenizer, StopMatcher, Tokenizer

__all__ = ["Answer"]


class Answer:
    """Turns the replies of one request into pieces of text that are final: whole characters, no stop string.

    Args:
        tokenizer: The model's.
        stops: Strings before the first of which the answer ends.
        num_prompt: Tokens of the prompt.
        submitted_at: When the request was submitted, in the clock that `push` is given.
    """

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...], num_prompt: int, submitted_at: float) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopMatcher(stops)
        self._num_prompt = num_prompt
        self._submitted_at = submitted_at
        self._first_token_at: float | None = None
        self._timing: Timing | None = None
        self._num_tokens = 0
        self._unsent: list[int] = []  # tokens whose text is not final yet

    def push(self, reply: Reply, now: float) -> Piece | None:
        """Returns the piece that a reply makes final, or None if it makes none.

        The piece has a finish reason if the answer is over: because the reply says so, or because a stop string came.
        """
        self._timing = reply.timing or self._timing
        if reply.tokens and self._first_token_at is None:
            self._first_token_at = now
        text = ""
        for token in reply.tokens:
            self._num_tokens += 1
            self._unsent.append(token)
            part, is_stopped = self._stops.push(self._detokenizer.push(token))
            text += part
            if is_stopped:
                return Piece(text, self._take_tokens(), "stop", self._usage(now))
        if reply.finish_reason is None:
            return Piece(text, self._take_tokens()) if text else None
        part, is_stopped = self._stops.push(self._detokenizer.flush())
        text += part if is_stopped else part + self._stops.flush()
        reason = "stop" if is_stopped else reply.finish_reason
        return Piece(text, self._take_tokens(), reason, self._usage(now))

    def _take_tokens(self) -> tuple[int, ...]:
        taken, self._unsent = tuple(self._unsent), []
        return taken

    def _usage(self, now: float) -> Usage:
        timing = self._timing
        first = now if self._first_token_at is None else self._first_token_at
        return Usage(
            prompt_tokens=self._num_prompt,
            completion_tokens=self._num_tokens,
            queue_seconds=max(0.0, timing.started_at - timing.arrived_at) if timing else 0.0,
            switch_seconds=timing.switch_seconds if timing else 0.0,
            time_to_first_token_seconds=first - self._submitted_at,
            total_seconds=now - self._submitted_at,
        )
