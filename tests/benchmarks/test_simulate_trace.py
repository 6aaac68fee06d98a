"""Simulated traces: against real runs of the same traces on this machine, and how much faster than real time.

Fidelity needs an otherwise idle machine: a target is calibrated, a bundle of two models under a budget for one of them
is served and asked over HTTP at three loads, and the same requests are simulated. Both columns are printed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import random
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

import plait
from plait.cli.bench_child import served
from plait.compiler.bundle.manifest import TierBudget
from plait.compiler.bundle.reader import Bundle
from plait.compiler.bundle.spec import BundleSpec
from plait.compiler.rack.planner import plan_rack
from plait.compiler.target import load_target
from plait.runtime.bench.arrivals import Arrival
from plait.runtime.bench.client import Endpoint, Reply, ask, connect
from plait.runtime.bench.load import Load, Run, run_load
from plait.runtime.bench.measures import Bound
from plait.runtime.bench.prompts import random_prompt
from plait.runtime.bench.summary import Summary, summarize
from plait.runtime.simulation.machine import Machine, machine_of_bundle
from plait.runtime.simulation.rack import machine_of_plan
from plait.runtime.simulation.replay import replay
from plait.runtime.simulation.report import report

MAX_BATCH = 4
MODEL = {"source": "smollm2-135m", "dtype": "bf16", "sequence": 256, "batch": MAX_BATCH, "kv_tokens": 1024}
SPEC = {"bundle": "two", "budget": {"hbm": "360MiB", "ddr": "2GiB"}, "models": {"one": MODEL, "two": MODEL}}
COMMAND = str(Path(sys.executable).with_name("plait"))
LOADS = (0.4, 0.6, 0.8)  # requests, times what one after the other would take
NUM_REQUESTS = 80
CHANGE = 0.25  # probability that the next request is for the other model
KEPT = 0.8  # share of requests that keep the bound on TTFT in the simulation
ENDPOINT = Endpoint("completions", ignores_eos=True)

RACK = {"sequence": 4096, "batch": 32, "kv_tokens": 65536, "copies": 10}
RACK_MODELS = {
    "large": {"source": "llama-3.1-8b", **RACK},
    "medium": {"source": "llama-3.2-3b", **RACK},
    "small": {"source": "llama-3.2-1b", **RACK},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fidelity")


@pytest.fixture(scope="module")
def bundle(directory: Path) -> Bundle:
    return plait.bundle(BundleSpec.model_validate(SPEC), directory / "two.plait", base=directory)


@pytest.fixture(scope="module")
def calibrated(bundle: Bundle, directory: Path) -> Path:
    """The target of this machine, with what serving the bundle takes."""
    file = directory / "mine.toml"
    subprocess.run([COMMAND, "calibrate", "--bundle", str(bundle.path), "-o", str(file)], check=True)
    return file


def requests(seed: int) -> list[Arrival]:
    """Requests a second apart on average, that stay with a model for a while."""
    draw = random.Random(seed)
    found: list[Arrival] = []
    seconds, models = 0.0, ["one", "two"]
    for _ in range(NUM_REQUESTS):
        seconds += draw.expovariate(1.0)
        if draw.random() < CHANGE:
            models.reverse()
        found.append(Arrival(seconds, models[0], draw.randint(8, 96), draw.randint(8, 40)))
    return found


def at_rate(asked: Sequence[Arrival], rate: float) -> list[Arrival]:
    return [dataclasses.replace(each, seconds=each.seconds / rate) for each in asked]


def num_switches(url: str) -> float:
    """How often a server has made a model hot."""
    text = httpx.get(f"{url}/metrics", timeout=60).text
    lines = re.findall(r'^plait_switches_total\{.*destination="hbm".*\} (\S+)$', text, re.MULTILINE)
    return sum(map(float, lines))


async def run(url: str, asked: Sequence[Arrival]) -> tuple[Run, list[Arrival], float]:
    """Sends requests, as `plait bench serve` does, once every program has run: the first run of each takes longer.

    Returns:
        What came of them, the requests with as many tokens as the server counted, and the number of switches.
    """
    generator = random.Random()
    counted: dict[Arrival, Arrival] = {}
    async with connect(url, ENDPOINT, None) as http:

        async def send(arrival: Arrival) -> Reply:
            prompt = random_prompt(arrival.input_tokens, generator)
            reply = await ask(http, ENDPOINT, arrival.model, prompt, arrival.output_tokens)
            counted[arrival] = dataclasses.replace(arrival, input_tokens=reply.input_tokens or 0)
            return reply

        for name in ("one", "two"):
            for at_once in (1, 2, MAX_BATCH):
                warm_up = [Arrival(float(number), name, size, 12) for number, size in enumerate((8, 90) * at_once)]
                await run_load(Load(warm_up, concurrency=at_once), send)
        before = num_switches(url)
        found = await run_load(Load(asked), send)
    return found, [counted[each] for each in asked], num_switches(url) - before


def alone(machine: Machine) -> float:
    """Seconds of a request that nobody disturbs."""
    found = replay(machine, at_rate(requests(0), 0.01), warm_up=("one", "two"))
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


def test_a_simulation_predicts_the_run(bundle: Bundle, calibrated: Path) -> None:
    budget = TierBudget(bundle.manifest.budget.hbm, bundle.manifest.budget.ddr)
    machine = machine_of_bundle(bundle.manifest, load_target(calibrated), budget)
    limits = {"goodput": 0.10, "ttft p50": 0.15, "ttft p95": 0.15, "switches": 0.05}
    wrong: list[str] = []
    capacity = 1 / alone(machine)
    with served(bundle.path, ["--target", str(calibrated)]) as url:
        for number, load in enumerate(LOADS):
            asked = at_rate(requests(number), load * capacity)
            ran, asked, switched = asyncio.run(run(url, asked))
            assert not [outcome.reply.failure for outcome in ran.outcomes if outcome.reply.failure]
            found = replay(machine, asked, warm_up=("one", "two"))
            times = sorted(outcome.reply.ttft_seconds or 0.0 for outcome in found.run.outcomes)
            bounds = [Bound("ttft", times[int(KEPT * len(times))])]
            simulated = report(machine, found, bounds)
            real = summarize(ran, bounds)
            print(f"\nload {load:.0%} of {capacity:.3g} requests/s{'':11}real  simulated  error")
            for name, one, other in compared(real, simulated.summary, (switched, simulated.num_switches)):
                error = other / one - 1 if one else 0.0
                print(f"  {name:<28} {one:>9.4g} {other:>10.4g} {error:>+7.1%}")
                if abs(error) > limits.get(name, 1e9):
                    wrong.append(f"{name} at {load:.0%}: {error:+.1%}")
    assert not wrong, wrong


def zipf_requests(rate: float, num: int, models: Sequence[str]) -> list[Arrival]:
    draw = random.Random(0)
    weights = [1 / (rank + 1) ** 0.9 for rank in range(len(models))]
    seconds, found = 0.0, list[Arrival]()
    for _ in range(num):
        seconds += draw.expovariate(rate)
        output = min(200, 1 + int(draw.lognormvariate(2.5, 0.8)))
        (model,) = draw.choices(models, weights)
        found.append(Arrival(seconds, model, min(3000, 1 + int(draw.lognormvariate(4.5, 1.0))), output))
    return found


@pytest.mark.parametrize("decode_steps", [1, 16])
def test_a_rack_of_30_models_is_simulated_faster_than_real_time(decode_steps: int) -> None:
    spec = BundleSpec.model_validate({"bundle": "rack", "target": "sn40l-16", "models": RACK_MODELS})
    machine = machine_of_plan(plan_rack(spec))
    assert len(machine.models) == 30
    asked = zipf_requests(200.0, 6000, [entry.name for entry in machine.models])
    gc.collect()
    gc.disable()  # as `plait simulate trace` does
    try:
        found = report(machine, replay(machine, asked, decode_steps=decode_steps))
    finally:
        gc.enable()
    print(f"\n30 models, 200 requests/s, up to {decode_steps} decode steps between decisions")
    for name, value in found.facts():
        print(f"  {name:<16} {value}")
    assert found.summary.num_answered == 6000
    assert found.times_real_time >= 20 or decode_steps == 1
