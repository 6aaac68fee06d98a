from __future__ import annotations

import itertools
import json
import math
import random
import statistics
from pathlib import Path

import pytest

from plait.errors import ConfigurationError
from plait.runtime.bench.arrivals import Arrival, Mix, closed_loop, poisson, read_trace
from plait.runtime.bench.prompts import prompt_of, random_prompt

TRACES = Path(__file__).parents[4] / "shared" / "data" / "traces"
MIX = Mix(("a", "b"), 100, 20)


def times(rate: float, seed: int, num: int) -> list[float]:
    return [arrival.seconds for arrival in itertools.islice(poisson(MIX, rate, seed=seed), num)]


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_poisson_process_has_exponential_gaps_of_its_rate() -> None:
    num, rate = 20_000, 4.0
    moments = times(rate, 1, num)
    gaps = [after - before for before, after in itertools.pairwise([0.0, *moments])]
    # Mean and deviation of an exponential distribution are 1 / rate; that of the mean is 1 / (rate sqrt(n)).
    assert statistics.fmean(gaps) == pytest.approx(1 / rate, abs=4 / (rate * math.sqrt(num)))
    assert statistics.stdev(gaps) == pytest.approx(1 / rate, rel=0.05)
    assert sum(gap > 1 / rate for gap in gaps) / num == pytest.approx(math.exp(-1), abs=0.015)


def test_counts_of_a_poisson_process_vary_as_much_as_their_mean() -> None:
    counts = [0] * 1000
    for moment in itertools.takewhile(lambda moment: moment < 1000, times(5.0, 2, 10_000)):
        counts[int(moment)] += 1
    assert statistics.variance(counts) / statistics.fmean(counts) == pytest.approx(1, abs=0.2)


def test_the_seed_determines_the_arrivals() -> None:
    assert times(3.0, 7, 50) == times(3.0, 7, 50)
    assert times(3.0, 7, 50) != times(3.0, 8, 50)


def test_models_are_asked_in_turn() -> None:
    assert [arrival.model for arrival in itertools.islice(closed_loop(MIX), 5)] == ["a", "b", "a", "b", "a"]


def test_lengths_are_scaled_and_never_nothing() -> None:
    (arrival,) = itertools.islice(closed_loop(Mix(("a",), 100, 1, scale=0.25)), 1)
    assert arrival == Arrival(0.0, "a", 25, 1)


def test_a_trace_of_lengths(tmp_path: Path) -> None:
    path = write(
        tmp_path / "trace.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2023-11-16 18:15:50.9951690,396,109",
        "2023-11-16 18:15:46.4951690,374,0",
    )
    found = read_trace(path, Mix(("a",), 1, 1, scale=0.5), speed=2.0)
    assert found == [Arrival(0.0, "a", 187, 1), Arrival(2.25, "a", 198, 54)]


def test_a_trace_of_models_maps_what_it_does_not_know(tmp_path: Path) -> None:
    path = write(
        tmp_path / "trace.csv", "timestamp,model,seconds", "10,M7,1", "11,b,1", "12,M8,1", "13,M9,1", "14,M7,1"
    )
    assert read_trace(path, MIX) == [
        Arrival(0.0, "a", 100, 20),
        Arrival(1.0, "b", 100, 20),
        Arrival(2.0, "b", 100, 20),
        Arrival(3.0, "a", 100, 20),
        Arrival(4.0, "a", 100, 20),
    ]


def test_the_most_used_names_of_a_trace_stand_for_the_models_as_they_are_used(tmp_path: Path) -> None:
    path = write(tmp_path / "trace.csv", "timestamp,model", *(f"{i},{name}" for i, name in enumerate("zyyxyzzyw")))
    found = read_trace(path, MIX, num_names=3)
    assert [arrival.model for arrival in found] == ["b", "a", "a", "a", "a", "b", "b", "a"]  # y, z, x are kept
    with pytest.raises(ConfigurationError, match="no requests with names of models"):
        read_trace(write(tmp_path / "no.csv", "timestamp,ContextTokens,GeneratedTokens", "1,2,3"), MIX, num_names=3)


