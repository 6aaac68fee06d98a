from __future__ import annotations

from pathlib import Path

import pytest

from plait.errors import ConfigurationError, ModelNotFoundError
from plait.runtime.bench.engine import EngineRates, Rate, _overlap_rate, measure_engine
from plait.runtime.engine import Runtime


def test_a_rate_is_of_the_time_in_which_all_answers_are_under_way() -> None:
    first = [float(second) for second in range(20)]
    second = [5.0 + 0.5 * step for step in range(20)]  # from 5 to 14.5
    # After 5 and until 14.5: 9 tokens of the first, 19 of the second.
    assert _overlap_rate([first, second]) == pytest.approx(28 / 9.5)


@pytest.mark.parametrize(
    "answers",
    [[[], [1.0, 2.0]], [[1.0, 2.0], [3.0, 4.0]], [[1.0], [1.0]]],
    ids=["no token", "one after the other", "a token each"],
)
def test_answers_that_are_not_under_way_together_have_no_rate(answers: list[list[float]]) -> None:
    assert _overlap_rate(answers) is None


def test_the_share_of_the_roofline_is_the_time_to_read_over_the_time_of_a_step() -> None:
    rates = EngineRates("chat", 2_000, 1e6, (Rate(8, 1000.0, 900.0, 1100.0),), (), ())
    assert rates.roofline_share(rates.decode[0]) == pytest.approx(0.002 / 0.008)
    (decode,) = rates.to_json()["decode"]  # type: ignore[misc]
    assert decode["step_seconds"] == pytest.approx(0.008)  # type: ignore[index]


def test_a_bundle_is_measured_as_far_as_it_allows(tiny_bundle: Path) -> None:
    done: list[tuple[int, int]] = []
    with Runtime(tiny_bundle) as runtime:
        rates = measure_engine(runtime, "assistant", num_runs=1, progress=lambda now, total: done.append((now, total)))
        with pytest.raises(ConfigurationError, match="model 'embed' is none that generates"):
            measure_engine(runtime, "embed")
        with pytest.raises(ModelNotFoundError, match="'nobody'"):
            measure_engine(runtime, "nobody")
    assert rates.model == "chat"
    assert [rate.size for rate in rates.decode] == [1, 4]
    assert all(0 < rate.least <= rate.tokens_per_s <= rate.most for rate in rates.decode)
    assert rates.prefill == ()  # its context has 128 tokens, which leaves none for an answer
    assert "decode, 8 at once: not allowed by the bundle" in rates.left_out
    assert done[-1] == (4, 4)
    assert "of roofline" in rates.tables()[0].as_text()


def test_prompts_that_fit_are_prefilled(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plait.runtime.bench.engine.PROMPTS", (32, 4096))
    with Runtime(tiny_bundle) as runtime:
        rates = measure_engine(runtime, num_runs=1)
    assert [rate.size for rate in rates.prefill] == [32]
    assert "prefill of 4096 tokens: longer than the bundle allows" in rates.left_out
