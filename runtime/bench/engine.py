"""The rates of a bundle's engine, without a server: decode and prefill, against what memory allows.

Decode is measured while all of a number of answers are under way: from the moment when the last of them has its first
token until the first of them ends. A decode step reads all weights once, however many answers it goes on with; so it
takes at least as long as reading so many bytes takes, measured in the same process. The share of that roofline which is
reached leaves out the KV cache, and of a mixture of experts counts all experts. Prefill is the prompt's tokens over the
time to the first token. Rates are medians; the first run of each kind does not count.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ...compiler.bundle.manifest import ModelEntry
from ...compiler.text import Table, format_bytes, format_seconds
from ...errors import ConfigurationError
from ..engine import Runtime
from ..request import SamplingParams, Usage
from .prompts import random_prompt

__all__ = ["BATCHES", "PROMPTS", "EngineRates", "Rate", "measure_engine"]

BATCHES = (1, 4, 8, 16)
PROMPTS = (128, 512, 2048)  # tokens
_PROMPT_WORDS = 8  # of a decode run
_MOST_TOKENS = 64  # of a decode run's answer
_FEWEST_TOKENS = 8  # that say something about a rate
_MOST_READ_BYTES = 1 << 30  # more does not make the bandwidth another one


@dataclass(frozen=True)
class Rate:
    """One kind of step."""

    size: int  # answers at once of decode, tokens of a prompt
    tokens_per_s: float  # median
    least: float
    most: float
    joules_per_token: float | None = None  # median; of decode with the short prompt's share; None: not known


@dataclass(frozen=True)
class _Measured:
    """One run of a kind of step."""

    tokens_per_s: float
    joules_per_token: float | None


@dataclass(frozen=True)
class EngineRates:
    """What was measured of a model."""

    model: str
    weights_bytes: int
    read_bytes_per_s: float
    decode: tuple[Rate, ...]
    prefill: tuple[Rate, ...]
    left_out: tuple[str, ...]  # what the bundle does not allow, or was not measured, and why

    def roofline_share(self, rate: Rate) -> float:
        """Returns the time that reading the weights takes over the time that a decode step took."""
        return self.weights_bytes / self.read_bytes_per_s / (rate.size / rate.tokens_per_s)

    def to_json(self) -> dict[str, object]:
        """Returns all rates; of decode with the step's seconds and its share of the roofline."""
        return {
            "model": self.model,
            "weights_bytes": self.weights_bytes,
            "read_bytes_per_s": self.read_bytes_per_s,
            "decode": [
                {
                    **asdict(rate),
                    "step_seconds": rate.size / rate.tokens_per_s,
                    "roofline_share": self.roofline_share(rate),
                }
                for rate in self.decode
            ],
            "prefill": [asdict(rate) for rate in self.prefill],
            "left_out": list(self.left_out),
        }

    def tables(self) -> list[Table]:
        """Returns a table of decode and one of prefill."""
        decode = Table(
            f"decode of {self.model}, {format_bytes(self.weights_bytes)} of weights, "
            f"memory read at {format_bytes(self.read_bytes_per_s)}/s",
            ("at once", "tokens/s", "least", "most", "J/token", "step", "of roofline"),
            tuple(
                (*_cells(rate), format_seconds(rate.size / rate.tokens_per_s), f"{self.roofline_share(rate):.1%}")
                for rate in self.decode
            ),
        )
        rows = tuple(map(_cells, self.prefill))
        prefill = Table(
            "prefill", ("tokens", "tokens/s", "least", "most", "J/token"), rows, note="\n".join(self.left_out)
        )
        return [decode, prefill]


