"""The contest's sharding instances: cost, bound and time, beside the best that is known elsewhere."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plait.compiler.verify.sharding import bound_from_duals, evaluate

INSTANCES = Path(__file__).parents[3] / "shared" / "data" / "iopddl"
# by instance: the contest's limit in seconds, the best known cost, and the share of a known bound that ours must reach
KNOWN = {
    "B": (60, 532_843, 532_843),
    "G": (60, 217_039, 217_039),
    "A": (60, 6_548_641_531, 0.98 * 6_513_812_172),
    "K": (180, 2_274_276_676, 0.9 * 2_065_623_588),
    "M": (180, 49_928_460_991, 0.98 * 49_407_421_919),
    "U": (300, 2_569_342_178, 0.9 * 2_018_900_000),
}


@pytest.mark.skipif(not INSTANCES.is_dir(), reason="the contest's instances are not here")
@pytest.mark.parametrize("name", KNOWN)
def test_an_instance_is_solved_within_its_limit(name: str, tmp_path: Path) -> None:
    limit_seconds, known_cost, least_bound = KNOWN[name]
    file, dual = INSTANCES / f"{name}.json.gz", tmp_path / "dual.json"
    command = [sys.executable, "-c", "from plait.cli.main import run; run()", "solve", "sharding", str(file)]
    options = ["--json", "--time-limit", str(limit_seconds), "--certificate", str(dual)]
    begin = time.monotonic()
    done = subprocess.run([*command, *options], check=True, capture_output=True, text=True, timeout=limit_seconds + 60)
    seconds, answer = time.monotonic() - begin, json.loads(done.stdout)
    with gzip.open(file) as stream:
        document = json.load(stream)
    found, bound = evaluate(document, answer["assignment"]), bound_from_duals(document, json.loads(dual.read_text()))
    print(
        f"\n{name}: cost {found.cost:,.0f} ({found.cost / known_cost:.4f} of the best known), {answer['status']}, "
        f"bound {answer['lower_bound']:,.0f} (from dual values {bound:,.0f}), gap {answer['gap']:.4%}, "
        f"{seconds:.1f} s of {limit_seconds}"
    )
    assert found.is_allowed
    assert found.cost == answer["cost"] <= 1.05 * known_cost
    assert bound * (1 - 1e-10) <= answer["lower_bound"] <= found.cost  # sums of a million doubles, in another order
    assert bound >= least_bound - 0.5
    assert seconds <= limit_seconds
    if name in "BG":
        assert (answer["status"], answer["cost"]) == ("optimal", known_cost)
