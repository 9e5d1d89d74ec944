"Validation, preparation, task formats: no row vanishes; what is written comes back."
import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftnb.data.preparation import (
    Preparation,
    divide,
    look_for_duplicates,
    look_for_private,
    name_classes,
    open_sources,
    read_examples,
    stop_leaks,
    take_in,
    write_splits,
)
from ftnb.data.sources import BadRow, Row
from ftnb.data.splits import Shares
from ftnb.data.tasks import (
    Chat,
    Classification,
    Instruction,
    Question,
    Summary,
    Turn,
    read_back,
    write_examples,
)
from ftnb.data.validation import (
    Columns,
    Conflicts,
    Quarantine,
    Rules,
    Tally,
    clip,
    label_rule,
    pick,
    repair,
    time_of,
    validate,
)
from ftnb.foundation.errors import BadInput

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40)
    | st.text(st.characters(), max_size=10),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3),
    max_leaves=5)
rows = st.lists(st.one_of(
    st.builds(Row, st.just("a.csv"), st.integers(1, 99), st.fixed_dictionaries({}, optional={
        "text": anything, "label": anything, "more": anything, "group": anything,
        "time": anything})),
    st.builds(BadRow, st.just("a.csv"), st.integers(1, 99),
              st.sampled_from(["ragged", "undecodable"]), st.text(max_size=9),
              st.text(max_size=9))), max_size=20)


@settings(max_examples=300, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows,
       st.sampled_from([Columns(), Columns(keep=("more",), group="group"), Columns(time="time")]),
       st.booleans())
def test_no_row_vanishes(tmp_path, rows, columns, unescape):
    tally, path = Tally(), tmp_path/"q.jsonl"
    with Quarantine(path, tally) as quarantine:
        kept = list(validate(rows, columns, Rules(max_characters=30, unescape_html=unescape), tally,
                             quarantine))
    tally.check()
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert len(rows) == tally.rows_in == len(kept) + len(entries)
    assert Counter(e["reason"] for e in entries) == +tally.quarantined
    for e in kept:
        json.dumps(e, allow_nan=False).encode()
        e["text"].encode(), e["label"].encode()
        assert e["text"] == " ".join(e["text"].split()) != "" and len(e["text"]) <= 30
        assert e["label"]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60), st.booleans())
def test_repairing_twice_changes_nothing(text, unescape):
    once = repair(text)
    assert repair(once) == once
    assert not set(once) & {"\ufeff", "\x00", "\n", "\t"}


@settings(max_examples=200, deadline=None)
@given(anything)
def test_clipped_values_can_be_written(value):
    json.dumps(clip(value), allow_nan=False).encode()


@pytest.mark.parametrize("value, expected", [
    ("2026-03-01", "2026-03-01T00:00:00"), ("2026-03-01T12:00:00+02:00", "2026-03-01T10:00:00"),
    (0, "0000"), ("2019", "2019"),
    (1_700_000_000, "2023-11-14T22:13:20+00:00")])
def test_times(value, expected):
    assert time_of(value)[:len(expected)].startswith(expected[:19])


def test_label_rules():
    assert label_rule(Counter({"0.0": 5, "1.0": 5})).names == {"0.0": "0", "1.0": "1"}
    assert label_rule(Counter({"<=50K": 5, "<=50K.": 5,
                               ">50K": 4})).said[0].startswith("labels '<=50K', '<=50K.'")
    for labels in ({"1.5": 5, "2.0": 9}, {"a": 9}, {"a": 9, "b": 1}, {},
                   {f"t{i}": 1 for i in range(100)}):
        with pytest.raises(BadInput): label_rule(Counter(labels))


def test_votes_and_paths():
    post = {"annotators": [{"label": "a"}, {"label": "b"}, {"label": "a"}],
            "post_tokens": ["x", "y"]}
    assert pick(post, "label|annotators.label") == ["a", "b", "a"]
    assert pick(post, "text|post_tokens") == ["x", "y"]
    tally = Tally()
    assert tally.check().sentence == "0 rows in = 0 kept + 0 quarantined"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["one", "One", "two  words", "two words", "x"]),
                          st.sampled_from("ab")), max_size=15))
