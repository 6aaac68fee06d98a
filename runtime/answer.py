"""From tokens to text: what becomes of the scheduler's replies before a client sees them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .events import Reply, Timing
from .request import Energy, FinishReason, Piece, TokenLogprobs, TokenScore, Usage
from .tokenizer import Detokenizer, StopMatcher, Tokenizer
from .tool_calls.parser import Parsed, ToolCallParser

__all__ = ["Answer"]


class Answer:
    """Turns the replies of one request into pieces of text that are final: whole characters, no stop string.

    Args:
        tokenizer: The model's.
        stops: Strings before the first of which the answer ends.
        num_prompt: Tokens of the prompt.
        submitted_at: When the request was submitted, in the clock that `push` is given.
        min_tokens: Stop strings that are complete before so many tokens are text like any other.
        tool_calls: Reads calls out of the text; taken over. None where there are no tools.
        shown: Special tokens whose texts count as text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: tuple[str, ...],
        num_prompt: int,
        submitted_at: float,
        *,
        min_tokens: int = 0,
        tool_calls: ToolCallParser | None = None,
        shown: Collection[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._min_tokens = min_tokens
        self._detokenizer = Detokenizer(tokenizer, shown)
        self._tool_calls = tool_calls
        self._stops = StopMatcher(stops)
        self._num_prompt = num_prompt
        self._submitted_at = submitted_at
        self._first_token_at: float | None = None
        self._timing: Timing | None = None
        self._energy: Energy | None = None
        self._num_tokens = 0
        self._unsent: list[int] = []  # tokens whose text is not final yet
        self._unsent_logprobs: list[TokenLogprobs] = []  # of these, where they were asked for

    def push(
        self,
        reply: Reply,
        now: float,
        logprobs: Sequence[Sequence[tuple[int, float]]] = (),
        energy: Energy | None = None,
    ) -> Piece | None:
        """Returns the piece that a reply makes final, or None if it makes none.

        The piece has a finish reason if the answer is over: because the reply says so, or because a stop string came.

        Args:
            reply: The scheduler's.
            now: The clock's time.
            logprobs: For each token of the reply, (token, logarithm of its probability): its own, then the likeliest.
            energy: Of the request so far, where it is known.
        """
        self._energy = energy
        self._timing = reply.timing or self._timing
        if reply.tokens and self._first_token_at is None:
            self._first_token_at = now
        text = ""
        for index, token in enumerate(reply.tokens):
            self._num_tokens += 1
            self._unsent.append(token)
            if logprobs:
                self._unsent_logprobs.append(self._scored(logprobs[index]))
            part, is_stopped = self._until_stop(self._detokenizer.push(token))
            text += part
            if is_stopped:
                return self._piece(text, "stop", now)
        if reply.finish_reason is None:
            return self._piece(text)
        part, is_stopped = self._until_stop(self._detokenizer.flush())
        text += part if is_stopped else part + self._stops.flush()
        return self._piece(text, "stop" if is_stopped else reply.finish_reason, now)

    def _until_stop(self, text: str) -> tuple[str, bool]:
        return (text, False) if self._num_tokens < self._min_tokens else self._stops.push(text)

    def _piece(self, text: str, reason: FinishReason | None = None, now: float = 0.0) -> Piece | None:
        parsed = self._parsed(text, is_last=reason is not None)
        if reason is None and not (parsed.text or parsed.calls):
            return None
        if reason == "stop" and self._tool_calls is not None and self._tool_calls.has_calls:
            reason = "tool_calls"
        tokens, self._unsent = tuple(self._unsent), []
        logprobs, self._unsent_logprobs = tuple(self._unsent_logprobs), []
        usage = None if reason is None else self._usage(now)
        return Piece(parsed.text, tokens, reason, usage, logprobs, parsed.calls)

    def _parsed(self, text: str, *, is_last: bool) -> Parsed:
        """Returns what text and calls are final with some more text."""
        if self._tool_calls is None:
            return Parsed(text)
        parsed = self._tool_calls.push(text)
        if not is_last:
            return parsed
        rest = self._tool_calls.flush()
        return Parsed(parsed.text + rest.text, parsed.calls + rest.calls)

    def _scored(self, row: Sequence[tuple[int, float]]) -> TokenLogprobs:
        drawn, *likeliest = (TokenScore(token, self._tokenizer.token_bytes(token), logprob) for token, logprob in row)
        return TokenLogprobs(drawn, tuple(likeliest))

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
            cached_tokens=timing.cached_tokens if timing else 0,
            accepted_tokens=timing.accepted_tokens if timing else 0,
            rejected_tokens=timing.proposed_tokens - timing.accepted_tokens if timing else 0,
            energy=self._energy,
        )
