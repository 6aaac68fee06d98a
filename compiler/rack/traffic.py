"""How often each model of a bundle is asked for: rates from the bundle file, or from a trace of arrivals.

A trace is a CSV file with a column `timestamp` (ISO 8601, or seconds) and a column `model`. Names that are no model's
are those of the copies, in the order in which they first come, of the one model that has copies.
"""

from __future__ import annotations

import csv
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from ...errors import ConfigurationError
from ..bundle.spec import BundleSpec

__all__ = ["Arrival", "Traffic", "read_traffic"]

Copy = tuple[str, int]  # model, and number of the copy from 0


@dataclass(frozen=True)
class Arrival:
    """A request of a trace."""

    seconds: float  # after the first one
    model: str
    copy: int


@dataclass(frozen=True)
class Traffic:
    """Requests a second."""

    kind: Literal["assumed", "rates", "trace"]
    rates: Mapping[str, float]  # by model, for each of its copies that is not in `of_copies`
    of_copies: Mapping[Copy, float]  # of single copies
    arrivals: tuple[Arrival, ...] = ()  # of a trace

    def rate(self, model: str, copy: int) -> float:
        """Returns the requests a second for one copy."""
        return self.of_copies.get((model, copy), self.rates.get(model, 0.0))


def read_traffic(spec: BundleSpec, base: Path) -> Traffic:
    """Returns what a bundle file says of its traffic.

    A rate of a model is for all of its copies together. Without traffic one request a second is assumed, for any
    routable model or copy as likely as for any other.

    Raises:
        ConfigurationError: if a rate is none, or the trace cannot be read or names what the bundle has not.
    """
    if spec.traffic is None:
        copies = {name: model.copies for name, model in spec.models.items() if model.routable}
        each = 1.0 / max(sum(copies.values()), 1)
        return Traffic("assumed", dict.fromkeys(copies, each), {})
    if isinstance(spec.traffic, str):
        return _from_trace(spec, base / Path(spec.traffic).expanduser())
    return _from_rates(spec, spec.traffic)


def _from_rates(spec: BundleSpec, given: Mapping[str, float]) -> Traffic:
    rates: dict[str, float] = defaultdict(float)
    of_copies: dict[Copy, float] = {}
    for name, rate in given.items():
        if not (math.isfinite(rate) and rate >= 0):
            raise ConfigurationError(f"traffic of {name!r} is {rate}; write a rate such as 2/s or 30/min")
        model, copy = _named(spec, name)
        if copy is None:
            rates[model] += rate / spec.models[model].copies
        else:
            of_copies[model, copy] = rate
    return Traffic("rates", rates, of_copies)


def _from_trace(spec: BundleSpec, path: Path) -> Traffic:
    arrivals = tuple(_arrivals(spec, path))
    duration = arrivals[-1].seconds if arrivals else 0.0
    if duration <= 0:
        raise ConfigurationError(f"trace {path} has no two requests at different times, so no rates")
    counts = Counter((each.model, each.copy) for each in arrivals)
    return Traffic("trace", {}, {copy: count / duration for copy, count in counts.items()}, arrivals)


def _arrivals(spec: BundleSpec, path: Path) -> Iterator[Arrival]:
    """Yields the requests of a trace in the order of time."""
    rows = sorted(_rows(path), key=lambda row: row[0])
    first = rows[0][0] if rows else 0.0
    copies: dict[str, Copy] = {}
    for seconds, name in rows:
        if name not in copies:
            copies[name] = _copy_of(spec, name, copies.values(), path)
        yield Arrival(seconds - first, *copies[name])


def _rows(path: Path) -> Iterator[tuple[float, str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not {"timestamp", "model"} <= set(reader.fieldnames or ()):
                raise ConfigurationError(f"trace {path} has no columns `timestamp` and `model` in its first line")
            for number, row in enumerate(reader, start=2):
                yield _seconds(row["timestamp"], f"line {number} of {path}"), row["model"] or ""
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"cannot read trace {path}: {reason}") from None


def _seconds(text: str | None, where: str) -> float:
    for read in (float, lambda text: datetime.fromisoformat(text).timestamp()):
        try:
            seconds = read(text or "")
        except ValueError:
            continue
        if math.isfinite(seconds):
            return seconds
    raise ConfigurationError(f"{where}: {text!r} is no time; write ISO 8601 or seconds")


def _named(spec: BundleSpec, name: str) -> tuple[str, int | None]:
    """Returns the model of a name or alias, and the copy if the name is that of one; the spec has checked names."""
    for model, about in spec.models.items():
        if name == model or name in about.aliases:
            return model, None
    copy = spec.copy_named(name)
    if copy is None:
        raise ConfigurationError(f"{name!r} is no model of this bundle; models: {', '.join(spec.models)}")
    return copy


def _copy_of(spec: BundleSpec, name: str, taken: Iterable[Copy], path: Path) -> Copy:
    """Returns what a name of a trace stands for."""
    many = [model for model, about in spec.models.items() if about.copies > 1]
    try:
        model, copy = _named(spec, name)
    except ConfigurationError:
        if len(many) != 1:
            raise ConfigurationError(
                f"trace {path} asks for {name!r}, which is no model of this bundle; models: {', '.join(spec.models)}"
            ) from None
        model, copy = many[0], None
    if copy is not None or model not in many:
        return model, copy or 0
    used = {number for other, number in taken if other == model}
    number = next(number for number in range(len(used) + 1) if number not in used)
    if number >= spec.models[model].copies:
        raise ConfigurationError(
            f"trace {path} asks for more models than {model!r} has copies ({spec.models[model].copies}); raise `copies`"
        )
    return model, number