def test_conflicts_against_brute_force(pairs):
    found = Conflicts()
    seen: dict[str, set[str]] = {}
    for text, label in pairs:
        found.add(text, label)
        seen.setdefault(" ".join(text.casefold().split()), set()).add(label)
    mixed = [i for i,
             (text, _) in enumerate(pairs) if len(seen[" ".join(text.casefold().split())]) > 1]
    assert sorted(found.rows().tolist()) == mixed


# The whole way

def prepare(folder, path, columns, how="stratified", shares=None, what="quarantine leaks",
            pii="report", rare=2, **roles):
    prep = Preparation(folder, columns)
    take_in(prep,
            open_sources("files", columns,
                         {"": str(path), **{k: str(v) for k, v in roles.items()}}))
    name_classes(prep, rare)
    look_for_private(prep, pii)
    duplicates = look_for_duplicates(prep, what)
    divide(prep, how, shares or Shares(.3, .2), 0)
    stop_leaks(prep, duplicates, what)
    counts = write_splits(prep)
    return prep, counts, prep.finish()


@pytest.mark.parametrize("what", ["report", "quarantine leaks", "quarantine all"])
@pytest.mark.parametrize("pii", ["report", "mask", "quarantine"])
def test_every_row_ends_somewhere(tmp_path, what, pii):
    lines = [f"request number {i * 7919 % 1000} about {'abc'[i % 3] * 4}{i},{'abc'[i % 3]}"
             for i in range(300)]
    lines += lines[:20] + ["", "mail me at someone@example.org now,a", "one,two,three", ",a",
                           "text,", "lonely,rare"]
    path = tmp_path/"x.csv"
    path.write_text("text,label\n" + "\n".join(lines))
    prep, counts, tally = prepare(tmp_path, path, Columns(), what=what, pii=pii)
    assert tally.rows_in == 325 and sum(counts.values()) == tally.kept
    quarantined = [json.loads(line) for line in (tmp_path/"quarantine.jsonl").open()]
    assert len(quarantined) == tally.quarantined.total()
    assert "someone@example.org" not in (tmp_path/"quarantine.jsonl").read_text()
    ids = [e["id"] for s in counts
           for e in read_examples(tmp_path/"examples", s)] + [f"{q['file']}:{q['line']}"
                                                              for q in quarantined]
    assert len(ids) == len(set(ids)) == 325, "every row is in exactly one place"
    if what != "report":
        texts = {s: {e["text"] for e in read_examples(tmp_path/"examples", s)} for s in counts}
        assert not texts["train"] & texts["test"] and not texts["validation"] & texts["test"]


def test_adding_rows_moves_no_other(tmp_path):
    lines = [f"sentence {i} speaks of {i * 31 % 17} things,{'ab'[i % 2]}" for i in range(200)]
    placed = []
    for n, some in enumerate((lines[:120], lines)):
        folder = tmp_path/str(n)
        folder.mkdir()
        (folder/"x.csv").write_text("text,label\n" + "\n".join(some))
        _, counts, _ = prepare(folder, folder/"x.csv", Columns(), what="report")
        placed.append({e["text"]: s for s in counts for e in read_examples(folder/"examples", s)})
    assert all(placed[1][text] == split for text, split in placed[0].items())


def test_given_files_keep_their_roles(tmp_path):
    for name, start in (("train", 0), ("test", 500)):
        (tmp_path/f"{name}.jsonl").write_text("\n".join(
            json.dumps({"text": f"text {i + start} is its own", "label": i % 2})
            for i in range(100)))
    prep, counts, tally = prepare(tmp_path, tmp_path/"train.jsonl", Columns(), how="given",
                                  what="report", test=tmp_path/"test.jsonl")
    assert counts["test"] == counts["train"] + counts["validation"] == 100
    assert counts["validation"] > 5
    assert all(e["id"].startswith("test/test.jsonl:")
               for e in read_examples(tmp_path/"examples", "test"))
    assert prep.labels == ["0", "1"]


