"Populations in which the truth is known, to measure coverage and size in."

import numpy as np

from ftnb.evaluate.counts import auc, f1, log_losses, macro, row_margins


def world(classes, rows, strength, overconfident=1.0, group=1, shared=0.5, skew=0.0, seed=0):
    "Rows in groups with a classifier's probabilities: (truth, probabilities)."
    rng = np.random.default_rng(seed)
    share = np.exp(-skew * np.arange(classes))
    share /= share.sum()
    labels = np.repeat(rng.choice(classes, rows // group, p=share), group)
    logits = rng.normal(size=(rows, classes))
    if group > 1:
        logits = (
            logits * (1 - shared) ** 0.5
            + np.repeat(rng.normal(size=(rows // group, classes)), group, 0) * shared**0.5
        )
    logits = logits * strength**0.5
    logits[np.arange(rows), labels] += strength
    logits = logits * overconfident + np.log(share)
    e = np.exp(logits - logits.max(1, keepdims=True))
    return labels, e / e.sum(1, keepdims=True)


def draws(rows, groups, size, runs, seed):
    "Row numbers of test sets of whole groups, and their groups (None where each row is its own)."
    rng = np.random.default_rng(seed)
    for _ in range(runs):
        drawn = (rng.integers(0, rows // size, groups)[:, None] * size + np.arange(size)).ravel()
        yield drawn, (np.repeat(np.arange(groups), size) if size > 1 else None)


def truths(labels, p):
    "The population's metrics."
    m = row_margins(labels, p.argmax(1), p.shape[1])
    return {
        "accuracy": (p.argmax(1) == labels).mean(),
        "macro_f1": float(macro(f1(m), m)),
        "auc": auc(labels, p),
        "log_loss": log_losses(labels, p).mean(),
    }
