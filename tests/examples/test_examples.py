"""Every example runs as it stands, on the tiny bundle, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from plait.runtime.engine import Runtime
from plait.runtime.server.serve import serving

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: str) -> str:
    """Runs an example and returns what it prints."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_01_asks_a_bundle(tiny_bundle: Path) -> None:
    assert "(2, 64) vectors" in run("01_ask_a_bundle.py", str(tiny_bundle))


def test_02_counts_a_loop_as_often_as_it_runs() -> None:
    printed = run("02_trace_any_function.py")
    assert "products by hand 12,582,912; plait counts 12,607,488" in printed


def test_03_switches_between_models(tiny_bundle: Path) -> None:
    printed = run("03_more_models_than_memory.py", str(tiny_bundle))
    assert printed.count(" chat ") == 4
    assert printed.count("(1, 64)") == 4
    assert "chat: ddr -> hbm" in printed


def test_04_asks_a_server(tiny_bundle: Path) -> None:
    with Runtime(tiny_bundle) as runtime, serving(runtime) as url:
        printed = run("04_openai_client.py", url)
    assert "2 vectors of 64 numbers" in printed
    assert "hot" in printed


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("0*.py")), ids=lambda path: path.name)
def test_examples_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60
