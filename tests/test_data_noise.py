"Label noise: confident learning's formulas; planted errors come first; odd inputs do no harm."

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftnb.data.duplicates import normal
from ftnb.data.noise import confident_class, folds_of, label_suspects, plant, ranked


def some(seed: int, n: int = 200, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    classes = np.r_[np.arange(k), rng.integers(0, k, n - k)]
    p = rng.dirichlet(np.ones(k), n) + np.eye(k)[classes] * rng.random((n, 1))
    return p / p.sum(1, keepdims=True), classes


@pytest.mark.parametrize("seed", range(10))
def test_equal_to_cleanlab(seed):
    count = pytest.importorskip("cleanlab.count")
    p, classes = some(seed)
    joint = count.compute_confident_joint(classes, p, calibrate=False)
    ours, best = np.zeros_like(joint), confident_class(p, classes)
    np.add.at(ours, (classes[best >= 0], best[best >= 0]), 1)
    np.fill_diagonal(
        ours, np.maximum(np.diag(ours), 1)
    )  # as cleanlab does, so that no class is empty
    assert (ours == joint).all()
    rank = pytest.importorskip("cleanlab.rank")
    quality = rank.get_label_quality_scores(classes, p, method="self_confidence")
    found = ranked(p, classes)
    assert (np.diff(quality[found]) >= -1e-8).all()


def texts_of(n: int, seed: int = 0) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(seed)
    words = {c: [f"{c}{i}" for i in range(20)] for c in "abc"}
    labels = [str(c) for c in rng.choice(list("abc"), n)]
    return [
        " ".join([*rng.choice(words[y], 4), "the", f"n{i}"]) for i, y in enumerate(labels)
    ], labels


def test_planted_errors_come_first():
    texts, labels = texts_of(600)
    wrong = set(range(0, 600, 15))
    given_labels = [("b" if y == "a" else "a") if i in wrong else y for i, y in enumerate(labels)]
    found = label_suspects(texts, given_labels)
    rows = found.table.row.tolist()
    assert len(wrong & set(rows[:40])) >= 34 and len(wrong & set(rows)) >= 34
    by_row = found.table.set_index("row")
    assert all(by_row.suggested[r] == labels[r] for r in wrong & set(rows))
    assert found.trial and found.trial.recall > 0.8
    assert found.to_dict() == label_suspects(texts, given_labels).to_dict()


@given(
    st.lists(st.sampled_from(["a b", "A  b!", "c", "d e", "f"]), min_size=1, max_size=30),
    st.integers(0, 9),
)
@settings(max_examples=30, deadline=None)
def test_repeated_texts_share_a_fold(texts, seed):
    folds = folds_of(texts, np.zeros(len(texts), int), 5, seed)
    by_text: dict[str, int] = {}
    for t, f in zip(texts, folds, strict=True):
        assert by_text.setdefault(normal(t), f) == f


def test_plant_changes_what_it_says():
    classes = np.arange(100) % 5
    changed, rows = plant(classes, 0.1, 0)
    assert len(rows) == 10 and set(np.flatnonzero(changed != classes)) == set(rows)


@pytest.mark.parametrize(
    "texts, labels",
    [
        ([], []),
        (["a"], ["x"]),
        (["a b"] * 20, ["x"] * 20),
        (list("abcdef"), list("xxyyzz")),
        (["same text"] * 20, ["x", "y"] * 10),
    ],
)
def test_too_little_to_judge(texts, labels):
    found = label_suspects(texts, labels)
    assert found.judged == 0 and found.unjudged == len(texts) and found.table.empty
    assert (
        "could be judged" in found.sentence
        and found.to_dict()["suspects"] == 0
        and found._repr_mimebundle_()
    )


def test_rare_classes_and_limits_are_counted():
    texts, labels = texts_of(300)
    found = label_suspects(
        [*texts, "odd one", "odd two"], [*labels, "rare", "rare"], limit=200, try_out=False
    )
    assert found.judged == 200 and found.unjudged == 102 and "rare" not in set(found.table.label)


def test_probabilities_of_a_better_model():
    texts, labels = texts_of(90)
    names, classes = np.unique(labels, return_inverse=True)
    p = np.full((90, 3), 0.1) + np.eye(3)[classes] * 0.7
    p[5] = p[5][[1, 2, 0]]
    assert label_suspects(texts, labels, probabilities=p).table.row.tolist() == [5]
