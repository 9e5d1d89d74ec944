"Splits: a row's place is its own affair."

from datetime import UTC, date, datetime

import pytest
from hypothesis import assume, example
from hypothesis import given as each
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ftnb.data.splits import (
    SPLITS,
    Cuts,
    Shares,
    by_content,
    by_group,
    by_time,
    check_splits,
    count_splits,
    given,
    moment,
    place,
    rows_needed,
    side,
)
from ftnb.foundation.errors import BadInput

SHARES = st.tuples(st.floats(0, 0.6), st.floats(0, 0.39)).map(lambda s: Shares(*s))
TEXTS = st.lists(st.text(), max_size=20)


@each(TEXTS, TEXTS, SHARES, st.integers(0, 2**31), st.randoms())
def test_added_rows_move_no_other(texts, more, shares, seed, random):
    before = dict(zip(texts, by_content(texts, shares, seed), strict=True))
    mixed = texts + more
    random.shuffle(mixed)
    after = dict(zip(mixed, by_content(mixed, shares, seed), strict=True))
    assert all(after[t] == s for t, s in before.items())
    groups = dict(zip(texts, by_group([f"g{t}" for t in texts], shares, seed), strict=True))
    again = dict(zip(mixed, by_group([f"g{t}" for t in mixed], shares, seed), strict=True))
    assert all(again[t] == s for t, s in groups.items())


@each(st.text(), SHARES, st.integers(0, 100))
def test_spelling_does_not_move_a_row(text, shares, seed):
    assert len(set(by_content([text, f" {text}\n", f"{text} "], shares, seed))) == 1


@each(st.floats(0, 1, exclude_max=True), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0, 0.4))
def test_a_larger_share_takes_from_training_only(at, test, validation, more):
    assume(test + validation + more < 0.99)
    before = side(at, Shares(test, validation))
    for larger in (Shares(test + more, validation), Shares(test, validation + more)):
        after = side(at, larger)
        assert after == before or before == "train"


@each(st.text(), st.integers())
@example("\ud800", 0)
def test_places_lie_between_0_and_1(key, seed):
    assert 0 <= place(key, seed) < 1


def test_places_are_even_and_fixed():
    places = sorted(place(f"row {i}", 3) for i in range(20_000))
    assert (
        max(abs(p - i / 20_000) for i, p in enumerate(places)) < 1.95 / 20_000**0.5
    )  # Kolmogorov–Smirnov, 0.1 %
    assert place("how do i delete a bucket", 0) == pytest.approx(PLACE, abs=0)  # never to change


PLACE = 0.5412023109794313


@pytest.mark.parametrize(
    "test, validation", [(1, 0), (-0.1, 0.1), (0.5, 0.5), (0.2, 1.2), (float("nan"), 0.1)]
)
def test_impossible_shares(test, validation):
    with pytest.raises(BadInput):
        Shares(test, validation)


TIMES = st.lists(st.integers(0, 60), min_size=1, max_size=60)


@each(TIMES, SHARES)
def test_time_runs_from_training_to_testing(times, shares):
    splits, cuts = by_time(times, shares)
    order = [SPLITS.index(s) for _, s in sorted(zip(times, splits, strict=True))]
    assert order == sorted(order)
    assert by_time(times, shares, cuts) == (splits, cuts)
    by_moment: dict[int, str] = {}
    for t, s in zip(times, splits, strict=True):
        assert by_moment.setdefault(t, s) == s


@each(
    st.lists(st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1)), min_size=1, max_size=30),
    SHARES,
)
@hypothesis_settings(deadline=None)
def test_cuts_can_be_written_down(times, shares):
    times = [t.replace(microsecond=0, tzinfo=UTC) for t in times]
    splits, cuts = by_time([t.isoformat() for t in times], shares)
    assert isinstance(cuts.test, str)
    assert by_time(times, shares, Cuts(str(cuts.validation), str(cuts.test)))[0] == splits


def test_times_that_can_be_read():
    assert (
        moment("2026-03-01")
        == moment(date(2026, 3, 1))
        == moment("2026-03-01T00:00:00Z")
        == moment("20260301T000000+00:00")
    )
    assert moment("17") == 17.0 and moment(" 2026-03-01 ") == moment("2026-03-01")
    for bad in ("", "yesterday", "01/02/2026", None, float("nan"), True, "nan", "inf"):
        with pytest.raises(BadInput):
            moment(bad)


def test_groups_must_be_there():
    for bad in (None, "", " ", float("nan")):
        with pytest.raises(BadInput, match="row 1"):
            list(by_group(["a", bad], Shares(0.2, 0.1), 0))


def test_given_names():
    assert list(given(["TRAIN", "dev", " valid", "eval"])) == [
        "train",
        "validation",
        "validation",
        "test",
    ]
    with pytest.raises(BadInput, match="row 1"):
        list(given(["train", None]))


@each(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(SPLITS)), max_size=40))
def test_every_row_is_counted(rows):
    made = count_splits([c for c, _ in rows], [s for _, s in rows], Shares(0.2, 0.1))
    assert made.totals.sum() == len(rows) if rows else made.counts.empty
    assert made.to_dict()["rows"] == {s: sum(x == s for _, x in rows) for s in SPLITS}


def test_advice_works():
    labels = [c for c in "abcdefgh" for _ in range(6)]
    texts = [f"{c} {i}" for i, c in enumerate(labels)]
    shares, tried = Shares(0.3, 0.2), 0
    for seed in range(20):
        made = count_splits(labels, by_content(texts, shares, seed), shares)
        try:
            check_splits(made, texts, labels)
        except BadInput as e:
            tried += 1
            assert e.fix.startswith("seed ")
            good = int(e.fix.split()[1])
            check_splits(count_splits(labels, by_content(texts, shares, good), shares))
    assert tried > 5


def test_advice_without_a_seed_that_works():
    made = count_splits(
        ["a"] * 50 + ["b"], by_content(map(str, range(51)), Shares(0.2, 0.1), 0), Shares(0.2, 0.1)
    )
    with pytest.raises(BadInput, match=f"{rows_needed(0.1)} rows or more"):
        check_splits(made, map(str, range(51)), ["a"] * 50 + ["b"])
    none = count_splits(["a", "a"], ["train", "test"], Shares(0.5, 0))
    with pytest.raises(BadInput, match="validation a share above 0"):
        check_splits(none)
    check_splits(none, needed=("train", "test"))


@each(st.floats(0.01, 0.5))
def test_rows_needed(share):
    n = rows_needed(share)
    assert (1 - share) ** n <= 0.01 < (1 - share) ** (n - 1)
