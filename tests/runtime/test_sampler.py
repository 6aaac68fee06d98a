from __future__ import annotations

import numpy as np
import pytest

from plait.runtime.events import Sampling
from plait.runtime.sampler import sample

LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.25, 0.2], np.float32))
PROBABILITIES = np.array([0.05, 0.4, 0.1, 0.25, 0.2])
NUM_DRAWS = 4000


def drawn(sampling: Sampling, num_draws: int = NUM_DRAWS) -> np.ndarray:
    """How often each token is drawn at the first so many positions."""
    tokens = [sample(LOGITS, sampling, position) for position in range(num_draws)]
    return np.bincount(tokens, minlength=len(LOGITS))


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_greedy_takes_the_most_likely_token_whatever_the_seed():
    assert {sample(LOGITS, Sampling(0.0, 1.0, seed), seed) for seed in range(20)} == {1}


def test_greedy_takes_the_first_of_equals():
    assert sample(np.zeros(4, np.float32), Sampling(0.0, 1.0, 0), 0) == 0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", [0, 7])
def test_draws_follow_the_distribution_at_a_temperature(temperature: float, seed: int):
    probabilities = PROBABILITIES ** (1 / temperature)
    counts = drawn(Sampling(temperature, 1.0, seed))
    # 18.47 is the 99.9 % quantile at 4 degrees of freedom; the seeds are fixed, so this either holds or it doesn't.
    assert chi_square(counts, probabilities / probabilities.sum()) < 18.47


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.3, [1]), (0.39, [1]), (0.6, [1, 3]), (0.7, [1, 3, 4]), (0.9, [1, 2, 3, 4]), (0.97, [0, 1, 2, 3, 4])],
    ids=str,
)
def test_top_p_keeps_the_fewest_most_likely_tokens_that_reach_it(top_p: float, kept: list[int]):
    counts = drawn(Sampling(1.0, top_p, 3), 1500)
    assert np.flatnonzero(counts).tolist() == kept
    if len(kept) > 1:
        share = PROBABILITIES[kept] / PROBABILITIES[kept].sum()
        assert chi_square(counts[kept], share) < 18.47


def test_a_draw_depends_on_seed_and_position_alone():
    sampling = Sampling(1.0, 1.0, 2**63 - 1)
    forwards = [sample(LOGITS, sampling, position) for position in range(50)]
    backwards = [sample(LOGITS.copy(), sampling, position) for position in reversed(range(50))]
    assert forwards == backwards[::-1]


def test_seeds_and_positions_draw_apart():
    rows = {tuple(sample(LOGITS, Sampling(1.0, 1.0, seed), position) for position in range(40)) for seed in range(20)}
    assert len(rows) == 20


def test_the_level_of_the_logits_means_nothing():
    sampling = Sampling(0.8, 0.9, 5)
    shifted = LOGITS + np.float32(64)
    assert [sample(LOGITS, sampling, p) for p in range(50)] == [sample(shifted, sampling, p) for p in range(50)]


@pytest.mark.parametrize("temperature", [1e-3, 1e-310])
def test_next_to_no_temperature_is_greedy(temperature: float):
    assert {sample(LOGITS, Sampling(temperature, 1.0, 1), position) for position in range(50)} == {1}


def test_masked_tokens_are_never_drawn():
    logits = np.where(np.arange(5) % 2, LOGITS, -np.inf).astype(np.float32)
    assert {sample(logits, Sampling(2.0, 1.0, 1), position) for position in range(200)} == {1, 3}
