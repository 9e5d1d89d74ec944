"Faithfulness: the measures against plain loops, planted truth, coverage and level."

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from ftnb.explain import faithfulness as f
from ftnb.explain.attributions import Attribution, gradient_x_input, integrated_gradients
from ftnb.explain.planted import planted_classifier, planted_texts
from ftnb.foundation.errors import BadInput
from ftnb.foundation.intervals import Interval


@pytest.fixture(scope="module")
def planted(): return planted_classifier()


def attribution(text, values, label="y", p=.9):
    return Attribution(text, f.token_spans(text), np.array(values, float), label, p, 0.0, "test")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40))
def test_removals(values):
    order = f.highest_first(values)
    gone = f.removals(order)
    for row, share in zip(gone[:5], f.BINS, strict=True):
        k = max(1, int(np.ceil(round(share * len(values), 9))))
        assert set(np.flatnonzero(row)) == set(order[:k].tolist())
    assert (gone[5:] == ~gone[:5]).all()


def test_the_measures_are_what_the_paper_says():
    weight = {"good": 2.0, "fine": 1.0, "bad": -1.5}
    def box(texts):
        p = 1 / (1 + np.exp(-np.array([sum(weight.get(w, 0) for w in t.split()) for t in texts])))
        return np.column_stack([1 - p, p])
    text = "a good day and a fine day but one bad hour then"
    words = text.split()
    values = [weight.get(w, 0) for w in words]
    whole = float(box([text])[0, 1])
    made = f.faithfulness(box, [attribution(text, values, p=whole)], labels=["n", "y"])
    order = sorted(range(len(words)), key=lambda i: -values[i])
    lost = lambda keep: whole - box([" ".join(w for i, w in enumerate(words) if keep(i))])[0, 1]
    tops = [order[:max(1, int(np.ceil(q * len(words))))] for q in f.BINS]
    assert made.comprehensiveness[0] == pytest.approx(
        np.mean([lost(lambda i, top=top: i not in top) for top in tops]))
    assert made.sufficiency[0] == pytest.approx(
        np.mean([lost(lambda i, top=top: i in top) for top in tops]))


def test_true_order_beats_random_and_reversed(planted):
    texts, y, spans = planted_texts(80, seed=21)
    keep = [i for i in range(80) if spans[i]]
    texts, spans = [texts[i] for i in keep], [spans[i] for i in keep]
    found = integrated_gradients(planted, texts)
    truth = [replace(a, values=f.touching(a.spans, s).any(1).astype(float), method="truth")
             for a, s in zip(found, spans, strict=True)]
    right, ours = f.faithfulness(planted, truth), f.faithfulness(planted, found)
    backwards = f.faithfulness(planted, [replace(a, values=-a.values) for a in truth])
    gain = lambda made, name: Interval.from_dict(made.to_dict()[name]["gain"])
    for name in ("comprehensiveness", "sufficiency"):
        assert gain(right, name).low > 0 and gain(ours, name).low > 0
        assert gain(backwards, name).high < gain(right, name).low
    assert f.compare_faithfulness(right, backwards).not_lower
    assert not f.compare_faithfulness(backwards, right).not_lower
    assert f.recall_at_k(truth, spans).recall.estimate == 1
    again = f.faithfulness(planted, found)
    assert (again.random_sufficiency == ours.random_sufficiency).all()
    slopes = f.faithfulness(planted, gradient_x_input(planted, texts))
    np.testing.assert_allclose(       # the same random orders, whoever explains
        slopes.random_comprehensiveness, ours.random_comprehensiveness, atol=1e-3)


