"""Many clients for a long time: no error, no block that stays behind, and memory that does not grow.

pytest tests/benchmarks/test_soak.py --benchmarks -s     PLAIT_SOAK_SECONDS=60 in the environment takes a tenth
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

import plait
from plait.runtime.bench.prompts import random_prompt

SECONDS = float(os.environ.get("PLAIT_SOAK_SECONDS", "600"))
NUM_CLIENTS = 64
PATIENCE = 0.15  # share of requests whose client leaves after a few tokens
GROWTH = 0.02  # of resident memory, over all but the first fifth of the time
CHAT = {"source": "smollm2-135m", "dtype": "bf16", "sequence": 512, "batch": 8, "kv_tokens": 4096}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """A server in a process of its own: its address and process id."""
    directory = tmp_path_factory.mktemp("soak")
    spec = plait.BundleSpec.model_validate({"bundle": "soak", "target": "cpu", "models": {"chat": CHAT}})
    plait.bundle(spec, directory / "soak.plait", base=directory)
    program = "from plait.cli.main import run; run()"
    command = [sys.executable, "-c", program, "serve", str(directory / "soak.plait"), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"], process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def test_many_clients_for_a_long_time(server: tuple[str, int]) -> None:
    url, pid = server
    counts, sizes = asyncio.run(_soak(url, pid))
    settled = sizes[len(sizes) // 5 :]
    early, late = (statistics.median(part) for part in (settled[: len(settled) // 4], settled[-len(settled) // 4 :]))
    resident = f"{early / 2**20:.0f} -> {late / 2**20:.0f} MiB resident"
    print(f"\n{NUM_CLIENTS} clients, {SECONDS:.0f} s: {dict(counts)}; {resident}")
    assert set(counts) == {"answered", "left"}
    assert late <= early * (1 + GROWTH)
    assert _gauge(url, "vllm:kv_cache_usage_perc") == 0


def test_a_client_that_leaves_frees_its_blocks_within_a_step(server: tuple[str, int]) -> None:
    url, _ = server
    body = {"model": "chat", "prompt": "One, two,", "max_tokens": 400, "ignore_eos": True, "stream": True}
    for _ in range(5):
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
            lines = (line for line in response.iter_lines() if line.startswith("data:"))  # dropped, it would hang up
            came = [time.perf_counter() for _, _ in zip(range(20), lines, strict=False)]
            assert _gauge(url, "vllm:kv_cache_usage_perc") > 0
        left = time.perf_counter()
        while _gauge(url, "vllm:kv_cache_usage_perc") > 0:
            assert time.perf_counter() - left < 5
        took = time.perf_counter() - left
        step = statistics.median(later - earlier for earlier, later in pairwise(came))
        print(f"\nfree after {took * 1e3:.0f} ms; a step takes {step * 1e3:.0f} ms")


async def _soak(url: str, pid: int) -> tuple[Counter[str], list[int]]:
    counts: Counter[str] = Counter()
    sizes: list[int] = []
    until = time.monotonic() + SECONDS
    limits = httpx.Limits(max_connections=NUM_CLIENTS)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

        async def ask_on(seed: int) -> None:
            draw = random.Random(seed)
            while time.monotonic() < until:
                counts[await _ask(client, draw)] += 1

        async def watch() -> None:
            while time.monotonic() < until:
                sizes.append(_resident_bytes(pid))
                await asyncio.sleep(SECONDS / 100)

        await asyncio.gather(watch(), *(ask_on(seed) for seed in range(NUM_CLIENTS)))
    return counts, sizes


async def _ask(client: httpx.AsyncClient, draw: random.Random) -> str:
    """Asks for a streamed answer and returns how that ended."""
    num_tokens = draw.randint(4, 40)
    leaves_after = draw.randint(1, 3) if draw.random() < PATIENCE else None
    body = {
        "model": "chat",
        "prompt": random_prompt(draw.randint(4, 120), draw),
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "temperature": draw.choice([0, 0.8]),
        "stream": True,
    }
    num_seen, is_done = 0, False
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            return f"status {response.status_code}"
        async for line in response.aiter_lines():
            if '"error"' in line:
                return line
            num_seen += line.startswith("data: {")
            is_done |= line == "data: [DONE]"
            if num_seen == leaves_after:
                return "left"
    return "answered" if is_done and num_seen else "cut off"


def _resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _gauge(url: str, name: str) -> float:
    found = re.search(rf"^{name}\{{.*\}} (\S+)$", httpx.get(f"{url}/metrics", timeout=60).text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])
