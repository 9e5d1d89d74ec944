"Metrics of counts and of probabilities against scikit-learn, on random and on degenerate tables."

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from ftnb.evaluate import counts as c


def close(ours, reference):
    "Equal to 1e-9."
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-9)


ANY = st.integers(2, 7)


@st.composite
def answers(draw, classes=ANY):
    "Truth and prediction, often with classes that are absent on one side or on both."
    k = draw(classes)
    some = st.lists(
        st.sampled_from(draw(st.lists(st.integers(0, k - 1), min_size=1, max_size=k))),
        min_size=1,
        max_size=60,
    )
    truth = draw(some)
    predicted = draw(st.lists(st.integers(0, k - 1), min_size=len(truth), max_size=len(truth)))
    return np.array(truth), np.array(predicted), k


@st.composite
def scored(draw, ties=True):
    "Truth and probabilities, with ties."
    truth, _, k = draw(answers(st.integers(2, 5)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    p = rng.integers(1, 5 if ties else 10**6, (len(truth), k)).astype(float)
    return truth, p / p.sum(1, keepdims=True)


def quiet(f, *a, **k):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return f(*a, **k)


@settings(max_examples=150, deadline=None)
@given(answers())
def test_counts_equal_sklearn(rows):
    truth, predicted, k = rows
    m = c.margins(c.confusion(truth, predicted, k))
    theirs = quiet(
        sk.precision_recall_fscore_support, truth, predicted, labels=range(k), zero_division=0
    )
    for ours, reference in zip((c.precision(m), c.recall(m), c.f1(m)), theirs[:3], strict=True):
        close(ours, reference)
    for name, f in [("macro", c.macro), ("weighted", c.weighted)]:
        for values, score in [
            (c.precision, sk.precision_score),
            (c.recall, sk.recall_score),
            (c.f1, sk.f1_score),
        ]:
            close(f(values(m), m), quiet(score, truth, predicted, average=name, zero_division=0))
    close(c.accuracy(m), sk.accuracy_score(truth, predicted))
    close(c.accuracy(m), sk.f1_score(truth, predicted, average="micro"))
    close(c.balanced_accuracy(m), quiet(sk.balanced_accuracy_score, truth, predicted))
    close(c.mcc(m), quiet(sk.matthews_corrcoef, truth, predicted))


@settings(max_examples=60, deadline=None)
@given(answers(), st.integers(0, 2**32 - 1))
def test_weights_are_repeated_rows(rows, seed):
    truth, predicted, k = rows
    weights = np.random.default_rng(seed).integers(0, 3, (4, len(truth)))
    weights[weights.sum(1) == 0, 0] = 1
    many = c.row_margins(truth, predicted, k, weights)
    for r, w in enumerate(weights):
        again = np.repeat(np.arange(len(truth)), w)
        one = c.margins(c.confusion(truth[again], predicted[again], k))
        for metric in (c.accuracy, c.mcc, c.balanced_accuracy, lambda m: c.macro(c.f1(m), m)):
            close(metric(many)[r], metric(one))


@settings(max_examples=150, deadline=None)
@given(scored())
def test_probabilities_equal_sklearn(rows):
    truth, p = rows
    k = p.shape[1]
    close(c.log_losses(truth, p).mean(), sk.log_loss(truth, p, labels=range(k)))
    close(
        c.briers(truth, p).mean(),
        sk.brier_score_loss(
            truth,
            p if k > 2 else p[:, 1],
            labels=list(range(k)),
            **({"pos_label": 1} if k == 2 else {}),
        ),
    )
    each = c.aucs(truth, p)
    for label in range(k):
        belongs = truth == label
        if belongs.all() or not belongs.any():
            assert np.isnan(each[label])
        else:
            close(each[label], sk.roc_auc_score(belongs, p[:, label]))
    if len(set(truth)) == k:
        reference = (
            sk.roc_auc_score(truth, p[:, 1])
            if k == 2
            else sk.roc_auc_score(truth, p, multi_class="ovr")
        )
        close(c.auc(truth, p), reference)


@pytest.mark.parametrize(
    "truth, predicted",
    [([0], [0]), ([0], [1]), ([1, 1, 1], [1, 1, 1]), ([0, 0], [1, 1]), ([0, 1], [1, 0])],
)
def test_degenerate_tables(truth, predicted):
    m = c.margins(c.confusion(np.array(truth), np.array(predicted), 3))
    close(c.mcc(m), quiet(sk.matthews_corrcoef, truth, predicted))
    close(
        c.macro(c.f1(m), m), quiet(sk.f1_score, truth, predicted, average="macro", zero_division=0)
    )


def test_a_certain_mistake_costs_a_finite_loss():
    assert c.log_losses(np.array([0]), np.array([[0.0, 1.0]]))[0] == pytest.approx(
        sk.log_loss([0], [[0.0, 1.0]], labels=[0, 1]), abs=1e-9
    )
