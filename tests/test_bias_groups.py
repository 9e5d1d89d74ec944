"Groups: every row is accounted for, bad columns are answered, the same rows make the same groups."
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftnb.bias.groups import (
    Grouping,
    cut_points,
    grouping,
    intersection,
    merge_small,
    names_in,
    sensitive_groupings,
    value_name,
)
from ftnb.bias.summaries import groupings_by_split
from ftnb.evaluate.predict import Rows
from ftnb.foundation.errors import BadInput

N = 200
HALF = ["F"] * 100 + ["M"] * 100
BAD: dict[str, tuple[Any, str]] = {   # a column → part of what is said about it
    "constant": (["F"] * N, "constant: every row is 'F'"),
    "constant and missing": (["F"] * 150 + [None] * 50, "each of 150 rows with a value is 'F'"),
    "empty": ([None] * N, "no row has a value"),
    "only NaN": ([float("nan")] * N, "no row has a value"),
    "only blanks": (["  ", "?"] * (N // 2), "no row has a value"),
    "no rows": ([], "no row has a value"),
    "a value per row": ([f"name {i}" for i in range(N)], "a value for each row"),
    "row numbers": (list(range(7, 7 + N)), "a value for each row"),
    "row numbers as text": ([str(i) for i in range(N)], "a value for each row"),
    "two rows each": ([f"name {i // 2}" for i in range(N)], "nearly a value for each row"),
    "one large": (["F"] * (N - 3) + ["M"] * 3, "only 'F' has 30 rows or more"),
    "empty lists": ([[]] * N, "no row has a value"),
    "nobody named": ([["None"]] * N, "no row has a value"),
    "no majority": ([[["a"], ["b"], ["c"]]] * N, "no row has a value"),
    "all name one": ([["a"]] * N, "constant: every row is 'a'"),
    "constant float": ([.5] * N, "constant"),
    "infinite": ([float("inf")] * N, "no row has a value"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_columns_are_answered(name):
    values, said = BAD[name]
    made = grouping({name: values}, name)
    assert not made and made.groups == () and made.member.shape == (len(values), 0)
    assert said in made.unusable and made.unusable in made.sentence
    assert "text/html" in made._repr_mimebundle_() and made.codes.tolist() == [-1] * len(values)
    crossed = intersection(made, grouping({"sex": HALF[:len(values)]}, "sex"))
    assert name in crossed.unusable and not crossed


GOOD: dict[str, tuple[Any, dict[str, int]]] = {   # a column → its groups and their rows
    "text": (HALF, {"F": 100, "M": 100}),
    "booleans": ([True, False] * 100, {"false": 100, "true": 100}),
    "numpy booleans": (np.array([True, False] * 100), {"false": 100, "true": 100}),
    "codes": ([3, 1] * 100, {"1": 100, "3": 100}),
    "codes by pandas": ([3.0, 1.0, float("nan"), 3.0] * 50, {"1": 50, "3": 100}),
    "codes as text": (["10", "9"] * 100, {"9": 100, "10": 100}),
    "codes with zeros": (["007", "010"] * 100, {"007": 100, "010": 100}),
    "mixed": ([1, "1", 2, "2"] * 50, {"1": 100, "2": 100}),
    "blanks and forms": (["cafe\u0301", " café ", "x", "x"] * 50, {"café": 100, "x": 100}),
    "right to left": (["نساء", "רגילה"] * 100, {"רגילה": 100, "نساء": 100}),
    "emoji": (["👩🏽‍💻", "👨‍👩‍👧"] * 100, {"👨‍👩‍👧": 100, "👩🏽‍💻": 100}),
    "taken name": (["(others)"] * 100 + ["a"] * 60 + ["b", "c"] * 20,
                   {"(others)": 100, "a": 60, "((others))": 40}),
    "objects": ([{"a": 1}, {"a": 2}] * 100, {'{"a": 1}': 100, '{"a": 2}': 100}),
    "lists": ([["a", "b"], ["a"], ["b"], []] * 50, {"a": 100, "b": 100}),
    "text and lists": (["a", ["b"], None, ["None"]] * 50, {"a": 50, "b": 50}),
    "annotators": ([[["a"], ["a", "b"], ["None"]], [["b"], ["b"], ["None"]]] * 100,
                   {"a": 100, "b": 100}),
    "one group named": ([["a"], []] * 50 + [["b"]] * 40, {"a": 50, "b": 40}),
}


@pytest.mark.parametrize("name", GOOD)
def test_columns_of_many_kinds(name):
    values, rows = GOOD[name]
    made = grouping({name: values}, name)
    assert dict(zip(made.groups, made.rows.tolist(), strict=True)) == rows, made.sentence


def test_a_missing_column_names_the_nearest():
    with pytest.raises(BadInput, match=r"did you mean 'gender'.*columns kept: gender, age"):
        grouping({"gender": HALF, "age": HALF}, "gendre")
    with pytest.raises(BadInput, match="columns kept: none"): grouping({}, "sex")
    with pytest.raises(BadInput, match="no column 'agee'"):
        sensitive_groupings({"sex": HALF, "age": HALF}, ["sex × agee"])


def test_missing_values_are_said_and_in_no_group():
    made = grouping({"sex": [*HALF, None, "", "?", float("nan")]}, "sex")
    assert "4 rows without a value in no group" in made.said
    assert made.codes[-4:].tolist() == [-1] * 4 and made.grouped.sum() == 200


def test_small_groups_are_merged_or_set_aside_aloud():
    many = grouping({"c": HALF + ["x"] * 20 + ["y"] * 15}, "c")
    assert many.groups == ("F", "M", "(others)") and many.rows[-1] == 35
    assert any("merged into (others): 'x', 'y'" in s for s in many.said)
    few = grouping({"c": HALF + ["x"] * 5 + ["y"] * 5}, "c")
    assert few.groups == ("F", "M") and any("set aside: 'x', 'y' (10 rows" in s for s in few.said)
    assert (few.codes[-10:] == -1).all()


def test_measurements_are_cut_and_named_by_what_is_in_them():
    ages = random.Random(0).choices(range(17, 91), k=1000)
    made = grouping({"age": [str(a) for a in ages]}, "age")
    assert len(made.groups) == 4 and "cut after" in made.said[-1]
    for name, inside in zip(made.groups, made.member.T, strict=True):
        low, high = map(int, name.split(" to "))
        assert {low, high} <= set(np.array(ages)[inside])
        assert all(low <= a <= high for a in np.array(ages)[inside])
    zeros = [0.0] * 900 + [float(i) + .5 for i in range(100)]
    assert grouping({"gain": zeros}, "gain").rows.tolist() == [900, 100]
    assert len(grouping({"x": np.random.default_rng(0).normal(size=300)}, "x", bands=2).groups) == 2


def test_a_few_odd_values_among_numbers_are_missing():
    ages = [*range(20, 60)] * 5
    made = grouping({"age": [*map(str, ages), "unknown", "n/a"]}, "age")
    assert len(made.groups) == 4 and "'unknown' (1 row) taken as missing" in " ".join(made.said)
    half = grouping({"age": [*map(str, ages), *["unknown"] * 100]}, "age", least=2)
    assert "unknown" in half.groups, "half of a column isn't an oddity"


def test_capitals_are_named():
    made = grouping({"sex": ["Male", "male"] * 50 + ["F"] * 50}, "sex")
    assert len(made.groups) == 3 and "'Male', 'male' differ only in capitals" in made.said


def test_texts_with_a_separator():
    made = grouping({"t": ["a|b", "a", "b", ""] * 40}, "t", separator="|")
    assert made.overlapping and dict(zip(made.groups, made.rows.tolist(), strict=True)) == \
        {"a": 80, "b": 80}
    with pytest.raises(ValueError, match="several groups"): _ = made.codes


def test_the_only_group_of_a_list_is_set_against_the_others():
    made = grouping({"t": [["a"]] * 50 + [["b"], ["c"], ["d"], ["e"]] * 7 + [["f"]] * 8}, "t")
    assert made.groups == ("a", "(others)")
    few = grouping({"t": [["a"]] * 50 + [["a", "b"]] * 10}, "t")
    assert not few and "only 'a'" in few.unusable


values = st.one_of(st.none(), st.sampled_from(["F", "M", "x", "?", " F "]), st.integers(-3, 30),
                   st.floats(allow_nan=True), st.booleans(), st.text(max_size=3),
                   st.lists(st.sampled_from(["a", "b", "None"]), max_size=3),
                   st.lists(st.lists(st.sampled_from(["a", "b"]), max_size=2), max_size=3))


@settings(max_examples=300, deadline=None)
@given(st.lists(values, max_size=60), st.integers(1, 20), st.integers(2, 5))
def test_any_column_makes_a_grouping_or_says_why_not(column, least, bands):
    made = grouping({"c": column}, "c", least, bands)
    assert made.member.shape == (len(column), len(made.groups)) and made.member.dtype == bool
    assert bool(made) == (len(made.groups) >= 2) and bool(made.unusable) != bool(made.groups)
    if made:
        assert (made.rows >= least).all() and len(set(made.groups)) == len(made.groups)
        for i, v in enumerate(column):
            if not names_in(v): assert not made.member[i].any(), "a missing value is in no group"
    assert isinstance(made._repr_mimebundle_()["text/plain"], str)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["F", "M", "x", None, "7", "8"]), min_size=1, max_size=80),
       st.randoms(use_true_random=False))
def test_the_rows_order_changes_nothing(column, chance):
    order = list(range(len(column)))
    chance.shuffle(order)
    made, again = (grouping({"c": c}, "c", 5) for c in (column, [column[i] for i in order]))
    assert made.groups == again.groups and made.unusable == again.unusable
    assert (made.member[order] == again.member).all() and set(made.said) == set(again.said)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=200), st.integers(2, 6))
