import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.runtime.sampling import Sampling

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


def test_greedy_takes_the_first_of_the_largest():
    rng = np.random.default_rng(0)
    assert Sampling().choose(np.array([0.0, 2.0, 2.0, -np.inf], np.float32), rng) == 1
    np.testing.assert_array_equal(Sampling().probabilities(LOGITS), [0, 1, 0, 0])


def test_temperature():
    np.testing.assert_allclose(Sampling(1.0).probabilities(LOGITS), [0.1, 0.4, 0.2, 0.3], atol=1e-7)
    squared = np.array([0.01, 0.16, 0.04, 0.09])
    np.testing.assert_allclose(Sampling(0.5).probabilities(LOGITS), squared / squared.sum(), atol=1e-7)
    np.testing.assert_allclose(Sampling(1e-300).probabilities(LOGITS), [0, 1, 0, 0])


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (0.3, [0, 1, 0, 0]),
        (0.39, [0, 1, 0, 0]),
        (0.5, [0, 4 / 7, 0, 3 / 7]),
        (0.85, [0, 4 / 9, 2 / 9, 3 / 9]),
        (0.95, [0.1, 0.4, 0.2, 0.3]),
        (1.0, [0.1, 0.4, 0.2, 0.3]),
    ],
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p, expected):
    np.testing.assert_allclose(Sampling(1.0, top_p).probabilities(LOGITS), expected, atol=1e-6)


def test_frequencies_follow_the_probabilities():
    """Pearson's chi-square over 20000 draws; 16.3 is its 0.1% point for 3 degrees of freedom."""
    rng, sampling, draws = np.random.default_rng(1), Sampling(0.8), 20000
    counts = np.bincount([sampling.choose(LOGITS, rng) for _ in range(draws)], minlength=4)
    expected = sampling.probabilities(LOGITS) * draws
    assert ((counts - expected) ** 2 / expected).sum() < 16.3


def test_seed_repeats():
    def draw():
        rng = np.random.default_rng(7)
        return [Sampling(1.0, 0.9).choose(LOGITS, rng) for _ in range(50)]

    assert draw() == draw() and len(set(draw())) > 1


@settings(deadline=None)
@given(
    logits=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=50),
    temperature=st.floats(1e-3, 100.0),
    top_p=st.floats(1e-6, 1.0),
)
def test_probabilities_are_a_distribution_over_the_best(logits, temperature, top_p):
    logits = np.array(logits, np.float32)
    probabilities = Sampling(temperature, top_p).probabilities(logits)
    assert probabilities.sum() == pytest.approx(1.0) and (probabilities >= 0).all()
    assert probabilities[logits.argmax()] > 0
    kept = probabilities > 0
    if (~kept).any():
        assert logits[kept].min() >= logits[~kept].max()


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_impossible_temperature(temperature):
    with pytest.raises(NVFP4Error, match="temperature is"):
        Sampling(temperature)


@pytest.mark.parametrize("top_p", [0.0, -0.1, 1.5, float("nan")])
def test_impossible_top_p(top_p):
    with pytest.raises(NVFP4Error, match="top_p is"):
        Sampling(1.0, top_p)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers(bad, temperature):
    logits = np.array([0.0, bad, 1.0], np.float32)
    with pytest.raises(NVFP4Error, match="for token 1, expected finite numbers"):
        Sampling(temperature).choose(logits, np.random.default_rng(0))
    with pytest.raises(NVFP4Error, match="expected finite numbers"):
        Sampling(temperature).probabilities(np.full(3, -np.inf, np.float32))
