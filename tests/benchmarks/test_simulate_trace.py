"""Simulated traces against real runs of the same traces on this machine.

Needs an otherwise idle machine for half an hour: a bundle of two models is made, with a budget for one of them. In each
round a target is calibrated with it; then it is served and asked over HTTP at three loads, by a server of its own for
each, for it learns from what it is asked; and the same requests are simulated. Both columns are printed, and for each
kind of step how many there were and what one took: where the numbers agree, decisions did, and what is left are
durations. What counts is the median of the rounds' errors: a machine's speed changes from minute to minute.

`PLAIT_TRACE=FILE` takes a trace of one's own, of any kind that `plait bench serve --trace` reads: its two most used
names stand for the models, its lengths are cut, and its time is scaled to the loads. `PLAIT_BUNDLE=DIR` takes a bundle
that an earlier run left there, or leaves it. `PLAIT_ROUNDS=N` does with fewer rounds than 5.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from benchmarks.timelines import comparison, read_spans, served_and_watched, spans

import plait
from plait.compiler.bundle.reader import Bundle
from plait.compiler.bundle.spec import BundleSpec
from plait.compiler.target import load_target
from plait.runtime.bench.arrivals import Arrival, Mix, read_trace
from plait.runtime.bench.client import Endpoint, Reply, ask, connect
from plait.runtime.bench.load import Load, Run, run_load
from plait.runtime.bench.measures import Bound
from plait.runtime.bench.prompts import prompt_of
from plait.runtime.bench.summary import Summary, summarize
from plait.runtime.events import Action, Event
from plait.runtime.simulation.machine import Machine, machine_of_bundle
from plait.runtime.simulation.replay import replay
from plait.runtime.simulation.report import report

MAX_BATCH = 4
MODEL = {"source": "smollm2-135m", "dtype": "bf16", "sequence": 256, "batch": MAX_BATCH, "kv_tokens": 1024}
NAMES = ("one", "two")
SPEC = {
    "bundle": "two",
    "target": "cpu-tiered",
    "budget": {"hbm": "360MiB", "ddr": "2GiB"},
    "models": dict.fromkeys(NAMES, MODEL),
}
COMMAND = str(Path(sys.executable).with_name("plait"))
LOADS = (0.5, 0.75, 1.0)  # requests, times what one after the other would take; steps of several take less
NUM_REQUESTS = 80
NUM_ROUNDS = int(os.environ.get("PLAIT_ROUNDS", "5"))
MOST_INPUT, MOST_OUTPUT = 96, 40  # tokens
CHANGE = 0.25  # probability that the next request is for the other model
KEPT = (0.65, 0.92)  # shares of requests, between which lies the one that keeps the bound on TTFT in the simulation
WARM_UP = (8, 40, 90)  # tokens of prompts: one for each program
LIMITS = {"goodput": 0.10, "ttft p50": 0.15, "ttft p95": 0.15, "switches": 0.05}
ENDPOINT = Endpoint("completions", ignores_eos=True)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fidelity")


@pytest.fixture(scope="module")
def bundle(directory: Path) -> Bundle:
    path = Path(os.environ.get("PLAIT_BUNDLE", directory / "two.plait"))
    return plait.load(path) if path.exists() else plait.bundle(BundleSpec.model_validate(SPEC), path, base=directory)


def calibrated(bundle: Bundle, directory: Path) -> Path:
    """Returns the target of this machine, with what serving the bundle takes now."""
    file = directory / "mine.toml"
    subprocess.run([COMMAND, "calibrate", "--bundle", str(bundle.path), "-o", str(file)], check=True)
    return file


def requests(number: int) -> list[Arrival]:
    """Requests that stay with a model for a while, a second apart on average; or the next ones of a trace."""
    if "PLAIT_TRACE" in os.environ:
        mix = Mix(NAMES, 64, 24, max_input_tokens=MOST_INPUT, max_output_tokens=MOST_OUTPUT)
        asked = read_trace(Path(os.environ["PLAIT_TRACE"]), mix, num_names=len(NAMES) if _names_models() else None)
        asked = asked[number * NUM_REQUESTS : (number + 1) * NUM_REQUESTS] or asked[:NUM_REQUESTS]
        apart = (asked[-1].seconds - asked[0].seconds) / len(asked)
        return [dataclasses.replace(each, seconds=(each.seconds - asked[0].seconds) / apart) for each in asked]
    draw = random.Random(number)
    found: list[Arrival] = []
    seconds, models = 0.0, list(NAMES)
    for _ in range(NUM_REQUESTS):
        seconds += draw.expovariate(1.0)
        if draw.random() < CHANGE:
            models.reverse()
        found.append(Arrival(seconds, models[0], draw.randint(8, MOST_INPUT), draw.randint(8, MOST_OUTPUT)))
    return found


def _names_models() -> bool:
    """Whether a trace says whom it asks."""
    with Path(os.environ["PLAIT_TRACE"]).open() as file:
        return "model" in file.readline().lower().split(",")


def at_rate(asked: Sequence[Arrival], rate: float) -> list[Arrival]:
    return [dataclasses.replace(each, seconds=each.seconds / rate) for each in asked]


def num_switches(url: str) -> float:
    """How often a server has made a model hot."""
    text = httpx.get(f"{url}/metrics", timeout=60).text
    lines = re.findall(r'^plait_switches_total\{.*destination="hbm".*\} (\S+)$', text, re.MULTILINE)
    return sum(map(float, lines))


async def run(url: str, asked: Sequence[Arrival]) -> tuple[Run, list[Arrival], float, float]:
    """Sends requests, as `plait bench serve` does, once every program has run: the first run of each takes longer.

    Returns:
        What came of them, the requests with as many tokens as the server counted, the number of switches, and when the
        first was sent.
    """
    generator = random.Random()
    counted: dict[Arrival, Arrival] = {}
    async with connect(url, ENDPOINT, None) as http:

        async def send(arrival: Arrival) -> Reply:
            reply = await ask(http, ENDPOINT, arrival.model, prompt_of(arrival, generator), arrival.output_tokens)
            counted[arrival] = dataclasses.replace(arrival, input_tokens=reply.input_tokens or 0)
            return reply

        for name, at_once in warm_ups():
            sizes = enumerate(WARM_UP * at_once)
            warm_up = [Arrival(float(number), name, size, 12) for number, size in sizes]
            await run_load(Load(warm_up, concurrency=at_once), send)
        before, began = num_switches(url), time.monotonic()
        found = await run_load(Load(asked), send)
    return found, [counted[each] for each in asked], num_switches(url) - before, began


def warm_ups() -> list[tuple[str, int]]:
    """Returns whom to ask first, and how many requests at once, until every program and every copy has run once."""
    return [*((name, at_once) for name in NAMES for at_once in (1, 2, MAX_BATCH)), *((name, 1) for name in NAMES)]


def warm_up() -> list[str]:
    """Returns the models of the requests that `run` sends first: a server learns from them, too."""
    return [name for name, at_once in warm_ups() for _ in range(len(WARM_UP) * at_once)]


def alone(machine: Machine) -> float:
    """Seconds of a request that nobody disturbs."""
    found = replay(machine, at_rate(requests(0), 0.01), warm_up=warm_up())
    return statistics.fmean(outcome.reply.end_seconds for outcome in found.run.outcomes)


def compared(real: Summary, simulated: Summary, switches: tuple[float, float]) -> Iterator[tuple[str, float, float]]:
    assert real.attainment is not None
    assert simulated.attainment is not None
    yield "goodput", real.attainment.goodput, simulated.attainment.goodput
    for metric in ("ttft", "tpot", "e2e"):
        one, other = real.latencies[metric], simulated.latencies[metric]
        assert one is not None
        assert other is not None
        yield f"{metric} p50", one.p50, other.p50
        yield f"{metric} p95", one.p95, other.p95
    yield "attainment", real.attainment.share, simulated.attainment.share
    yield "switches", *switches


def test_a_simulation_predicts_the_run(bundle: Bundle, directory: Path) -> None:
    errors: defaultdict[tuple[str, float], list[float]] = defaultdict(list)
    for _ in range(NUM_ROUNDS):
        target = calibrated(bundle, directory)
        machine = machine_of_bundle(bundle.manifest, load_target(target), bundle.manifest.budget)
        capacity = 1 / alone(machine)
        for number, load in enumerate(LOADS):
            print(f"\nload {load:.0%} of {capacity:.3g} requests/s{'':11}real  simulated  error")
            asked = at_rate(requests(number), load * capacity)
            for name, real, simulated in measured(bundle, target, machine, asked, directory / "spans.json"):
                error = simulated / real - 1 if real else 0.0
                errors[name, load].append(error)
                print(f"  {name:<28} {real:>9.4g} {simulated:>10.4g} {error:>+7.1%}")
    print(f"\nerrors, medians of {NUM_ROUNDS} [least, most]")
    for (name, load), found in errors.items():
        print(f"  {name:<12} at {load:<5.0%} {statistics.median(found):>+7.1%} [{min(found):+.1%}, {max(found):+.1%}]")
    medians = {(name, load): statistics.median(found) for (name, load), found in errors.items() if name in LIMITS}
    wrong = [
        f"{name} at {load:.0%}: {error:+.1%}" for (name, load), error in medians.items() if abs(error) > LIMITS[name]
    ]
    assert not wrong, wrong


def bound_of(ttft_seconds: Sequence[float]) -> Bound:
    """Returns the bound that tells the slow from the fast most clearly: where times are widest apart."""
    times = sorted(ttft_seconds)
    first, last = (int(share * len(times)) for share in KEPT)
    above = max(range(first, last), key=lambda index: times[index] / times[index - 1])
    return Bound("ttft", math.sqrt(times[above - 1] * times[above]))


def measured(
    bundle: Bundle, target: Path, machine: Machine, asked: Sequence[Arrival], spans_file: Path
) -> list[tuple[str, float, float]]:
    """Returns figures of a real run and of its simulation; prints what kinds of steps there were in both."""
    with served_and_watched(bundle.path, target, spans_file) as url:
        ran, counted, switched, began = asyncio.run(run(url, asked))
    assert not [outcome.reply.failure for outcome in ran.outcomes if outcome.reply.failure]
    seen: list[tuple[float, Event | Action]] = []
    found = replay(machine, counted, warm_up=warm_up(), observe=lambda at, item: seen.append((at, item)))
    bounds = [bound_of([outcome.reply.ttft_seconds or 0.0 for outcome in found.run.outcomes])]
    simulated = report(machine, found, bounds)
    lines = comparison(
        [span for span in read_spans(spans_file) if span.begin_seconds >= began],
        [span for span in spans(seen) if span.begin_seconds >= found.begin_seconds],
    )
    print("\n".join(f"  {line}" for line in lines))
    return [*compared(summarize(ran, bounds), simulated.summary, (switched, simulated.num_switches))]