def test_bands_part_the_values_in_order(x, bands):
    x = np.array(x)
    cuts = cut_points(x, bands)
    band = np.searchsorted(cuts, x, side="left")
    assert len(cuts) < bands and (np.diff(band[np.argsort(x)]) >= 0).all()
    assert (np.bincount(band, minlength=len(cuts) + 1) > 0).all(), "no band is empty"
    assert len(cuts) >= 1 or len(set(x)) == 1


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 40))
def test_intersections_hold_the_rows_of_both(data, least):
    n = data.draw(st.integers(10, 120))
    column = st.lists(st.sampled_from(["p", "q", "r", None]), min_size=n, max_size=n)
    columns = {"a": data.draw(column), "b": data.draw(column)}
    a, b = (grouping(columns, c, 1) for c in "ab")
    made = intersection(a, b, least)
    if not made: return
    both = a.grouped & b.grouped
    assert (made.member[~both] == 0).all() and (made.rows >= least).all()
    for name, inside in zip(made.groups, made.member.T, strict=True):
        if name.startswith("("): continue
        x, y = name.split(" × ")
        assert [i for i in np.flatnonzero(inside)] == \
            [i for i in range(n) if (columns["a"][i], columns["b"][i]) == (x, y)]


def test_names_of_intersections():
    columns = {"sex": HALF, "age": ["old", "young"] * 100, "x*y": HALF, "flat": ["a"] * 200}
    made = sensitive_groupings(columns, ["sex", "age", "sex*age", "age × sex", "flat"], True)
    assert [g.name for g in made] == ["sex", "age", "sex × age", "age × sex", "flat"]
    assert sensitive_groupings(columns, ["x*y"])[0].groups == ("F", "M"), "a column comes first"
    three = sensitive_groupings(columns, ["sex*age*sex"])[0]
    assert three.name == "sex × age × sex" and three.rows.sum() == 200
    assert [g.name for g in sensitive_groupings(columns, ["sex", "age"], True)][-1] == "sex × age"


