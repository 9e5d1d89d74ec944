"Do intervals cover? The long measurements are marked slow; a short one always runs."

import numpy as np
import pytest
from evaluate_worlds import draws, truths, world
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from ftnb.evaluate import bootstrap as b
from ftnb.evaluate.calibration import bin_edges, ece, ece_plugin, in_bins
from ftnb.foundation.errors import BadInput


def intervals(t, p, g):
    "The four intervals whose coverage is measured."
    from ftnb.evaluate.counts import f1, log_losses, macro

    value = b.from_counts(lambda m: macro(f1(m), m), t, p.argmax(1), p.shape[1])
    return {
        "accuracy": b.share(p.argmax(1) == t, g),
        "macro_f1": b.bounded(value, len(t), g, replicates=400),
        "auc": b.area(t, p, g),
        "log_loss": b.mean(log_losses(t, p), g, replicates=1000),
    }


def coverage(setting, groups, size, runs, seed=1):
    labels, p = world(rows=120_000, group=size, **setting)
    truly = truths(labels, p)
    inside: dict[str, list[bool]] = {}
    for rows, g in draws(len(labels), groups, size, runs, seed):
        for name, i in intervals(labels[rows], p[rows], g).items():
            inside.setdefault(name, []).append(truly[name] in i)
    return {name: float(np.mean(v)) for name, v in inside.items()}


def calibration_coverage(setting, groups, size, runs, seed=1):
    labels, p = world(rows=120_000, group=size, **setting)
    confidence, right, inside = p.max(1), p.argmax(1) == labels, []
    for rows, g in draws(len(labels), groups, size, runs, seed):
        target = ece_plugin(confidence, right, in_bins(confidence, bin_edges(confidence[rows])))
        inside.append(target in ece(confidence[rows], right[rows], g, replicates=300))
    return float(np.mean(inside))


WORLDS = {  # name → population, groups, rows a group
    "two classes, 200 rows": ({"classes": 2, "strength": 3}, 200, 1),
    "two classes, overconfident, 400 rows": (
        {"classes": 2, "strength": 3, "overconfident": 1.5},
        400,
        1,
    ),
    "three classes, skewed, 75 groups of 4": (
        {"classes": 3, "strength": 5, "overconfident": 1.5, "skew": 0.4},
        75,
        4,
    ),
    "twenty classes, 150 groups of 4": ({"classes": 20, "strength": 9}, 150, 4),
    "twenty classes, overconfident, 500 rows": (
        {"classes": 20, "strength": 9, "overconfident": 1.5},
        500,
        1,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_coverage(name):
    "Nominal 95 % covers in 93 to 97 %, give or take the 1.5 points that 800 runs leave."
    found = coverage(*WORLDS[name], runs=800)
    print(name, found)
    assert all(0.93 - 0.015 <= v <= 0.97 + 0.015 for v in found.values()), found


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_coverage_of_the_calibration_error(name):
    found = calibration_coverage(*WORLDS[name], runs=500)
    print(name, found)
    assert 0.93 - 0.02 <= found <= 0.97 + 0.02


def test_coverage_in_short():
    found = coverage({"classes": 4, "strength": 5, "overconfident": 1.3}, 70, 4, runs=120)
    assert all(v >= 0.88 for v in found.values()), found
    assert calibration_coverage({"classes": 4, "strength": 5}, 70, 4, runs=60) >= 0.85


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 400), st.floats(0, 1), st.floats(0.5, 0.999))
def test_wilson_equals_statsmodels(n, share, level):
    k = round(n * share)
    i = b.wilson(k, n, level)
    np.testing.assert_allclose(
        (i.low, i.high), proportion_confint(k, n, 1 - level, "wilson"), atol=1e-9
    )
    assert 0 <= i.low <= i.estimate <= i.high <= 1


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(2, 5), st.integers(0, 10**6), st.booleans())
def test_every_interval_holds_its_estimate(n, classes, seed, grouped):
    rng = np.random.default_rng(seed)
    t, p = rng.integers(0, classes, n), rng.dirichlet(np.ones(classes), n)
    groups = rng.integers(0, max(2, n // 3), n) if grouped else None
    for name, i in b.metric_intervals(t, p, groups, replicates=60, seed=seed).items():
        assert i.low - 1e-9 <= i.estimate <= i.high + 1e-9, (name, i)


def test_copies_of_rows_make_no_interval_narrower():
    labels, p = world(3, 200, 4)
    four = np.repeat(np.arange(200), 4)
    one, copied = intervals(labels, p, None), intervals(labels[four], p[four], four)
    for name in one:
        assert copied[name].high - copied[name].low > 0.9 * (one[name].high - one[name].low), name


def test_perfect_and_constant_models():
    t = np.arange(60) % 3
    found = b.metric_intervals(t, np.eye(3)[t], replicates=100)
    for name in ("accuracy", "macro_f1", "auc"):
        assert found[name].estimate == 1 and 0.8 < found[name].low < 1, name
    constant = b.metric_intervals(t, np.full((60, 3), 1 / 3), replicates=100)
    assert constant["auc"].estimate == 0.5 and constant["log_loss"].low == constant["log_loss"].high


def test_one_class_leaves_the_area_out():
    assert "auc" not in b.metric_intervals(np.zeros(20, int), np.full((20, 2), 0.5), replicates=50)


def test_same_seed_same_interval():
    labels, p = world(3, 300, 4)
    assert b.metric_intervals(labels, p, replicates=100, seed=3) == b.metric_intervals(
        labels, p, replicates=100, seed=3
    )


def test_groups_must_fit():
    with pytest.raises(BadInput):
        b.share(np.ones(3), ["a", "b"])
