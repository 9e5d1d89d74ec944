"Criteria: read or refused first, judged as written, never met by missing evidence."

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftnb.foundation.errors import BadInput
from ftnb.foundation.intervals import Interval
from ftnb.release.criteria import (
    CANT_TELL,
    MEASURES,
    MET,
    NOT_MET,
    Evidence,
    check_criteria,
    decide,
    judge,
    read_criterion,
)

share = st.floats(0, 1, allow_nan=False)
intervals = (
    st.lists(share, min_size=3, max_size=3).map(sorted).map(lambda x: Interval(x[1], x[0], x[2]))
)


@pytest.mark.parametrize(
    ("text", "measure", "end", "op", "number"),
    [
        ("accuracy lower >= 0.80", "accuracy", "lower", ">=", 0.8),
        ("accuracy lower bound ≥ 80%", "accuracy", "lower", ">=", 0.8),
        ("  Accuracy   LOWER end>=.8 ", "accuracy", "lower", ">=", 0.8),
        ("the model accuracy estimate > 0.5", "accuracy", "estimate", ">", 0.5),
        ("gain over best baseline > 0", "gain in accuracy over best baseline", "", ">", 0),
        (
            "gain over the best baseline lower ≥ 0.02",
            "gain in accuracy over best baseline",
            "lower",
            ">=",
            0.02,
        ),
        ("gain in macro F1 over TF-IDF > 0", "gain in macro f1 over tf-idf", "", ">", 0),
        (
            "gain in log loss over frozen embeddings >= -0.1",
            "gain in log loss over frozen embeddings",
            "",
            ">=",
            -0.1,
        ),
        ("calibration error upper <= 0.10", "calibration error", "upper", "<=", 0.1),
        ("ECE upper ≤ 0.10", "calibration error", "upper", "<=", 0.1),
        ("log loss upper < 1.5", "log loss", "upper", "<", 1.5),
    ],
)
def test_reads(text, measure, end, op, number):
    c = read_criterion(text)
    assert (c.measure, c.end, c.op, c.number) == (measure, end, op, pytest.approx(number))


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("acuracy lower >= 0.8", "did you mean 'accuracy'"),
        ("accuracy", "can't read"),
        ("", "can't read"),
        ("accuracy >= high", "can't read"),
        ("accuracy >= 80", "80 % is written 0.8"),
        ("accuracy <= 0.8", "better when higher"),
        ("accuracy upper >= 0.8", "write lower"),
        ("calibration error lower <= 0.1", "write upper"),
        ("accuracy > 1", "no accuracy is > 1"),
        ("accuracy == 0.8", "can't read"),
        ("accuracy >= 0.8; import os", "can't read"),
        ("accuracy >= 1e999", "can't read"),
        ("accuracy >= nan", "can't read"),
        ("accuracy >= 0.8 and auc >= 0.9", "can't read"),
        ("gain over best > 0", "nothing is measured"),
        ("log loss <= -1", "never at -1"),
        ("accuracy >= ٠.٨", "can't read"),
        (3, "not 3"),
        (None, "not None"),
    ],
)
def test_refuses_with_a_hint(text, hint):
    with pytest.raises(BadInput) as e:
        check_criteria([text])
    assert hint in str(e.value)


def test_names_all_that_is_wrong():
    with pytest.raises(BadInput) as e:
        check_criteria(["acuracy >= 1", "accuracy >= 0.8", "auk >= 0.5"])
    assert "acuracy" in str(e.value) and "auk" in str(e.value)
    with pytest.raises(BadInput):
        check_criteria("accuracy >= 0.8")


@given(
    st.text(max_size=40)
    | st.lists(
        st.sampled_from([*MEASURES, ">=", "<", "lower", "0.5", "-", "%", "."]), max_size=6
    ).map(" ".join)
)
def test_any_text_is_read_or_refused(text):
    try:
        c = read_criterion(text)
    except BadInput:
        return
    assert c.measure in MEASURES


@given(intervals, share)
def test_judged_by_the_end_it_names(i, bar):
    for end, value in [("lower", i.low), ("estimate", i.estimate)]:
        c = read_criterion(f"accuracy {end} >= {bar:.4f}")
        assert judge(c, Evidence(i)).outcome == (MET if value >= c.number else NOT_MET)


