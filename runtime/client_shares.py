"""Who of several clients goes first: the one that a model has computed the fewest tokens for.

A virtual token counter for each client, as in "Fairness in Serving Large Language Models" (Sheng et al., 2024). A
client that comes, or comes back, starts from the clock: what each client would have got if all that were there had
shared alike. The clock goes on with every token, so that clients who come later pass nobody over for ever.
"""

from __future__ import annotations

from collections import Counter

__all__ = ["ClientShares"]

_KEPT_CLIENTS = 1000  # counters of clients who have left, before those that the clock has passed are dropped


class ClientShares:
    """The tokens that one model has computed for each client."""

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._num_requests: Counter[str] = Counter()  # under way, by client
        self._clock = 0.0

    @property
    def num_clients(self) -> int:
        """Number of clients with requests under way."""
        return len(self._num_requests)

    def served(self, client: str) -> float:
        """Returns the counter of a client with requests under way."""
        return self._served[client]

    def join(self, client: str) -> None:
        """Counts a request that has come in."""
        if not self._num_requests[client]:
            self._served[client] = max(self._served.get(client, 0.0), self._clock)
        self._num_requests[client] += 1

    def leave(self, client: str) -> None:
        """Counts a request that is over."""
        self._num_requests[client] -= 1
        if not self._num_requests[client]:
            del self._num_requests[client]
        if len(self._served) > len(self._num_requests) + _KEPT_CLIENTS:
            self._served = {
                name: tokens
                for name, tokens in self._served.items()
                if name in self._num_requests or tokens > self._clock
            }

    def charge(self, client: str, num_tokens: int) -> None:
        """Counts tokens of a client with requests under way."""
        self._served[client] += num_tokens
        self._clock += num_tokens / len(self._num_requests)
