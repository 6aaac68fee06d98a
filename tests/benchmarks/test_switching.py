"""`plait bench switch` on eight variants of SmolLM2, and what it is to reach.

The number of turns is in PLAIT_SWITCH_TURNS (300, the default, take about a quarter of an hour), an interpreter with
`transformers serve` or llama-cpp-python's server in PLAIT_RIVAL_PYTHON; without one plait itself is started anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from plait.runtime.bench.switching.run import Way

ALL_WAYS: tuple[Way, ...] = ("resident", "declared", "learned", "blocking", "reload", "reload_cold", "process")


def test_an_agent_hardly_notices_switches(tmp_path: Path) -> None:
    timeline = tmp_path / "timeline.json"
    options = ["--turns", os.environ.get("PLAIT_SWITCH_TURNS", "300"), "--perfetto", str(timeline), "--json"]
    if python := os.environ.get("PLAIT_RIVAL_PYTHON"):
        options += ["--rival-python", python]
    command = [str(Path(sys.executable).with_name("plait")), "bench", "switch", *options]
    data = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    for way in ALL_WAYS:
        of = data["agent"][way]
        print(
            f"\n{way:12} {of['turns_per_s']:.3f} turns/s, {of['share_of_resident']['value']:.3f} of all resident",
            end="",
        )
    for bar in data["bars"]:
        print(
            f"\n{bar['what']}: {bar['found']:.3g}, wanted {bar['wanted']:g}, {'met' if bar['is_met'] else 'MISSED'}",
            end="",
        )
    assert json.loads(timeline.read_bytes())["traceEvents"]
    assert [bar["what"] for bar in data["bars"] if not bar["is_met"]] == []
