"""Metrics: names that dashboards know, values that add up."""

import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from plait.runtime.metrics import Metrics
from plait.runtime.request import Usage

USAGE = Usage(
    prompt_tokens=7,
    completion_tokens=3,
    queue_seconds=0.25,
    switch_seconds=0.2,
    time_to_first_token_seconds=0.5,
    total_seconds=1.5,
)


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """All values by (name, label values in order of label names)."""
    families = text_string_to_metric_families(metrics.render()[0].decode())
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_series_of_declared_models_start_at_zero() -> None:
    values = samples(Metrics(["chat"]))
    assert values["vllm:num_requests_running", "chat"] == 0
    assert values["vllm:num_requests_waiting", "chat"] == 0
    assert values["vllm:generation_tokens_total", "chat"] == 0


def test_registries_of_two_runtimes_do_not_mix() -> None:
    one, other = Metrics(["chat"]), Metrics(["chat"])
    one.tokens_generated("chat", None)
    assert samples(one)["vllm:generation_tokens_total", "chat"] == 1
    assert samples(other)["vllm:generation_tokens_total", "chat"] == 0


def test_a_finished_request_is_counted_with_what_it_took() -> None:
    metrics = Metrics()
    metrics.request_arrived("chat", "cold")
    metrics.request_started("chat")
    for gap in (None, 0.02, 0.03):
        metrics.tokens_generated("chat", gap)
    metrics.request_finished("chat", "stop", USAGE)
    values = samples(metrics)
    assert values["plait_requests_by_residency_total", "cold", "chat"] == 1
    assert values["plait_requests_started_total", "chat"] == 1
    assert values["vllm:request_success_total", "stop", "chat"] == 1
    assert values["vllm:prompt_tokens_total", "chat"] == 7
    assert values["vllm:generation_tokens_total", "chat"] == 3
    assert values["vllm:inter_token_latency_seconds_count", "chat"] == 2
    assert values["vllm:inter_token_latency_seconds_sum", "chat"] == pytest.approx(0.05)
    assert values["vllm:time_to_first_token_seconds_sum", "chat"] == 0.5
    assert values["vllm:request_prefill_time_seconds_sum", "chat"] == 0.25
    assert values["vllm:request_decode_time_seconds_sum", "chat"] == 1.0
    assert values["plait_request_switch_seconds_sum", "chat"] == 0.2
    assert values["vllm:e2e_request_latency_seconds_sum", "chat"] == 1.5
    assert values["vllm:request_queue_time_seconds_sum", "chat"] == 0.25


@pytest.mark.parametrize(
    ("reason", "label"),
    [("stop", "stop"), ("length", "length"), ("cancelled", "abort"), ("error", "error")],
    ids=lambda value: value,
)
def test_a_request_without_usage_counts_only_as_finished(reason, label) -> None:
    metrics = Metrics(["chat"])
    metrics.request_finished("chat", reason)
    values = samples(metrics)
    assert values["vllm:request_success_total", label, "chat"] == 1
    assert values["vllm:e2e_request_latency_seconds_count", "chat"] == 0


def test_an_embedding_has_no_time_to_first_token() -> None:
    metrics = Metrics()
    metrics.request_finished("embed", "stop", Usage(12, 0, 0.0, 0.0, 0.0, 0.1))
    values = samples(metrics)
    assert values["vllm:time_to_first_token_seconds_count", "embed"] == 0
    assert values["vllm:prompt_tokens_total", "embed"] == 12


def test_switches_evictions_and_tiers_are_told_apart() -> None:
    metrics = Metrics()
    metrics.switched("chat", "ddr", "hbm", 1000, 0.02)
    metrics.switched("embed", "ddr", "hbm", 500, 0.01)
    metrics.switched("chat", "disk", "ddr", 1000, 0.5)
    metrics.evicted("embed", "hbm", 3.0)
    metrics.kv_copied(is_saved=True, num_bytes=64)
    metrics.model_bytes("embed", {"ddr": 5})
    metrics.tier("hbm", used_bytes=1500, peak_bytes=2000, budget_bytes=4000)
    values = samples(metrics)
    assert values["plait_switches_total", "hbm", "chat", "ddr"] == 1
    assert values["plait_switches_total", "ddr", "chat", "disk"] == 1
    assert values["plait_transferred_bytes_total", "hbm", "ddr"] == 1500
    assert values["plait_switch_seconds_sum", "hbm", "chat", "ddr"] == pytest.approx(0.02)
    assert values["plait_evictions_total", "embed", "hbm"] == 1
    assert values["plait_age_at_eviction_seconds_sum", "embed", "hbm"] == 3.0
    assert values["plait_kv_transferred_bytes_total", "ddr", "hbm"] == 64  # destination, source
    assert (values["plait_model_bytes", "embed", "hbm"], values["plait_model_bytes", "embed", "ddr"]) == (0, 5)
    assert [values[f"plait_tier_{kind}_bytes", "hbm"] for kind in ("used", "peak", "budget")] == [1500, 2000, 4000]


def test_gauges_hold_the_last_value() -> None:
    metrics = Metrics()
    metrics.queue("chat", running=3, waiting=5)
    metrics.queue("chat", running=1, waiting=0)
    metrics.kv("chat", 0.5)
    values = samples(metrics)
    assert values["vllm:num_requests_running", "chat"] == 1
    assert values["vllm:num_requests_waiting", "chat"] == 0
    assert values["vllm:kv_cache_usage_perc", "chat"] == 0.5


def test_no_increment_is_lost_between_threads() -> None:
    metrics = Metrics()

    def work() -> None:
        for _ in range(500):
            metrics.tokens_generated("chat", 0.01)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert samples(metrics)["vllm:generation_tokens_total", "chat"] == 2000
