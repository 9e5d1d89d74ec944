"Pairs of models whose true differences are known: a large population, and test sets drawn from it."
from dataclasses import dataclass

import numpy as np

from ftnb.evaluate.calibration import bin_edges, ece_plugin, in_bins
from ftnb.evaluate.counts import aucs, briers, log_losses, row_margins
from ftnb.versions.differences import COUNTED, Pair


@dataclass(frozen=True)
class World:
    "A population of groups of rows that two models answered; their errors are alike."
    truth: np.ndarray
    a: np.ndarray
    b: np.ndarray
    starts: np.ndarray   # (groups + 1,) where each group's rows begin

    @property
    def changes(self) -> dict[str, float]:
        "What every metric's difference is in the population."
        a, b = (metrics(self.truth, p) for p in (self.a, self.b))
        return {name: b[name] - a[name] for name in a}

    def draw(self, groups: int, rng: np.random.Generator) -> Pair:
        "A test set of so many groups."
        chosen = rng.integers(0, len(self.starts) - 1, groups)
        sizes = np.diff(self.starts)[chosen]
        codes = np.repeat(np.arange(groups), sizes)
        within = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        rows = self.starts[chosen][codes] + within
        single = sizes.max() == 1
        return Pair(self.truth[rows], self.a[rows], self.b[rows], None if single else codes)


def metrics(truth, p) -> dict[str, float]:
    "Every metric, of a population."
    m = row_margins(truth, p.argmax(1), p.shape[1])
    area, sure, right = aucs(truth, p), p.max(1), p.argmax(1) == truth
    return {
        "accuracy": float(right.mean()), **{k: float(f(m)) for k, f in COUNTED.items()},
        "auc": float(area[1] if len(area) == 2 else area.mean()),
        "log_loss": float(log_losses(truth, p).mean()), "brier": float(briers(truth, p).mean()),
        "calibration_error": ece_plugin(sure, right, in_bins(sure, bin_edges(sure)))}


def world(
    classes=4, strength=(2.5, 3.2), overconfident=(1.2, 1.), together=.7, largest=1, skew=0.,
    rows=200_000, seed=0,
) -> World:
    "Models whose noise is `together` alike; groups of 1 to `largest` rows share half of theirs."
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, largest + 1, int(rows / ((1 + largest) / 2)))
    group = np.repeat(np.arange(len(sizes)), sizes)
    share = np.exp(-skew * np.arange(classes))
    share /= share.sum()
    truth, n = rng.choice(classes, len(sizes), p=share)[group], len(group)

    def noise():
        own, shared = rng.normal(size=(n, classes)), rng.normal(size=(len(sizes), classes))
        return own if largest == 1 else (own + shared[group]) / 2**.5

    common, made = noise(), []
    for size, sure in zip(strength, overconfident, strict=True):
        logits = size**.5 * (together**.5 * common + (1 - together)**.5 * noise())
        logits[np.arange(n), truth] += size
        logits = logits * sure + np.log(share)
        e = np.exp(logits - logits.max(1, keepdims=True))
        made.append(e / e.sum(1, keepdims=True))
    return World(truth, made[0], made[1], np.r_[0, np.cumsum(sizes)])