def test_a_trace_of_mooncake_says_what_prompts_have_in_common(tmp_path: Path) -> None:
    lines = [
        {"timestamp": 500, "input_length": 1100, "output_length": 7, "hash_ids": [0, 1, 9]},
        {"timestamp": 0, "input_length": 1024, "output_length": 40, "hash_ids": [0, 1]},
    ]
    path = write(tmp_path / "trace.jsonl", *map(json.dumps, lines))
    found = read_trace(path, Mix(("a",), 1, 1, scale=1 / 32, max_output_tokens=1))
    assert found == [Arrival(0.0, "a", 32, 1, (0, 1), 16.0), Arrival(0.5, "a", 34, 1, (0, 1, 9), 16.0)]
    assert [list(arrival.pieces()) for arrival in found] == [[(0, 16), (1, 16)], [(0, 16), (1, 16), (9, 2)]]
    first, second = (prompt_of(arrival, random.Random(1)) for arrival in found)
    assert second.startswith(first)
    assert len(second.split()) == 34


def test_lengths_have_their_limits() -> None:
    (arrival,) = itertools.islice(closed_loop(Mix(("a",), 100, 50, 0.5, max_input_tokens=40, max_output_tokens=30)), 1)
    assert arrival == Arrival(0.0, "a", 40, 25)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (['{"timestamp": 1}'], "line 1 of .* has no `timestamp`, `input_length`"),
        (['{"timestamp": 1, "input_length": 2, "output_length": 3}', "{"], "line 2 of .* is not JSON"),
        (['{"timestamp": 1, "input_length": 2, "output_length": -3}'], "'-3' in trace .* is no number of tokens"),
        (['{"timestamp": 1, "input_length": 2, "output_length": 3, "hash_ids": ["a"]}'], "no list of whole numbers"),
        (['{"timestamp": null, "input_length": 2, "output_length": 3}'], "'None' is no time"),
        (["timestamp,seconds", "1,2"], "has no columns `timestamp` and `model`"),
        (["timestamp,ContextTokens", "1,2"], "has no columns"),
        ([""], "has no columns"),
        (["timestamp,model"], "has no requests"),
        (["timestamp,model", "soon,a"], "line 2 of .*: 'soon' is no time"),
        (["timestamp,model", "inf,a"], "'inf' is no time"),
        (["timestamp,model", "1"], "line 2 of .* has 1 cells, not 2"),
        (["timestamp,ContextTokens,GeneratedTokens", "1,many,2"], "'many' in trace .* is no number of tokens"),
        (["timestamp,ContextTokens,GeneratedTokens", "1,-3,2"], "'-3' in trace"),
    ],
    ids=[
        "fields",
        "json",
        "length",
        "ids",
        "no-time",
        "columns",
        "one-length",
        "empty",
        "no-rows",
        "time",
        "infinite",
        "cells",
        "tokens",
        "negative",
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, lines: list[str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        read_trace(write(tmp_path / "trace.csv", *lines), MIX)


def test_a_missing_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read trace .*: No such file"):
        read_trace(tmp_path / "none.csv", MIX)


@pytest.mark.parametrize(
    ("name", "num"),
    [("azure_llm_2023_conv.csv", 19_366), ("multimodel_arrivals_a.csv", 13_196), ("mooncake_synthetic.jsonl", 3_993)],
)
def test_public_traces_are_read(name: str, num: int) -> None:
    if not (TRACES / name).exists():
        pytest.skip("the public traces are not here")
    found = read_trace(TRACES / name, MIX)
    assert len(found) == num
    assert found[0].seconds == 0
    assert all(before.seconds <= after.seconds for before, after in itertools.pairwise(found))
    assert {arrival.model for arrival in found} == {"a", "b"}


def test_prompts_have_their_length_and_no_beginning_in_common() -> None:
    generator = random.Random(3)
    prompts = [random_prompt(64, generator).split() for _ in range(200)]
    assert {len(prompt) for prompt in prompts} == {64}
    assert len({tuple(prompt[:8]) for prompt in prompts}) == 200


def test_the_example_s_trace_is_read() -> None:
    found = read_trace(Path(__file__).parents[3] / "examples" / "arrivals.csv", MIX)
    assert len(found) == 60
    assert {arrival.model for arrival in found} == {"a", "b"}