def test_odd_input(planted):
    found = integrated_gradients(planted, ["", "invoice", "the invoice is charged", "the " * 90])
    made = f.faithfulness(planted, found)
    assert made.used.tolist() == [2, 3] and np.isfinite(made.comprehensiveness).all()
    none = f.faithfulness(planted, found[:2])
    assert len(none) == 0 and none.to_dict()["sufficiency"]["gain"]["low"] == -1
    assert f.recall_at_k(found[:1], [[]]).skipped == 1
    with pytest.raises(BadInput, match="doesn't know the label"):
        f.faithfulness(planted, [replace(found[2], label="?")])
    with pytest.raises(BadInput, match="different texts"): f.compare_faithfulness(made, none)
    with pytest.raises(BadInput, match="1 of 1 texts have other numbers of marks"):
        f.rationale_agreement([found[2]], [[[0, 1]]])
    three, fit = [found[2]] * 3, [[0, 1, 0, 0]] * 2
    left = f.rationale_agreement(three, [fit, fit, [[0, 1], [1, 0, 0, 0]]])   # ragged, too
    assert (left.texts, left.unmatched) == (2, 1) and "2 texts" in left.sentence
    wrong = [replace(found[2], truth="something else"), *three[1:]]
    assert f.rationale_agreement(wrong, [fit, fit, []]).to_dict() | {"auprc": 0, "f1": 0} == {
        "auprc": 0, "f1": 0, "texts": 1, "skipped": 1, "unmatched": 0, "elsewise": 1}
    with pytest.raises(BadInput, match="isn't in the text"): f.token_spans("a b", ["c"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-3, 3), st.booleans()), min_size=2, max_size=20))
def test_agreement_equals_scikit_learn(rows):
    values, marked = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    if not 0 < marked.sum() < len(marked): return
    text = " ".join(f"w{i}" for i in range(len(rows)))
    made = f.rationale_agreement([attribution(text, values)], [[marked, marked, ~marked]], orders=2)  # type: ignore
    assert made.auprc["ours"].estimate == pytest.approx(average_precision_score(marked, values))
    top = np.argsort(-values, kind="stable")[:marked.sum()]
    assert made.f1["ours"].estimate == pytest.approx(marked[top].mean())


def test_marked_tokens_of_hatexplain(public_data):
    lines = (public_data/"hatexplain"/"val.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    rows = [r for r in rows if r["rationales"]
            and all(len(x) == len(r["post_tokens"]) for x in r["rationales"])][:120]
    assert len(rows) == 120
    rng, found = np.random.default_rng(0), []
    for r in rows:
        text = " ".join(r["post_tokens"])
        spans = f.token_spans(text, r["post_tokens"])
        found.append(Attribution(text, spans, rng.normal(size=len(spans)), "y", .9, 0, "guess"))
    marks, tokens = [r["rationales"] for r in rows], [r["post_tokens"] for r in rows]
    made = f.rationale_agreement(found, marks, tokens)
    assert made.texts + made.skipped == 120 and made.texts > 80
    assert abs(made.auprc["gain"].estimate) < .05 and abs(made.f1["gain"].estimate) < .05
    told = [replace(a, values=np.mean(m, 0)) for a, m in zip(found, marks, strict=True)]
    assert f.rationale_agreement(told, marks, tokens).auprc["ours"].low > .98


def gains(rng, n, mean):
    "Differences as they occur: many near 0, some large, skewed; with this mean."
    some = rng.beta(.6, 2.0, n) * (rng.random(n) < .6)
    return some - .6 * .6 / 2.6 + mean + rng.normal(0, .02, n)


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 200])
def test_coverage_of_the_gain(n):
    rng, runs, mean = np.random.default_rng(n), 2000, .1
    held = 0
    for _ in range(runs):
        x = gains(rng, n, mean)
        made = f.Faithfulness("m", x, x, np.zeros(n), np.zeros(n), np.arange(n))
        held += mean in made._interval(x)
    assert .935 <= held / runs <= .965


@pytest.mark.slow
def test_level_of_the_comparison():
    "Two explainers that are equally faithful differ at 5 % in 5 %."
    rng, runs, n, calls = np.random.default_rng(0), 1000, 60, 0
    for _ in range(runs):
        x, y, zero = gains(rng, n, .1), gains(rng, n, .1), np.zeros(n)
        a, b = (f.Faithfulness("m", v, zero, zero, zero, np.arange(n)) for v in (x, y))
        calls += f.compare_faithfulness(a, b, permutations=500).p["comprehensiveness"] < .05
    assert calls / runs <= .065