def measure_engine(
    runtime: Runtime,
    model: str | None = None,
    *,
    num_runs: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> EngineRates:
    """Measures a decoder of a runtime that does nothing else.

    Args:
        runtime: It stays open.
        model: Name or alias; by default the first decoder of the bundle.
        num_runs: Of which each rate is the median.
        progress: Told how many of the measurements are done.

    Raises:
        ModelNotFoundError: if there is no such model.
        ConfigurationError: if it is none that generates.
    """
    entry = _decoder(runtime, model)
    batches = [size for size in BATCHES if size <= entry.batch and _answer_tokens(entry, size) >= _FEWEST_TOKENS]
    prompts = [size for size in PROMPTS if size < _room(entry)]
    report = progress or (lambda done, total: None)
    num_steps = len(batches) + len(prompts) + 2
    bandwidths = [_read_bandwidth(entry.weights_bytes, num_runs)]
    report(1, num_steps)
    decode: list[Rate] = []
    for size in batches:
        rates = [asyncio.run(_decode_rate(runtime, entry, size, seed)) for seed in range(num_runs + 1)]
        decode += _rate(size, rates[1:])
        report(1 + len(decode), num_steps)
    prefill: list[Rate] = []
    for size in prompts:
        prefill += _rate(size, [_prefill_rate(runtime, entry, size, seed) for seed in range(num_runs + 1)][1:])
        report(1 + len(batches) + len(prefill), num_steps)
    bandwidths.append(_read_bandwidth(entry.weights_bytes, num_runs))
    report(num_steps, num_steps)
    left_out = [
        *(f"decode, {size} at once: not allowed by the bundle" for size in BATCHES if size not in batches),
        *(
            f"decode, {size} at once: answers ended too soon"
            for size in batches
            if size not in [rate.size for rate in decode]
        ),
        *(f"prefill of {size} tokens: longer than the bundle allows" for size in PROMPTS if size not in prompts),
    ]
    return EngineRates(entry.name, entry.weights_bytes, max(bandwidths), tuple(decode), tuple(prefill), tuple(left_out))


def _decoder(runtime: Runtime, model: str | None) -> ModelEntry:
    entries = runtime.bundle.manifest.models
    decoders = [entry for entry in entries if entry.kv is not None]
    if model is not None:
        name = runtime.resolve(model)
        decoders = [entry for entry in decoders if entry.name == name]
    if not decoders:
        which = "no model of this bundle" if model is None else f"model {model!r} is none that"
        raise ConfigurationError(f"{which} generates text, which is what is measured")
    return decoders[0]


def _room(entry: ModelEntry) -> int:
    """Returns the most tokens that one sequence may have."""
    assert entry.kv is not None, entry.name
    return min(entry.sequence, entry.kv.num_blocks * entry.kv.block_tokens)


def _answer_tokens(entry: ModelEntry, num_at_once: int) -> int:
    """Returns how many tokens each of so many answers may have, so that none is preempted."""
    assert entry.kv is not None, entry.name
    room = min(entry.sequence, entry.kv.num_blocks // num_at_once * entry.kv.block_tokens)
    # A word of the prompt may be several tokens of a small vocabulary: it gets half of the room.
    return min(_MOST_TOKENS, room // 2)


async def _decode_rate(runtime: Runtime, entry: ModelEntry, num_at_once: int, seed: int) -> _Measured | None:
    """Returns the tokens a second while so many answers are under way; None if they ended too soon."""
    generator = random.Random(seed)
    params = SamplingParams(max_tokens=_answer_tokens(entry, num_at_once), temperature=0, ignore_eos=True)

    usages: list[Usage] = []

    async def times() -> list[float]:
        """Returns when each token came."""
        prompt = runtime.tokenize(entry.name, random_prompt(_PROMPT_WORDS, generator))
        prompt = prompt[: _room(entry) // (2 * num_at_once)]
        came: list[float] = []
        async for piece in runtime.generate_async(entry.name, prompt, params):
            came += [time.perf_counter()] * len(piece.token_ids)
            usages.extend([piece.usage] if piece.usage else [])
        return came

    answers = await asyncio.gather(*(times() for _ in range(num_at_once)))
    rate = _overlap_rate(answers)
    return None if rate is None else _Measured(rate, _joules_of_a_token(usages, sum(map(len, answers))))


def _overlap_rate(answers: Sequence[Sequence[float]]) -> float | None:
    """Returns the tokens a second between the last first and the first last token of some answers."""
    if not all(answers):
        return None
    begin, end = max(times[0] for times in answers), min(times[-1] for times in answers)
    num_tokens = sum(begin < moment <= end for times in answers for moment in times)
    if end <= begin or num_tokens < len(answers) * _FEWEST_TOKENS // 2:
        return None
    return num_tokens / (end - begin)


def _prefill_rate(runtime: Runtime, entry: ModelEntry, num_tokens: int, seed: int) -> _Measured:
    generator = np.random.default_rng((num_tokens, seed))
    prompt = generator.integers(entry.config.vocab_size, size=num_tokens).tolist()
    usage = runtime.complete(entry.name, prompt, SamplingParams(max_tokens=1, temperature=0)).usage
    return _Measured(num_tokens / usage.time_to_first_token_seconds, _joules_of_a_token([usage], num_tokens))


def _joules_of_a_token(usages: Sequence[Usage], num_tokens: int) -> float | None:
    joules = [usage.energy.joules for usage in usages if usage.energy is not None]
    return sum(joules) / num_tokens if joules else None


def _rate(size: int, runs: Sequence[_Measured | None]) -> list[Rate]:
    known = [run.tokens_per_s for run in runs if run is not None]
    joules = [run.joules_per_token for run in runs if run is not None and run.joules_per_token is not None]
    if not known:
        return []
    return [Rate(size, statistics.median(known), min(known), max(known), statistics.median(joules) if joules else None)]


def _read_bandwidth(num_bytes: int, num_runs: int) -> float:
    """Returns the bytes a second at which so many bytes are read, by the faster of numpy and a product with one row."""
    values = np.ones((max(min(num_bytes, _MOST_READ_BYTES) // 4096, 1), 1024), np.float32)
    weights, row = jnp.asarray(values), jnp.ones((1024,), jnp.float32)
    product = jax.jit(lambda w, x: w @ x)
    best = 0.0
    for read in (lambda: values.max(), lambda: jax.block_until_ready(product(weights, row))):
        seconds: list[float] = []
        for _ in range(num_runs + 1):  # the first compiles
            began = time.perf_counter()
            read()
            seconds.append(time.perf_counter() - began)
        best = max(best, values.nbytes / statistics.median(seconds[1:]))
    return best


def _cells(rate: Rate) -> tuple[str, ...]:
    joules = "-" if rate.joules_per_token is None else f"{rate.joules_per_token:.3g}"
    return (str(rate.size), *(f"{value:.4g}" for value in (rate.tokens_per_s, rate.least, rate.most)), joules)
