"""When which model is asked for how many tokens: closed loops, Poisson processes and traces.

Comes in: what a request looks like, and a rate or a CSV file. Goes out: arrivals in the order of time, the first of a
trace at 0. The same seed, the same arrivals.
"""

from __future__ import annotations

import csv
import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ...errors import ConfigurationError

__all__ = ["Arrival", "Mix", "closed_loop", "poisson", "read_trace"]

_INPUT = "contexttokens"
_OUTPUT = "generatedtokens"


@dataclass(frozen=True)
class Arrival:
    """A request to be sent."""

    seconds: float  # after the start; in a closed loop 0, as requests wait for each other
    model: str
    input_tokens: int
    output_tokens: int  # at most


@dataclass(frozen=True)
class Mix:
    """What is asked for, where a trace does not say it."""

    models: Sequence[str]  # in turn
    input_tokens: int
    output_tokens: int
    scale: float = 1.0  # of both, also of a trace's

    def arrival(
        self,
        number: int,
        seconds: float,
        *,
        model: str | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> Arrival:
        """Returns request `number`, which has at least one token each way."""
        return Arrival(
            seconds,
            self.models[number % len(self.models)] if model is None else model,
            self._scaled(self.input_tokens if input_tokens is None else input_tokens),
            self._scaled(self.output_tokens if output_tokens is None else output_tokens),
        )

    def _scaled(self, num_tokens: int) -> int:
        return max(1, round(num_tokens * self.scale))


def closed_loop(mix: Mix) -> Iterator[Arrival]:
    """Yields requests without end, each of which may be sent at once."""
    return (mix.arrival(number, 0.0) for number in itertools.count())


def poisson(mix: Mix, rate: float, *, seed: int) -> Iterator[Arrival]:
    """Yields requests without end, `rate` a second on average, with exponential times between them."""
    generator = random.Random(seed)
    seconds = 0.0
    for number in itertools.count():
        seconds += generator.expovariate(rate)
        yield mix.arrival(number, seconds)


def read_trace(path: Path, mix: Mix, *, speed: float = 1.0) -> list[Arrival]:
    """Returns the requests of a trace in the order of time.

    The file is CSV with a column `timestamp` (ISO 8601, or seconds) and either `model` or both `ContextTokens` and
    `GeneratedTokens`, as in the Azure traces, or all of them; case does not matter. A name in the trace that is none of
    the mix's models stands for one of them, in turn as the names first come.

    Args:
        path: The trace.
        mix: What the trace leaves out, and the scale of its lengths.
        speed: How many times as fast as it happened.

    Raises:
        ConfigurationError: if it cannot be read.
    """
    rows = sorted(_rows(path), key=lambda row: row[0])
    if not rows:
        raise ConfigurationError(f"trace {path} has no requests")
    begin = rows[0][0]
    stands_for = {model: model for model in mix.models}
    unnamed = itertools.cycle(mix.models)
    arrivals: list[Arrival] = []
    for number, (seconds, fields) in enumerate(rows):
        name = fields.get("model")
        if name is not None and name not in stands_for:
            stands_for[name] = next(unnamed)
        arrivals.append(
            mix.arrival(
                number,
                (seconds - begin) / speed,
                model=None if name is None else stands_for[name],
                input_tokens=_tokens(fields.get(_INPUT), path),
                output_tokens=_tokens(fields.get(_OUTPUT), path),
            )
        )
    return arrivals


def _rows(path: Path) -> Iterator[tuple[float, Mapping[str, str]]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            heads = [head.strip().lower() for head in next(reader, [])]
            if "timestamp" not in heads or not ("model" in heads or {_INPUT, _OUTPUT} <= set(heads)):
                raise ConfigurationError(
                    f"trace {path} has no columns `timestamp` and `model`, or `timestamp`, `ContextTokens` and "
                    "`GeneratedTokens`, in its first line"
                )
            for number, cells in enumerate(reader, start=2):
                if len(cells) != len(heads):
                    raise ConfigurationError(f"line {number} of {path} has {len(cells)} cells, not {len(heads)}")
                fields = dict(zip(heads, cells, strict=True))
                yield _seconds(fields["timestamp"], f"line {number} of {path}"), fields
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"cannot read trace {path}: {reason}") from None


def _seconds(text: str, where: str) -> float:
    for read in (float, lambda text: datetime.fromisoformat(text).timestamp()):
        try:
            seconds = read(text)
        except (ValueError, OverflowError):
            continue
        if math.isfinite(seconds):
            return seconds
    raise ConfigurationError(f"{where}: {text!r} is no time; write ISO 8601 or seconds")


def _tokens(text: str | None, path: Path) -> int | None:
    if text is None:
        return None
    try:
        count = int(text)
    except ValueError:
        count = -1
    if count < 0:
        raise ConfigurationError(f"{text!r} in trace {path} is no number of tokens")
    return count
