"""When which model is asked for how many tokens: closed loops, Poisson processes and traces.

Comes in: what a request looks like, and a rate or the file of a trace. Goes out: arrivals in the order of time, the
first of a trace at 0. The same seed, the same arrivals.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ...errors import ConfigurationError

__all__ = ["Arrival", "Mix", "closed_loop", "poisson", "read_trace"]

_INPUT = "contexttokens"
_OUTPUT = "generatedtokens"
_BLOCK_TOKENS = 512  # of a prompt, that one of Mooncake's hash ids stands for


@dataclass(frozen=True)
class Arrival:
    """A request to be sent."""

    seconds: float  # after the start; in a closed loop 0, as requests wait for each other
    model: str
    input_tokens: int
    output_tokens: int  # at most
    blocks: tuple[int, ...] = ()  # ids of the prompt's pieces, in order: equal ids, equal text; () if nothing is shared
    block_tokens: float = 0.0  # of each piece

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yields the prompt's pieces, each an id and a number of tokens."""
        begin = 0
        for number, block in enumerate(self.blocks, start=1):
            end = min(self.input_tokens, round(number * self.block_tokens))
            if end > begin:
                yield block, end - begin
            begin = max(begin, end)


@dataclass(frozen=True)
class Mix:
    """What is asked for, where a trace does not say it."""

    models: Sequence[str]  # in turn
    input_tokens: int
    output_tokens: int
    scale: float = 1.0  # of both, also of a trace's
    max_input_tokens: int | None = None  # longer prompts are cut, after they were scaled
    max_output_tokens: int | None = None

    def arrival(
        self,
        number: int,
        seconds: float,
        *,
        model: str | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        blocks: tuple[int, ...] = (),
    ) -> Arrival:
        """Returns request `number`, which has at least one token each way."""
        return Arrival(
            seconds,
            self.models[number % len(self.models)] if model is None else model,
            self._scaled(self.input_tokens if input_tokens is None else input_tokens, self.max_input_tokens),
            self._scaled(self.output_tokens if output_tokens is None else output_tokens, self.max_output_tokens),
            blocks,
            _BLOCK_TOKENS * self.scale if blocks else 0.0,
        )

    def _scaled(self, num_tokens: int, most: int | None) -> int:
        scaled = max(1, round(num_tokens * self.scale))
        return scaled if most is None else min(scaled, most)


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


@dataclass(frozen=True)
class _Row:
    """A request of a trace, as the file has it."""

    seconds: float
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    blocks: tuple[int, ...] = ()


def read_trace(path: Path, mix: Mix, *, speed: float = 1.0, num_names: int | None = None) -> list[Arrival]:
    """Returns the requests of a trace in the order of time.

    The file is CSV with a column `timestamp` (ISO 8601, or seconds) and either `model` or both `ContextTokens` and
    `GeneratedTokens`, as in the Azure traces, or all of them; case does not matter. Or it is JSON lines as Mooncake's:
    `timestamp` in milliseconds, `input_length`, `output_length`, and `hash_ids` of the prompt's pieces of 512 tokens.
    A name in the trace that is none of the mix's models stands for one of them, in turn as the names first come.

    Args:
        path: The trace.
        mix: What the trace leaves out, and the scale of its lengths.
        speed: How many times as fast as it happened.
        num_names: Only so many names, the most used ones, are kept; they stand for the models in turn as they are used,
            the most used name for the first model. All other requests are left out.

    Raises:
        ConfigurationError: if it cannot be read.
    """
    rows = sorted(_rows(path), key=lambda row: row.seconds)
    if num_names is not None:
        used = [name for name, _ in Counter(row.model for row in rows if row.model is not None).most_common(num_names)]
        rows = [row for row in rows if row.model in used]
        stands_for = dict(zip(used, itertools.cycle(mix.models)))
    else:
        stands_for = {model: model for model in mix.models}
    if not rows:
        raise ConfigurationError(f"trace {path} has no requests" + (" with names of models" if num_names else ""))
    unnamed = itertools.cycle(mix.models)
    arrivals: list[Arrival] = []
    for number, row in enumerate(rows):
        if row.model is not None and row.model not in stands_for:
            stands_for[row.model] = next(unnamed)
        arrivals.append(
            mix.arrival(
                number,
                (row.seconds - rows[0].seconds) / speed,
                model=None if row.model is None else stands_for[row.model],
                input_tokens=row.input_tokens,
                output_tokens=row.output_tokens,
                blocks=row.blocks,
            )
        )
    return arrivals


def _rows(path: Path) -> Iterator[_Row]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            is_json = file.read(1) == "{"
            file.seek(0)
            yield from _json_rows(file, path) if is_json else _csv_rows(file, path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"cannot read trace {path}: {reason}") from None


def _csv_rows(file: Iterable[str], path: Path) -> Iterator[_Row]:
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
        seconds = _seconds(fields["timestamp"], f"line {number} of {path}")
        tokens = [_tokens(fields.get(name), path) for name in (_INPUT, _OUTPUT)]
        yield _Row(seconds, fields.get("model"), input_tokens=tokens[0], output_tokens=tokens[1])


def _json_rows(file: Iterable[str], path: Path) -> Iterator[_Row]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        try:
            fields = json.loads(line)
        except ValueError:
            raise ConfigurationError(f"{where} is not JSON") from None
        if not isinstance(fields, dict) or not {"timestamp", "input_length", "output_length"} <= set(fields):
            raise ConfigurationError(f"{where} has no `timestamp`, `input_length` and `output_length`")
        blocks, model = fields.get("hash_ids") or [], fields.get("model")
        if not isinstance(blocks, list) or not all(type(block) is int for block in blocks):
            raise ConfigurationError(f"{where}: `hash_ids` is no list of whole numbers")
        yield _Row(
            _seconds(str(fields["timestamp"]), where) / 1000,
            None if model is None else str(model),
            _tokens(str(fields["input_length"]), path),
            _tokens(str(fields["output_length"]), path),
            tuple(blocks),
        )


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
