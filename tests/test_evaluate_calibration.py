"Calibration: bins, the usual number against an independent count, the corrected one at its edges."

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftnb.evaluate import calibration as c


def usual(confidence, right, bins, edges):
    "Expected calibration error, bin by bin, as in the paper."
    total, ends = 0.0, np.r_[-np.inf, edges, np.inf]
    for low, high in zip(ends[:-1], ends[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9, 1.0]), st.booleans()),
        min_size=1,
        max_size=80,
    ),
    st.integers(2, 12),
    st.sampled_from(["equal mass", "equal width"]),
)
def test_the_usual_number_equals_an_independent_count(rows, bins, binning):
    confidence, right = np.array([x for x, _ in rows]), np.array([y for _, y in rows])
    edges = c.bin_edges(confidence, bins, binning)
    assert c.ece_plugin(confidence, right, c.in_bins(confidence, edges)) == pytest.approx(
        usual(confidence, right, bins, edges), abs=1e-9
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.integers(0, 10**6), st.booleans(), st.integers(2, 15))
def test_any_rows_get_an_interval(n, seed, grouped, bins):
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.3, 1, n)
    i = c.ece(
        confidence,
        rng.random(n) < confidence,
        rng.integers(0, 5, n) if grouped else None,
        replicates=60,
        bins=bins,
    )
    assert 0 <= i.low <= i.estimate <= i.high <= 2


@pytest.mark.parametrize("right", [True, False])
def test_one_value_of_confidence(right):
    confidence = np.full(100, 0.8)
    i = c.ece(confidence, np.full(100, right), replicates=200)
    wrong = 0.2 if right else 0.8
    assert i.low - 1e-9 <= wrong <= i.high + 1e-9 and i.high < wrong + 0.1


def test_a_calibrated_model_is_not_accused_and_a_bad_one_is():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.4, 1, 800)
    assert c.ece(confidence, rng.random(800) < confidence).low == 0
    assert c.ece(confidence, rng.random(800) < confidence - 0.15).low > 0.05


def test_same_seed_same_interval_and_order_of_rows_does_not_matter_much():
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.4, 1, 300)
    right, shuffled = rng.random(300) < confidence - 0.05, rng.permutation(300)
    assert c.ece(confidence, right) == c.ece(confidence, right)
    again = c.ece(confidence[shuffled], right[shuffled])
    assert again.high == pytest.approx(c.ece(confidence, right).high, abs=0.02)


def test_reliability_counts_every_row():
    rng = np.random.default_rng(2)
    confidence = rng.uniform(0.2, 1, 333)
    curve = c.reliability(confidence, rng.random(333) < confidence, bins=7)
    assert curve.rows.sum() == 333 and all(s.low <= s.estimate <= s.high for s in curve.shares)
    assert "Reliability" in c.reliability_picture({"a": curve}).alt