@given(intervals, share)
def test_judged_by_the_whole_interval_when_no_end_is_named(i, bar):
    c = read_criterion(f"accuracy >= {bar:.4f}")
    outcome = judge(c, Evidence(i)).outcome
    assert (outcome == MET) == (i.low >= c.number) and (outcome == NOT_MET) == (i.high < c.number)


@given(intervals, share)
def test_lower_is_better_mirrors_higher_is_better(i, bar):
    up, down = (
        read_criterion(f"accuracy >= {bar:.4f}"),
        read_criterion(f"calibration error <= {1 - round(bar, 4):.4f}"),
    )
    mirrored = Interval(1 - i.estimate, 1 - i.high, 1 - i.low)
    if min(abs(x - up.number) for x in (i.low, i.high)) > 1e-9:
        assert judge(up, Evidence(i)).outcome == judge(down, Evidence(mirrored)).outcome


def test_a_gain_must_pass_its_test():
    above = read_criterion("gain over best baseline > 0")
    assert judge(above, Evidence(Interval(0.02, 0.001, 0.04), 0.051)).outcome == CANT_TELL
    assert judge(above, Evidence(Interval(0.02, 0.001, 0.04), 0.049)).outcome == MET
    assert judge(above, Evidence(Interval(0.02, -0.001, 0.04), 0.001)).outcome == CANT_TELL


def facts(gain=None, accuracy=None, best="tfidf"):
    compared = (
        []
        if gain is None
        else [
            {
                "metric": "accuracy",
                "baseline": "tfidf",
                "gain": gain.to_dict(),
                "p_corrected": 0.9 if 0 in gain else 0.001,
            }
        ]
    )
    return {
        "evaluate": {
            "metrics": {"model": {"accuracy": accuracy and accuracy.to_dict()}},
            "comparisons": compared,
            "best_baseline": best,
        }
    }


GAP = {"estimate": 0.04, "low": 0.0, "high": 0.09, "level": 0.95}
ASKED = {"grouping": "dialect", "score": "accuracy"}


def bias(gap=GAP, verdict="no evidence", *others):
    asked = [ASKED | {"verdict": verdict}]
    asked += [ASKED | {"grouping": f"g{k}", "verdict": v} for k, v in enumerate(others)]
    worst = ASKED | {"group": "Scots", "gap": gap, "p": 0.3}
    return {"bias": {"verdict": "no evidence", "worst": worst, "disparities": asked}}


@pytest.mark.parametrize(("found", "outcome"), [
    (bias(), MET),
    (bias(GAP | {"high": 0.2}), NOT_MET),
    (bias(GAP, "insufficient data"), CANT_TELL),
    (bias(GAP | {"high": 0.9}, "insufficient data (9 rows)"), CANT_TELL),
    (bias(None), CANT_TELL),
    (bias(GAP | {"high": float("nan")}), CANT_TELL),
    ({"bias": {"verdict": "insufficient data", "worst": {"gap": GAP}}}, CANT_TELL),
    ({"bias": {"worst": None, "disparities": None}}, CANT_TELL),
    ({"bias": {}}, CANT_TELL),
    ({}, CANT_TELL),
])
def test_a_worst_gap_without_enough_data_is_never_met(found, outcome):
    d = decide(["worst gap upper <= 0.10"], found)
    assert d.results[0].outcome == outcome and d.ship == (outcome == MET)


def test_unanswered_questions_are_said_and_counted():
    found = bias(GAP, "no evidence", "insufficient data", "disparity found")
    gap, count, some = decide(["worst gap upper <= 0.10", "disparities found <= 1",
                               "disparities found <= 2"], found).results
    assert gap.outcome == MET and gap.evidence
    assert gap.reason.endswith(f"({gap.evidence.note}); 1 of 3 questions had insufficient data")
    assert (count.outcome, some.outcome) == (CANT_TELL, MET)
    assert count.evidence and count.evidence.interval == Interval(1, 1, 2)


