"""`plait simulate request`: figures as JSON and as text, and one line for what is wrong."""

from __future__ import annotations

import re

import pytest

REQUEST = ("simulate", "request", "--model", "llama-3.2-1b", "--target", "sn40l-8")
LENGTHS = ("--input-tokens", "512", "--output-tokens", "128")


def test_a_request_s_figures_agree_with_each_other(plait) -> None:
    data = plait(*REQUEST, *LENGTHS, "--batch", "4", "--json").data
    assert data["latency_seconds"] == pytest.approx(data["ttft_seconds"] + 127 * data["tpot_seconds"])
    assert data["output_tokens_per_s"] == pytest.approx(4 * 128 / data["latency_seconds"])
    assert data["tokens_per_joule"] == pytest.approx(4 * 128 / data["joules"])
    step = data["decode"]["last_step"]
    beside = sum(step[f"{what}_seconds"] for what in ("handover", "append", "host"))
    assert sum(step["bound_seconds"].values()) + beside == pytest.approx(step["seconds"])


def test_more_tokens_take_longer_and_the_host_s_launches_much_longer(plait) -> None:
    def latency(*options: str) -> float:
        return plait(*REQUEST, *options, "--json").data["latency_seconds"]

    short, long = (latency("--input-tokens", "512", "--output-tokens", count) for count in ("128", "256"))
    assert 1.8 < long / short < 2.1
    by_host = latency(*LENGTHS, "--launches", "software")
    assert 2 * short < by_host < latency(*LENGTHS, "--launches", "software", "--mode", "o0")


def test_a_table_says_what_bounds_each_phase(plait) -> None:
    outcome = plait(*REQUEST, *LENGTHS)
    assert (outcome.code, outcome.err) == (0, "")
    rows = {line.split("  ")[0]: line for line in outcome.out.splitlines()}
    assert "hbm" in rows["decode, last"]
    assert rows["a user"].endswith("tokens/s after the first")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "minilm-l6", "--target", "sn40l"), "it has no decode phase"),
        (("--model", "llama-2-7b", "--target", "sn40l", "--input-tokens", "5000"), "4096 positions"),
        (("--model", "llama-2-7b", "--target", "sn40l", "--batch", "0"), "each is at least 1"),
        (("--model", "nothing", "--target", "sn40l"), "nothing"),
        (("--model", "llama-2-7b", "--target", "tpu"), "unknown target 'tpu'"),
        (("--model", "llama-3.1-405b", "--target", "sn40l-8"), "needs .* of hbm"),
    ],
    ids=["encoder", "too long", "no request", "model", "target", "memory"],
)
def test_what_is_wrong_is_one_line(plait, options, message) -> None:

    assert re.search(message, plait("simulate", "request", *options).complaint())
