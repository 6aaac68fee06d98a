"""What comes next: the models that clients are about to ask for, declared by the bundle file or learned from requests.

Comes in: who asks for which model, and when. Goes out: forecasts, each with a chance, a number of turns and a time. A
client's requests are seen as turns, runs of requests for one model; what is foretold is the model of the next turn.

- **Declared.** A workflow is a cycle: after its last model comes its first. A client is at the place of a workflow
  where the models before agree longest with its last turns.
- **Learned.** Counts of what followed the last turn, the last two, and so on to four: a Markov chain whose prior is the
  chain of one order less. It needs four equal turns before it says anything. Loops in which some models take part
  several times (an embedding before each of four chat models) are told apart by the longer contexts.

A declaration counts like a few observations, so a workflow that nobody follows falls silent. That a client never comes
back is an observation too. Only what is clearly likelier than not is said, for a transfer for nothing takes the link
from others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = ["Forecast", "LookAhead"]

_Context: TypeAlias = tuple[int, ...] | tuple[str, ...]  # places in workflows, or the last turns

_MIN_CHANCE = 0.6  # less is not said: half would break even, and few observations err
_DECLARED_WEIGHT = 4.0  # observations that a declaration counts for
# Observations that those of one turn less count for, for one turn (of something else), two, three and four
_PRIOR_WEIGHTS = (2.0, 8.0, 12.0, 12.0)
_ALWAYS_COUNTED = 2  # turns; longer contexts are seen too seldom to be believed unless nothing contradicts them
_MAX_CONTEXTS = 4096  # of which the counts are kept; the oldest is forgotten first
_MAX_COUNT = 64.0  # observations of a context; then all are halved, so that the old ones fade
_MAX_STEPS = 8  # turns ahead
_MAX_CLIENTS = 64  # remembered at once
_MAX_HISTORY = 16  # turns of a client
_PATIENCE = 4.0  # times the usual seconds until the next turn, after which it is not waited for any longer
_PATIENCE_SECONDS = (10.0, 60.0)  # least; where the usual is not known
_SESSION_SECONDS = 600.0  # a client that was away for longer begins anew
_MAX_RUN = 4  # requests of a turn that are told apart by their place
_RUN_WEIGHT = 2.0  # observations of a place in a turn that those of the model count for
_GAP_RATE = 0.25  # of the newest gap in the moving average
_MAX_UNREAD = 128  # requests that are learned from when somebody asks


@dataclass(frozen=True)
class Forecast:
    """A model that is about to be asked for."""

    model: str
    chance: float  # that it is, and at this turn
    steps: int  # turns ahead; 1 is next
    at_seconds: float  # when, by the usual gaps; as soon as can be where none is known
    after: str = ""  # the model of the turn that is under way
    leave_chance: float = 1.0  # that the client's next request is for another model than that one
    stay_seconds: float = 0.0  # usual ones from its request until the turn after; 0 where none are known


@dataclass
class _Client:
    turns: list[str] = field(default_factory=list[str])  # models, the latest last, none twice in a row
    seen_at: float = 0.0  # its latest request
    deadline: float = 0.0  # until which its next turn is waited for
    contexts: list[_Context] = field(default_factory=list[_Context])  # that its next turn will be counted in
    forecasts: list[Forecast] | None = (
        None  # None: to be made when somebody asks; the deadline is the earliest till then
    )
    was_given_up: bool = False
    num_requests: int = 0  # of the turn that is under way


@dataclass
class _Counts:
    """What followed a context."""

    of: dict[str | None, float] = field(default_factory=dict[str | None, float])  # None: nothing did
    total: float = 0.0
    likeliest: str | None = None

    def add(self, model: str | None, amount: float) -> None:
        """Counts what followed, or takes it back."""
        before = self.of.get(model, 0.0)
        self.of[model] = max(0.0, before + amount)
        self.total += self.of[model] - before
        if model is not None and (self.likeliest is None or self.of[model] > self.of[self.likeliest]):
            self.likeliest = model
        if self.total > _MAX_COUNT:
            self.of = {key: count / 2 for key, count in self.of.items()}
            self.total /= 2

    @property
    def is_unanimous(self) -> bool:
        """Whether it was always the same."""
        return self.likeliest is not None and self.of[self.likeliest] == self.total


@dataclass
class _Runs:
    """Whether requests for a model are followed by another one for it."""

    num_left: float = 0.0
    num_stayed: float = 0.0

    def add(self, has_left: bool) -> None:
        """Counts what the next request was."""
        self.num_left += has_left
        self.num_stayed += not has_left
        if self.num_left + self.num_stayed > _MAX_COUNT:
            self.num_left, self.num_stayed = self.num_left / 2, self.num_stayed / 2

    def leave_chance(self, prior: float, weight: float) -> float:
        """Returns the chance of another model, with a prior that counts for so many observations."""
        return (self.num_left + weight * prior) / (self.num_left + self.num_stayed + weight)


class LookAhead:
    """Foretells requests.

    Args:
        workflows: Declared cycles of models.
        max_steps: Turns ahead that are foretold at most; 0: none, only what comes is counted.
    """

    def __init__(self, workflows: Sequence[Sequence[str]] = (), *, max_steps: int = _MAX_STEPS) -> None:
        self._max_steps = max_steps
        self._cycles = _Cycles([cycle for cycle in map(_turns_of, workflows) if len(cycle) > 1])
        self._counts: dict[_Context, _Counts] = {}
        self._runs: dict[tuple[str, int], _Runs] = {}  # by model and number of its requests so far; 0: of any number
        self._gaps: dict[tuple[str, str], float] = {}  # usual seconds from one model's request to the next one's
        self._clients: dict[str, _Client] = {}  # least recently seen first
        self._nearest: list[Forecast] | None = None  # of all clients; None: to be made anew
        self._deadline = float("inf")  # the earliest of a client that is waited for
        self._unread: list[tuple[str, str, float]] = []  # requests since somebody last asked

    def observe(self, client: str, model: str, now: float) -> None:
        """Takes note of a request. While all models have room nobody asks, and only the latest are remembered.

        Args:
            client: Who asks; requests of clients that are not told apart are one client's.
            model: For which model.
            now: When.
        """
        self._unread.append((client, model, now))
        if len(self._unread) == 2 * _MAX_UNREAD:
            del self._unread[:_MAX_UNREAD]

    def forecasts(self, now: float) -> list[Forecast]:
        """Returns the models that are about to be asked for, the nearest first, each once."""
        for client, model, asked_at in self._unread:
            self._learn(client, model, asked_at)
        self._unread.clear()
        self._give_up(now)
        if self._nearest is None:
            self._nearest = self._merged()
        return self._nearest

    def _learn(self, client: str, model: str, now: float) -> None:
        self._give_up(now)
        state = self._clients.pop(client, None)
        if state is None or now - state.seen_at > _SESSION_SECONDS:
            state = _Client()
        self._clients[client] = state
        if state.was_given_up:  # it was only late
            self._count(state, None, -1.0)
        if state.turns:
            self._count_run(state, state.turns[-1] != model)
        if not state.turns or state.turns[-1] != model:
            self._turn(state, model, now)
            state.num_requests = 0
        state.num_requests += 1
        state.seen_at = now
        state.forecasts = self._nearest = None
        state.deadline, state.was_given_up = now + _PATIENCE_SECONDS[0], False
        self._deadline = min(self._deadline, state.deadline)
        while len(self._clients) > _MAX_CLIENTS:
            self._end(self._clients.pop(next(iter(self._clients))))

    def _forecasts_of(self, state: _Client) -> list[Forecast]:
        if state.forecasts is None:
            state.forecasts = list(self._chain(state, state.seen_at))
            state.deadline = state.seen_at + self._patience(state, state.forecasts)
        return state.forecasts

    def _merged(self) -> list[Forecast]:
        nearest: dict[str, Forecast] = {}
        for state in self._clients.values():
            for forecast in self._forecasts_of(state):
                known = nearest.get(forecast.model)
                if known is None or _rank(forecast) < _rank(known):
                    nearest[forecast.model] = forecast
        return sorted(nearest.values(), key=_rank)

    def _turn(self, state: _Client, model: str, now: float) -> None:
        """Counts a client's turn to another model."""
        self._count(state, model, 1.0)
        if state.turns:
            edge, gap = (state.turns[-1], model), now - state.seen_at
            self._gaps[edge] = (1 - _GAP_RATE) * self._gaps.get(edge, gap) + _GAP_RATE * gap
        state.turns = [*state.turns[1 - _MAX_HISTORY :], model]
        state.contexts = self._contexts(state.turns)

    def _give_up(self, now: float) -> None:
        """Stops waiting for clients that should have been back by now."""
        if now <= self._deadline:
            return
        for state in self._clients.values():
            if now > state.deadline and not state.was_given_up:
                self._forecasts_of(state)
                if now > state.deadline:
                    self._end(state)
        self._deadline = min((s.deadline for s in self._clients.values() if not s.was_given_up), default=float("inf"))

    def _end(self, state: _Client) -> None:
        if not state.was_given_up:
            self._count(state, None, 1.0)
        state.was_given_up, state.forecasts, self._nearest = True, [], None

    def _count(self, state: _Client, model: str | None, amount: float) -> None:
        for context in state.contexts:
            self._counts.setdefault(context, _Counts()).add(model, amount)
        while len(self._counts) > _MAX_CONTEXTS:
            del self._counts[next(iter(self._counts))]

    def _count_run(self, state: _Client, has_left: bool) -> None:
        for place in (0, min(state.num_requests, _MAX_RUN)):
            self._runs.setdefault((state.turns[-1], place), _Runs()).add(has_left)

    def _leave_chance(self, state: _Client) -> float:
        """Returns the chance that a client's next request begins a turn; 1 until it is known to repeat requests."""
        model, unknown = state.turns[-1], _Runs()
        of_any = self._runs.get((model, 0), unknown).leave_chance(1.0, 1.0)
        return self._runs.get((model, min(state.num_requests, _MAX_RUN)), unknown).leave_chance(of_any, _RUN_WEIGHT)

    def _seen(self, context: _Context) -> _Counts:
        return self._counts.get(context) or _Counts()

    def _contexts(self, turns: Sequence[str]) -> list[_Context]:
        """Returns what the turn after these is counted in."""
        places = self._cycles.places(turns)
        return [*([places] if places else ()), *reversed(_endings(turns))]

    def _next(self, turns: Sequence[str]) -> tuple[str, float] | None:
        """Returns the likeliest model of the turn after these, and its chance, if that is above a half."""
        places = self._cycles.places(turns)
        if places:
            following = self._cycles.following(places)
            counts = self._seen(places)
            chances = {
                model: _mixed(counts, model, following.count(model) / len(following), _DECLARED_WEIGHT)
                for model in (*following, counts.likeliest)
                if model is not None
            }
            return max(chances.items(), key=_by_chance)
        seen = [self._seen(ending) for ending in _endings(turns)]
        best: tuple[str, float] | None = None
        for model in dict.fromkeys(counts.likeliest for counts in seen):  # of one of them, what is above a half of all
            if model is not None:
                chance = 0.0
                for order, counts in enumerate(seen, 1):
                    if order <= _ALWAYS_COUNTED or counts.is_unanimous:
                        chance = _mixed(counts, model, chance, _PRIOR_WEIGHTS[order - 1])
                best = max(best or (model, chance), (model, chance), key=_by_chance)
        return best

    def _chain(self, state: _Client, now: float) -> Iterator[Forecast]:
        """Yields what a client is about to ask for, turn by turn, until it is all too unsure or known already."""
        turns, chance, at = list(state.turns), 1.0, now
        seen: set[str] = set()  # the model of the turn under way is idle after it, and may be wanted before others
        following = self._next(turns)
        for steps in range(1, self._max_steps + 1):
            if following is None or chance * following[1] <= _MIN_CHANCE:
                return
            model, chance = following[0], chance * following[1]
            at += self._gaps.get((turns[-1], model), 0.0)
            turns.append(model)
            following = self._next(turns)
            if model not in seen:
                stay = 0.0 if following is None else self._gaps.get((model, following[0]), 0.0)
                yield Forecast(model, chance, steps, at, state.turns[-1], self._leave_chance(state), stay)
            seen.add(model)

    def _patience(self, state: _Client, forecasts: Sequence[Forecast]) -> float:
        least, unknown = _PATIENCE_SECONDS
        edge = (state.turns[-1], forecasts[0].model) if forecasts else None
        gap = None if edge is None else self._gaps.get(edge)
        return unknown if gap is None else max(least, _PATIENCE * gap)


