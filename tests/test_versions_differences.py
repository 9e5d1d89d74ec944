"Differences between versions: coverage and false alarms in worlds whose truth is known."

import numpy as np
import pytest
from compare_worlds import metrics, world

from ftnb.foundation.intervals import Interval
from ftnb.versions import differences as d

CELLS: dict[str, tuple[dict, int]] = {   # name → world, groups drawn
    "2 classes, 150 rows": (dict(classes=2), 150),
    "4 classes, 400 rows": (dict(classes=4), 400),
    "4 classes, 80 groups of 1 to 8": (dict(classes=4, largest=8), 80),
    "20 classes, 300 groups of 1 to 5": (
        dict(classes=20, largest=5, skew=.1, strength=(4, 5)), 300),
}


def simulate(w, groups, runs, seed=0, replicates=400, permutations=400):
    "For every metric: share of intervals that hold the truth; and of runs with a false alarm."
    rng, truth, held, alarms = np.random.default_rng(seed), w.changes, [], []
    for i in range(runs):
        made = d.paired_differences(w.draw(groups, rng), replicates=replicates,
                                    permutations=permutations, seed=i)
        held.append([truth[x.name] in x.change for x in made])
        alarms.append([x.verdict != "no evidence" for x in made])
    names = [x.name for x in made]
    return dict(zip(names, np.mean(held, 0), strict=True)), float(np.any(alarms, axis=1).mean())


def equal(about):
    "The same world with two models that are equally good."
    strength = about.get("strength", (2.5, 3.2))[0]
    return about | dict(strength=(strength, strength), overconfident=(1.2, 1.2))


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_intervals_cover(cell):
    "93 to 97 % of intervals hold the planted difference; a calibration error near 0 may do better."
    about, groups = CELLS[cell]
    held, _ = simulate(world(**about, seed=1), groups, 2000)
    print(cell, "covers", {k: round(float(v), 4) for k, v in held.items()})
    slack = 2 * (.05 * .95 / 2000)**.5
    assert all(.93 - slack <= v <= .97 + slack for v in held.values()), held


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_false_alarms(cell):
    "Of equally good models, at most 5 % are told apart in any of ten metrics."
    about, groups = CELLS[cell]
    _, alarms = simulate(world(**equal(about), seed=1), groups, 2000)
    print(cell, "false alarms", alarms)
    assert alarms <= .05 + 2 * (.05 * .95 / 2000)**.5


@pytest.fixture(scope="module")
def small():
    return world(classes=3, largest=4, rows=40_000, seed=5)


def test_coverage_in_short(small):
    held, _ = simulate(small, 70, 80, replicates=200, permutations=200)
    assert all(v >= .84 for v in held.values()), held


def test_metrics_of_a_sample_are_those_of_the_population(small):
    "The differences are the metrics' own: recomputed on the same rows, they are equal."
    pair = small.draw(60, np.random.default_rng(1))
    made = {x.name: x for x in d.paired_differences(pair, replicates=50, permutations=50)}
    a, b = (metrics(pair.truth, p) for p in (pair.a, pair.b))
    for name in set(d.METRICS) - {"calibration_error"}:
        assert made[name].a == pytest.approx(a[name]) and made[name].b == pytest.approx(b[name])
        assert made[name].change.estimate == pytest.approx(b[name] - a[name])


def test_swapping_the_versions_turns_everything_round(small):
    pair = small.draw(80, np.random.default_rng(2))
    there = d.paired_differences(pair, replicates=200, permutations=400)
    back = d.paired_differences(
        d.Pair(pair.truth, pair.b, pair.a, pair.groups), replicates=200, permutations=400)
    for x, y in zip(there, back, strict=True):
        assert x.change.estimate == pytest.approx(-y.change.estimate)
        assert x.change.low == pytest.approx(-y.change.high, abs=.02)
        assert x.p == pytest.approx(y.p, abs=.05)


def test_mover_of_symmetric_intervals_is_the_textbooks():
    a, b = Interval(.5, .4, .6), Interval(.7, .6, .8)
    found, p = d.mover(a, b)
    assert (found.low, found.high) == pytest.approx((.2 - .1 * 2**.5, .2 + .1 * 2**.5))
    assert p < .05 and (0 in found) == (p > .05)
