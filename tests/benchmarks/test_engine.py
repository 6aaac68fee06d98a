"""Decode and prefill rates of the example's chat model, as `plait bench engine` measures them."""

from __future__ import annotations

from pathlib import Path

import plait
from plait.runtime.bench.engine import measure_engine
from plait.runtime.engine import Runtime

SPEC = Path(__file__).parents[2] / "examples" / "agent.yaml"


def test_decode_and_prefill_rates(tmp_path: Path) -> None:
    bundle = plait.bundle(plait.read_spec(SPEC), tmp_path / "agent.plait", base=SPEC.parent)
    with Runtime(bundle) as runtime:
        rates = measure_engine(runtime, "chat")
    for table in rates.tables():
        print(f"\n{table.as_text()}")
    assert [rate.size for rate in rates.decode] == [1, 4, 8]
    assert [rate.size for rate in rates.prefill] == [128, 512]