class _Cycles:
    """Declared workflows, and where in them a client is."""

    def __init__(self, cycles: Sequence[Sequence[str]]) -> None:
        self._cycles = cycles
        self._places = [(cycle, place) for cycle in range(len(cycles)) for place in range(len(cycles[cycle]))]

    def places(self, turns: Sequence[str]) -> tuple[int, ...]:
        """Returns the places whose preceding models agree longest with the last turns; none if the last one is nowhere.

        A client that has only begun is where a workflow begins, if that is one of the places.
        """
        if not self._places:
            return ()
        agreed = {place: self._agreement(place, turns) for place in range(len(self._places))}
        longest = max(agreed.values(), default=0)
        if longest == 0:
            return ()
        best = [place for place, length in agreed.items() if length == longest]
        first = [place for place in best if self._places[place][1] == longest - 1]
        return tuple(first or best)

    def following(self, places: Sequence[int]) -> list[str]:
        """Returns the models after these places."""
        chosen = [self._places[place] for place in places]
        return [self._cycles[cycle][(place + 1) % len(self._cycles[cycle])] for cycle, place in chosen]

    def _agreement(self, place: int, turns: Sequence[str]) -> int:
        cycle, end = self._cycles[self._places[place][0]], self._places[place][1]
        length = 0
        while length < min(len(turns), len(cycle)) and turns[-1 - length] == cycle[(end - length) % len(cycle)]:
            length += 1
        return length


def _turns_of(workflow: Sequence[str]) -> list[str]:
    """Returns a workflow without models twice in a row, the last and the first one included."""
    turns = [model for index, model in enumerate(workflow) if index == 0 or workflow[index - 1] != model]
    return turns[:-1] if len(turns) > 1 and turns[0] == turns[-1] else turns


def _endings(turns: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the last turn, the last two, and so on, as far as they are counted."""
    return [tuple(turns[-length:]) for length in range(1, min(len(turns), len(_PRIOR_WEIGHTS)) + 1)]


def _mixed(counts: _Counts, model: str, prior: float, weight: float) -> float:
    """Returns a model's chance by counts and a prior that counts for so many observations."""
    return (counts.of.get(model, 0.0) + weight * prior) / (counts.total + weight)


def _by_chance(item: tuple[str, float]) -> tuple[float, str]:
    return item[1], item[0]


def _rank(forecast: Forecast) -> tuple[int, float, float, str]:
    return forecast.steps, -forecast.chance, forecast.at_seconds, forecast.model
