"""A thousand damaged checkpoints, opened in processes of their own: a crash there is a failure here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny import write_tiny_llama

TESTS = Path(__file__).parents[1]
DECODERS = TESTS / "golden" / "decoders"
BASES = ("tiny-0", "tiny-250", "llama2.f16.gguf", "deepseek_v3.f16.gguf")
NUM_MUTANTS = 250  # of each
MAX_GROWTH_BYTES = 200_000_000


@dataclass(frozen=True)
class Mutant:
    """What came of opening one of them."""

    number: int
    damage: str
    outcome: str  # "opened" | "refused" | what else happened
    growth_bytes: int  # of the process's peak, over that of opening the undamaged model


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Starts all of them at once: they take a while and don't wait for each other."""
    tiny = write_tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")
    started = {}
    for base in BASES:
        model = ["gguf", str(DECODERS / base)] if base.endswith(".gguf") else ["huggingface", str(tiny)]
        first = 0 if base.endswith(".gguf") else int(base.removeprefix("tiny-"))
        command = [sys.executable, str(TESTS / "malformed.py"), *model, str(first), str(first + NUM_MUTANTS)]
        started[base] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("base", BASES)
def test_damaged_checkpoints_are_opened_or_refused_in_one_line(
    processes: dict[str, subprocess.Popen[str]], base: str
) -> None:
    out, err = processes[base].communicate(timeout=240)
    undamaged, *mutants = [Mutant(**json.loads(line)) for line in out.splitlines()]
    assert processes[base].returncode == 0, f"after {mutants[-1:]}: {err[-2000:]}"
    assert (undamaged.outcome, len(mutants)) == ("opened", NUM_MUTANTS)
    assert [mutant for mutant in mutants if mutant.outcome not in ("opened", "refused")] == []
    assert max(mutants, key=lambda mutant: mutant.growth_bytes).growth_bytes < MAX_GROWTH_BYTES
    assert Counter(mutant.outcome for mutant in mutants)["refused"] > NUM_MUTANTS // 3