def test_a_flip_rate_without_enough_pairs_is_never_met():
    axes = [{"axis": "faith", "verdict": "insufficient data"}, {"axis": "pronouns"}]
    swaps = {"flip_rate": GAP, "verdict": "no evidence", "axes": axes}
    full = decide(["flip rate upper <= 0.1"], {"bias": {"counterfactuals": swaps}}).results[0]
    assert full.outcome == MET and "insufficient data for faith" in full.reason
    few = {"bias": {"counterfactuals": swaps | {"verdict": "insufficient data"}}}
    assert decide(["flip rate upper <= 0.1"], few).results[0].outcome == CANT_TELL


i3 = {"estimate": 0.3, "low": 0.2, "high": 0.4}


@pytest.mark.parametrize(("text", "found"), [
    ("flip rate upper <= 0.5", {"bias": {"counterfactuals": {"flip_rate": i3}}}),
    ("comprehensiveness gain over random > 0",
     {"explain": {"faithfulness": {"comprehensiveness": {"gain": i3}}}}),
    ("sufficiency gain over random > 0",
     {"explain": {"faithfulness": {"sufficiency": {"gain": i3}}}}),
    ("agreement with SHAP lower >= 0.1", {"explain": {"agreement": {"shap": i3}}}),
    ("rationale AUPRC >= 0.1", {"explain": {"rationales": {"auprc": i3}}}),
    ("recall of planted tokens >= 0.1", {"explain": {"recall": i3}}),
])
def test_bias_and_explanation_have_criteria(text, found):
    assert decide([text], found).ship and not decide([text], {"evaluate": {}}).ship


@pytest.mark.parametrize(("text", "hint"), [
    ("worst gap >= 0.1", "better when lower"),
    ("worst gap lower <= 0.1", "write upper"),
    ("worst gap upper <= 10", "never at 10"),
    ("flip rate > 0.1", "better when lower"),
    ("comprehensiveness gain over random upper > 0", "write lower"),
    ("wurst gap upper <= 0.1", "did you mean 'worst gap'"),
])
def test_directions_of_the_new_measures(text, hint):
    with pytest.raises(BadInput, match=hint):
        check_criteria([text])


@given(st.lists(st.sampled_from(["no evidence", "disparity found", "insufficient data"]),
                min_size=1, max_size=6), share)
def test_disparities_found_covers_what_might_be_there(verdicts, bar):
    found = bias(GAP, *verdicts)
    r = decide([f"disparities found <= {round(6 * bar)}"], found).results[0]
    n, k = verdicts.count("disparity found"), verdicts.count("insufficient data")
    assert (r.outcome == MET) == (n + k <= round(6 * bar))
    assert (r.outcome == NOT_MET) == (n > round(6 * bar))


def test_a_tie_is_called_a_tie():
    d = decide(["gain over best baseline > 0"], facts(Interval(-0.003, -0.02, 0.014)))
    assert not d.ship and d.verdict == "don't ship" and "the baseline does it" in d.sentence


@given(
    st.lists(
        st.sampled_from(["accuracy lower >= 0.8", "gain over best baseline > 0", "auc >= 0.5"]),
        max_size=3,
    ),
    st.none() | intervals,
    st.none() | intervals,
)
def test_ships_only_when_all_is_met(criteria, gain, accuracy):
    d = decide(criteria, facts(gain, accuracy))
    assert d.ship == (bool(criteria) and all(r.outcome == MET for r in d.results))
    assert all(r.evidence for r in d.results if r.outcome == MET)
    assert d.to_dict()["ship"] == d.ship and d.sentence.startswith(
        {True: ("Ship",), False: ("Don't ship", "Undecided")}[d.ship]
    )


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"evaluate": {}},
        {"evaluate": {"metrics": {"model": {"accuracy": None}}}},
        {"evaluate": {"metrics": {"model": {"accuracy": {"estimate": 0.9}}}}},
        {
            "evaluate": {
                "metrics": {"model": {"accuracy": {"estimate": None, "low": None, "high": None}}}
            }
        },
    ],
)
def test_missing_evidence_is_not_evidence(broken):
    d = decide(["accuracy >= 0.1"], broken)
    assert d.results[0].outcome == CANT_TELL and not d.ship
