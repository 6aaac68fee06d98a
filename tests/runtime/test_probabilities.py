from __future__ import annotations

import numpy as np
import pytest

from plait.runtime.probabilities import probabilities


def test_probabilities_of_exclusive_labels_sum_to_one():
    given = probabilities(np.log(np.array([[1.0, 3.0], [2.0, 2.0]], np.float32)), are_independent=False)
    np.testing.assert_allclose(given, [[0.25, 0.75], [0.5, 0.5]], rtol=1e-6)


def test_independent_labels_have_a_probability_each():
    given = probabilities(np.log(np.array([[1.0, 3.0]], np.float32)), are_independent=True)
    np.testing.assert_allclose(given, [[0.5, 0.75]], rtol=1e-6)


@pytest.mark.parametrize("are_independent", [True, False], ids=["sigmoid", "softmax"])
def test_large_logits_do_not_overflow(are_independent: bool):
    given = probabilities(np.array([[-1e4, 1e4]], np.float32), are_independent=are_independent)
    np.testing.assert_array_equal(given, [[0.0, 1.0]])
    assert given.dtype == np.float32
