"""Intervals for all metrics of a classifier: counts once, or scikit-learn again on every resample.

Both sides compute accuracy, macro precision, recall and F1, Matthews correlation, macro AUC, log
loss and Brier score on the same number of bootstrap resamples of the same 2,000 rows of 20 classes,
one after the other in one process, one thread.
"""
import time

import numpy as np
from sklearn import metrics as sk
from threadpoolctl import threadpool_limits

from ftnb.evaluate.bootstrap import metric_intervals

ROWS, CLASSES, REPLICATES, ROUNDS = 2000, 20, 100, 3


def answers(seed: int) -> tuple[np.ndarray, np.ndarray]:
    "Truth and probabilities of a classifier that is right about 80 % of the time."
    rng = np.random.default_rng(seed)
    truth = rng.integers(CLASSES, size=ROWS)
    scores = rng.normal(size=(ROWS, CLASSES))
    scores[np.arange(ROWS), truth] += 3
    odds = np.exp(scores)
    return truth, odds / odds.sum(1, keepdims=True)


def with_scikit_learn(truth: np.ndarray, probabilities: np.ndarray, seed: int) -> list[list[float]]:
    "The same metrics from scikit-learn, computed anew on each resample."
    rng, labels, found = np.random.default_rng(seed), np.arange(CLASSES), []
    for _ in range(REPLICATES):
        rows = rng.integers(ROWS, size=ROWS)
        t, p = truth[rows], probabilities[rows]
        said = p.argmax(1)
        found.append([
            sk.accuracy_score(t, said), sk.balanced_accuracy_score(t, said),
            sk.matthews_corrcoef(t, said),
            *sk.precision_recall_fscore_support(t, said, average="macro", zero_division=0)[:3],
            sk.roc_auc_score(t, p, multi_class="ovr", labels=labels),
            sk.log_loss(t, p, labels=labels),
            float(((p - np.eye(CLASSES)[t]) ** 2).sum(1).mean())])
    return found


def seconds(work, *arguments, **options) -> float:
    start = time.process_time()
    work(*arguments, **options)
    return time.process_time() - start


if __name__ == "__main__":
    with threadpool_limits(1):
        truth, probabilities = answers(1)
        metric_intervals(truth, probabilities, replicates=10)   # imports and caches, both sides
        pairs = [(seconds(metric_intervals, truth, probabilities, replicates=REPLICATES, seed=s),
                  seconds(with_scikit_learn, truth, probabilities, s)) for s in range(ROUNDS)]
    ours, theirs = np.median(pairs, axis=0)
    ratios = sorted(b / a for a, b in pairs)
    print(f"intervals of 9 metrics, {ROWS:,} rows, {CLASSES} classes, {REPLICATES} resamples, "
          f"CPU seconds, median of {ROUNDS}")
    print(f"  ftnb (counts)            {ours:8.3f}")
    print(f"  scikit-learn, each time  {theirs:8.3f}")
    middle = ratios[len(ratios) // 2]
    print(f"  ratio                    {middle:8.1f}   ({ratios[0]:.1f} to {ratios[-1]:.1f})")
