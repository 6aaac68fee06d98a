"""MiniMalloc's instances, and rectangles cut at random: how soon each is packed, by the command from a cold start."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from packing_problems import cut_rectangle

from plait.compiler.memory.packing import read_buffers, solve_packing
from plait.compiler.verify.packing import verify_packing

INSTANCES = Path(__file__).parents[3] / "shared" / "data" / "minimalloc"
CAPACITY = 1_048_576
# by instance: seconds that MiniMalloc (C++) takes
MINIMALLOC_SECONDS = {"A": 5.8, "C": 0.9, "F": 6.6, "G": 1.4, "I": 5.0, "K": 1.1}
MOST_SECONDS = 60  # for all of them together


@pytest.mark.skipif(not INSTANCES.is_dir(), reason="the benchmark's instances are not here")
def test_all_instances_are_packed_within_a_minute() -> None:
    command = [sys.executable, "-c", "from plait.cli.main import run; run()", "solve", "packing"]
    options = ["--capacity", str(CAPACITY), "--time-limit", "60", "--json"]
    total_seconds = 0.0
    print("\ninstance  buffers  status     seconds  MiniMalloc")
    for name, other_seconds in MINIMALLOC_SECONDS.items():
        file = INSTANCES / f"{name}.{CAPACITY}.csv"
        begin = time.monotonic()
        done = subprocess.run([*command, str(file), *options], check=True, capture_output=True, text=True, timeout=120)
        seconds, answer = time.monotonic() - begin, json.loads(done.stdout)
        buffers = read_buffers(file)
        verify_packing(buffers, answer["offsets"], answer["height"], CAPACITY)
        total_seconds += seconds
        print(f"{name:<8}  {len(buffers):>7}  {answer['status']:<9}  {seconds:>7.1f}  {other_seconds:>10}")
    print(f"together {total_seconds:.1f} s")
    assert total_seconds < MOST_SECONDS


@pytest.mark.parametrize(("thinned", "least"), [(0.1, 1), (0.2, 5), (0.3, 7)])
def test_cut_rectangles_are_put_together_again(thinned: float, least: int) -> None:
    num_packed, num_seeds = 0, 10
    for seed in range(num_seeds):
        buffers = cut_rectangle(seed, 150 + 35 * seed, 100, 1_024, thinned)
        answer = solve_packing(buffers, 1_024, 20)
        if answer.height is not None:
            verify_packing(buffers, answer.offsets, answer.height, 1_024)
        num_packed += answer.height is not None
        print(f"\nseed {seed}: {len(buffers)} buffers, {answer.status}, {answer.seconds:.1f} s", end="")
    print(f"\n{num_packed} of {num_seeds} packed in 20 s each, {thinned:.0%} thinned")
    assert num_packed >= least


def test_a_hundred_thousand_buffers_are_packed_in_seconds() -> None:
    one = cut_rectangle(1, 2_000, 1_000, 1_000_000)
    buffers = [
        type(each)(f"{copy}.{each.id}", each.lower + 900 * copy, each.upper + 900 * copy, each.size)
        for copy in range(50)
        for each in one
    ]
    solve_packing(one[:10])
    answer = solve_packing(buffers, time_limit_seconds=10)
    print(f"\n{len(buffers):,} buffers: {answer.gap:.1%} above the bound at most, {answer.seconds:.1f} s")
    assert answer.seconds < 15
