from __future__ import annotations

import numpy as np
import pytest

from plait.runtime.events import Sampling
from plait.runtime.sampler import draw_logprobs, sample

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


def greedy(logits: np.ndarray = LOGITS, position: int = 0, context: tuple[int, ...] = (), eos=(), **fields) -> int:
    return sample(logits, Sampling(0.0, 1.0, 0, **fields), position, context, eos)


def kept_by(**fields) -> list[int]:
    return sorted({sample(LOGITS, Sampling(1.0, 1.0, 3, **fields), position) for position in range(400)})


def test_top_k_keeps_the_most_likely_tokens():
    assert kept_by(top_k=1) == [1]
    assert kept_by(top_k=3) == [1, 3, 4]
    assert kept_by(top_k=99) == [0, 1, 2, 3, 4]


def test_min_p_keeps_tokens_with_a_share_of_the_most_likely_ones():
    assert kept_by(min_p=0.6) == [1, 3]  # 0.25 of 0.4 is 0.625 of it, 0.2 is 0.5 of it
    assert kept_by(min_p=0.4) == [1, 3, 4]
    assert kept_by(min_p=1.0) == [1]


def test_penalties_count_what_is_in_the_answer_and_not_in_the_prompt():
    prompt, answer = (1, 1, 1), (1, 1, 3)
    context = (*prompt, *answer)
    assert greedy(position=0, context=prompt, frequency_penalty=2.0, presence_penalty=2.0) == 1
    assert greedy(position=3, context=context, frequency_penalty=0.3) == 1  # twice; by 0.09 ahead of 4
    assert greedy(position=3, context=context, frequency_penalty=0.6) == 4
    assert greedy(position=3, context=context, presence_penalty=0.6) == 1  # once; by the same
    assert greedy(position=3, context=context, presence_penalty=0.8) == 4
    assert greedy(position=3, context=context, presence_penalty=-2.0) == 1


def test_a_repetition_penalty_counts_the_prompt_and_makes_either_sign_less_likely():
    logits = np.array([-1.0, 3.0, 2.0, -0.5], np.float32)
    assert greedy(logits, context=(1,), repetition_penalty=1.4) == 1
    assert greedy(logits, context=(1,), repetition_penalty=1.6) == 2
    negative = np.array([-1.0, -3.0, -2.0, -0.5], np.float32)
    assert greedy(negative, context=(3,), repetition_penalty=2.5) == 0


def test_a_bias_is_added_to_a_tokens_logit():
    assert greedy(logit_bias=((0, 100.0),)) == 0
    assert greedy(logit_bias=((1, -100.0),)) == 3
    assert greedy(logit_bias=((3, 0.4),)) == 1
    assert greedy(logit_bias=((3, 0.5),)) == 3


def test_no_end_comes_before_the_least_number_of_tokens():
    assert greedy(position=1, eos=(1,), min_tokens=2) == 3
    assert greedy(position=1, eos=(1,), ends=(3,), min_tokens=2) == 4
    assert greedy(position=2, eos=(1,), min_tokens=2) == 1
    assert greedy(position=1, eos=(1,), ignores_eos=True, min_tokens=2) == 1


def test_ends_are_the_models_own_and_those_asked_for():
    assert Sampling(0.0, 1.0, 0).is_end(2, (2,))
    assert not Sampling(0.0, 1.0, 0, ignores_eos=True).is_end(2, (2,))
    assert Sampling(0.0, 1.0, 0, ignores_eos=True, ends=(7,)).is_end(7, (2,))
    assert not Sampling(0.0, 1.0, 0, ends=(7,)).is_end(3, (2,))


def test_the_given_logits_are_left_alone():
    logits = LOGITS.copy()
    greedy(logits, 2, (1, 1), eos=(1,), frequency_penalty=1.0, repetition_penalty=2.0, logit_bias=((0, 5.0),))
    assert np.array_equal(logits, LOGITS)


def test_logprobs_are_the_models_own_best_first():
    drawn, *likeliest = draw_logprobs(LOGITS + np.float32(50), 4, 3)
    assert [token for token, _ in likeliest] == [1, 3, 4]
    assert [np.exp(logprob) for _, logprob in (drawn, *likeliest)] == pytest.approx([0.2, 0.4, 0.25, 0.2], rel=1e-5)
    assert draw_logprobs(LOGITS, 4, 0) == (pytest.approx((4, np.log(0.2)), rel=1e-5),)
    assert len(draw_logprobs(LOGITS, 4, 20)) == 6
