"""Traces of a planned rack: how much faster than real time they are simulated.

In seconds of the CPU as well: what else the machine does does not count in these.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Sequence

from plait.compiler.bundle.spec import BundleSpec
from plait.compiler.rack.planner import plan_rack
from plait.runtime.bench.arrivals import Arrival
from plait.runtime.simulation.rack import machine_of_plan
from plait.runtime.simulation.replay import replay
from plait.runtime.simulation.report import report

LEAST = 20  # times real time
RACK = {"sequence": 4096, "batch": 32, "kv_tokens": 65536, "copies": 10}
RACK_MODELS = {
    "large": {"source": "llama-3.1-8b", **RACK},
    "medium": {"source": "llama-3.2-3b", **RACK},
    "small": {"source": "llama-3.2-1b", **RACK},
}


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


def test_a_rack_of_30_models_is_simulated_faster_than_real_time() -> None:
    spec = BundleSpec.model_validate({"bundle": "rack", "target": "sn40l-16", "models": RACK_MODELS})
    machine = machine_of_plan(plan_rack(spec))
    assert len(machine.models) == 30
    asked = zipf_requests(200.0, 6000, [entry.name for entry in machine.models])
    gc.collect()
    gc.disable()  # as `plait simulate trace` does
    began = time.process_time()
    try:
        replayed = replay(machine, asked)
    finally:
        gc.enable()
    times = replayed.seconds / (time.process_time() - began)
    found = report(machine, replayed)
    print("\n30 models, 200 requests/s")
    for name, value in found.facts():
        print(f"  {name:<16} {value}")
    print(f"  by seconds of the CPU {times:.3g} times as fast as real time")
    assert found.summary.num_answered == 6000
    assert times >= LEAST
