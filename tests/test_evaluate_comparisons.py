"Size and power of the paired tests, and the words they allow."

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from ftnb.evaluate import comparisons as c
from ftnb.evaluate.counts import f1, log_losses, macro
from ftnb.foundation.intervals import Interval


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=120))
def test_mcnemar_equals_statsmodels(rows):
    a, b = np.array(rows).T
    both = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    expected = mcnemar(both, exact=True).pvalue if (a != b).any() else 1.0
    assert c.mcnemar(a, b) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=25))
def test_holm_equals_statsmodels(p):
    np.testing.assert_allclose(c.holm(p), multipletests(p, method="holm")[1], atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=12))
def test_flips_of_right_and_wrong_are_mcnemar(d):
    assert c.sign_flip(np.array(d)) == pytest.approx(
        c.mcnemar(np.array(d) > 0, np.array(d) < 0), abs=1e-9
    )


def equals(rng, groups, size, classes=4, together=0.6, sure=1.0):
    "Two equally good models: truth, probabilities of each, groups."
    n = groups * size
    truth = np.repeat(rng.integers(0, classes, groups), size)

    def model():
        logits = (
            rng.normal(size=(n, classes)) * (1 - together) ** 0.5
            + np.repeat(rng.normal(size=(groups, classes)), size, 0) * together**0.5
        )
        logits[np.arange(n), truth] += 2.2
        e = np.exp(logits * 1.5 * sure)
        return e / e.sum(1, keepdims=True)

    return truth, model(), model(), np.repeat(np.arange(groups), size)


def sizes(runs, groups, size, seed=0, permutations=400):
    "How often a test calls equals different at 5 %, and how often the interval holds 0."
    rng, calls, covers = np.random.default_rng(seed), [], []
    for _ in range(runs):
        truth, a, b, g = equals(rng, groups, size)
        made = c.compare(
            truth, a, b, groups=g if size > 1 else None, replicates=400, permutations=permutations
        )
        calls.append([x.p < 0.05 for x in made])
        covers.append([0 in x.difference for x in made])
    return np.mean(calls, 0), np.mean(covers, 0)


def test_size_in_short():
    calls, covers = sizes(60, 50, 4, permutations=400)
    assert (calls <= 0.14).all() and (covers >= 0.85).all(), (calls, covers)


@pytest.mark.slow
@pytest.mark.parametrize("groups, size", [(250, 1), (60, 4)])
def test_size(groups, size):
    "A 5 % test calls 3 to 7 % of ties (exact McNemar may call fewer); intervals cover."
    calls, covers = sizes(600, groups, size, permutations=1600)
    print(
        groups,
        size,
        "size",
        dict(zip(("accuracy", "macro_f1", "log_loss"), calls, strict=True)),
        "coverage",
        covers,
    )
    assert (calls <= 0.07 + 0.015).all() and (calls[1:] >= 0.03 - 0.012).all(), calls
    assert (covers >= 0.93 - 0.015).all() and (covers <= 0.97 + 0.015).all(), covers


def test_a_real_difference_is_found_and_swapping_models_turns_it_round():
    rng = np.random.default_rng(3)
    truth, a, _, g = equals(rng, 100, 3)
    b = 0.35 * a + 0.65 * rng.dirichlet(np.ones(4), 300)
    ours = c.corrected(c.compare(truth, a, b, groups=g, replicates=300, permutations=800))
    theirs = c.corrected(c.compare(truth, b, a, groups=g, replicates=300, permutations=800))
    assert [x.verdict for x in ours] == ["better"] * 3 and [x.verdict for x in theirs] == [
        "worse"
    ] * 3
    for x, y in zip(ours, theirs, strict=True):
        assert x.difference.estimate == pytest.approx(-y.difference.estimate)
    assert log_losses(truth, b).mean() - log_losses(truth, a).mean() == pytest.approx(
        ours[2].difference.estimate
    )


def test_equal_predictions_are_a_tie_without_promises():
    rng = np.random.default_rng(0)
    truth, a, _, _ = equals(rng, 50, 1)
    made = c.corrected(c.compare(truth, a, a, replicates=100, permutations=100))
    assert all(x.p == 1 and x.verdict == "tie" for x in made)
    assert c.swap(lambda m: macro(f1(m), m), truth, a.argmax(1), a.argmax(1), 4) == 1
    assert "could have seen" not in str(made[2])


@settings(max_examples=100, deadline=None)
@given(st.floats(-0.3, 0.3), st.floats(0.001, 0.2), st.floats(0, 1), st.integers(1, 9))
def test_the_sentence_says_what_the_corrected_test_says(estimate, reach, p, m):
    x = c.Comparison(
        "accuracy",
        "model",
        "tfidf",
        Interval(estimate, estimate - reach, estimate + reach),
        p,
        "exact McNemar",
        min(1.0, p * m),
        m,
        reach,
    )
    said = str(x)
    assert ("no evidence" in said) == (min(1.0, p * m) >= 0.05)
    if "no evidence" not in said:
        assert ("better" in said) == (estimate > 0)
    assert ("Holm" in said) == (m > 1)


@pytest.mark.slow
def test_the_detectable_difference_is_detected_four_times_in_five():
    rng, n, found, differ = np.random.default_rng(5), 400, [], 0.1

    def pair(gain):  # a tenth of the rows is answered differently, most of them better by a
        d = np.where(
            rng.random(n) < differ, np.where(rng.random(n) < (1 + gain / differ) / 2, 1, -1), 0
        )
        a = np.where(d == 0, rng.random(n) < 0.85, d > 0)
        return a, np.where(d == 0, a, d < 0)

    least = np.mean([c.detectable(c.accuracy_difference(*pair(0))) for _ in range(50)])
    for _ in range(1500):
        found.append(c.mcnemar(*pair(least)) < 0.05)
    print("detectable", least, "power", np.mean(found))
    assert 0.7 <= np.mean(found) <= 0.9