def test_a_triple_merges_only_at_the_end():
    rng = np.random.default_rng(0)
    columns = {c: rng.choice(["p", "q"], 160).tolist() for c in "abc"}
    made = sensitive_groupings(columns, ["a*b*c"], least=20)[0]
    assert made.groups[-1] == "(others)" and made.rows.sum() == 160 and (made.rows >= 20).all()
    assert not any("(others) ×" in g for g in made.groups)
    assert "none in 60 rows" in sensitive_groupings(columns, ["a*b*c"], least=60)[0].unusable


def test_taking_rows_keeps_the_groups():
    made = grouping({"sex": HALF}, "sex")
    some = made.take(np.arange(50))
    assert some.groups == made.groups and some.rows.tolist() == [50, 0]


def test_merging_nothing_changes_nothing():
    member = np.eye(2, dtype=bool).repeat(30, axis=0)
    assert merge_small(["a", "b"], member, 30)[0] == ("a", "b")


def test_names_of_values():
    assert value_name(np.float64(2)) == "2" and value_name(np.int64(2)) == "2"
    assert value_name(True) == "true" and value_name(np.nan) == "" and value_name("NaN") == ""


def test_hatexplain_targets_by_majority(public_data):
    import json
    file = public_data/"hatexplain"/"test.jsonl"
    targets = [[a["target"] for a in json.loads(line)["annotators"]]
               for line in file.read_text(encoding="utf-8").splitlines()]
    made = grouping({"target": targets}, "target")
    by_hand = sum(sum("Women" in t for t in three) >= 2 for three in targets)
    assert made.overlapping and made.rows[made.groups.index("Women")] == by_hand
    assert "None" not in made.groups and isinstance(made, Grouping)


def test_a_column_that_train_rows_lack_is_judged_where_it_is():
    def rows(n, values):
        names = [str(i) for i in range(n)]
        return Rows(names, names, np.zeros(n, int), ["x"], None, {"who": values} if values else {})
    some = [["a"], ["b"], ["c"], []] * 30
    people = groupings_by_split(
        {"train": rows(5000, None), "validation": rows(120, some), "test": rows(120, some)},
        ["who", "who × who"], least=30)
    assert people["test"][0].rows.tolist() == [30, 30, 30]     # nobody merged for 5,000 others
    assert people["train"][0].groups == ("a", "b", "c") and not people["train"][0].grouped.any()
    assert "60 rows naming no group" in people["test"][0].sentence
    assert any("the train rows name no group" in s for s in people.sentences)