@pytest.mark.parametrize("content, how, message", [
    ("text,label\n" + "a b c,x\n" * 9, "stratified", "fewer than two classes"),
    ("text,label\n" + ",x\n,y\n" * 9, "stratified", "no row is fit"),
    ("text,label\n" + "".join(f"text {i},{i / 7}\n" for i in range(1, 40)), "stratified",
     "measurements"),
    ("text,label\na,x\nb,y\nc,x\nd,y\n", "stratified", "no rows in a split|no rows for"),
    ("text,label\na,x\nb,y\nc,x\nd,y\n", "given", "no test rows"),
    ("text,label\na,x\nb,y\nc,x\nd,y\n", "grouped", "group_column"),
    ("text,label\na,x\nb,y\nc,x\nd,y\n", "time", "time_column")])
def test_bad_tables_say_what_to_do(tmp_path, content, how, message):
    (tmp_path/"x.csv").write_text(content)
    with pytest.raises(BadInput, match=message):
        prepare(tmp_path, tmp_path/"x.csv", Columns(), how=how)


def test_public_sets_are_accounted_for(public_data, tmp_path):
    sets = {
        "banking77": ("banking77/train.csv", Columns("text", "category"), 10_003),
        "toxigen": ("toxigen_annotated/toxigen.json", Columns("text", "label"), 6_514),
        "davidson": ("davidson_hate_offensive/labeled_data.csv.gz", Columns("tweet", "class"),
                     24_783),
        "hatexplain": ("hatexplain/train_text_label.tsv.gz", Columns("text", "label"), 14_936),
        "votes": ("hatexplain/val.jsonl", Columns("post_tokens", "annotators.label"), 1_922),
        "templates": ("identity_templates_en/en_sentence_templates.csv.gz",
                      Columns("phrase", "toxicity"), 76_564),
        "adult": ("adult/adult.data.gz", Columns("occupation", "outcome"), 32_561)}
    for name, (path, columns, n) in sets.items():
        folder = tmp_path/name
        folder.mkdir()
        prep = Preparation(folder, columns)
        take_in(prep, open_sources("files", columns, {"": str(public_data/path)}))
        name_classes(prep)
        assert prep.tally.rows_in == n and not prep.quarantine.tally.quarantined, name
        if name == "toxigen": assert prep.tally.repairs["Excel's _x000D_"] == 34
        if name == "davidson": assert prep.tally.repairs["blanks"] >= 917
        prep.finish()


# Task formats

words = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1,
                max_size=20).filter(str.strip)
examples = {
    "classification": st.builds(Classification, words, words),
    "summarisation": st.builds(Summary, words, words),
    "question answering": st.builds(Question, words, words, st.just("") | words),
    "instruction": st.builds(Instruction, words, words, st.just("") | words),
    "chat": st.lists(st.tuples(words, words), min_size=1, max_size=3).map(
        lambda pairs: Chat(tuple(Turn(r, t) for p in pairs for r,
                                 t in zip(("user", "assistant"), p, strict=True))))}


@settings(max_examples=25, deadline=None)
@given(st.data(), st.sampled_from(sorted(examples)), st.sampled_from([".jsonl", ".parquet"]))
def test_examples_come_back(tmp_path_factory, data, task, suffix):
    made = data.draw(st.lists(examples[task], min_size=1, max_size=4))
    path = tmp_path_factory.mktemp("tasks")/f"x{suffix}"
    assert write_examples(made, path) == len(made)
    assert list(read_back(path, task)) == made
    for format in ("conversation", "chat"):
        write_examples(made, path, format)
        back = list(read_back(path, task, format))
        assert [b.turns() for b in back] == [m.turns() for m in made]
        assert [b.system for b in back] == [m.system for m in made]

