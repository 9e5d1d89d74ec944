"Sameness: whatever differs between two versions is found, named and sized, and nothing else is."
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from version_folders import ROWS, build_version, empty_site

from ftnb.foundation.errors import BadInput
from ftnb.foundation.files import read_json, sha256, write_json
from ftnb.versions.sameness import (
    RUNGS,
    Apart,
    Side,
    Tolerance,
    compare,
    compare_leaves,
    compare_notebooks,
    conclusions,
    describe,
    first_difference,
    leaves,
    lines_apart,
    parse_tolerances,
    rows_apart,
    sameness,
)

numbers = st.integers(-10**9, 10**9) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(st.none() | st.booleans() | numbers | st.text(max_size=8),
                      lambda inner: st.lists(inner, max_size=4)
                      | st.dictionaries(st.text("abcd", min_size=1, max_size=3), inner, max_size=4))
documents = st.dictionaries(st.text("abcd", min_size=1, max_size=3), values, max_size=5)


@given(documents)
def test_a_document_is_like_itself(document):
    assert compare_leaves(document, json.loads(json.dumps(document))) == ([], [])


@given(documents, st.data(), numbers)
def test_a_changed_number_is_found_at_its_path(document, data, now):
    found = [(p, v) for p, v in leaves(document)
             if isinstance(v, int | float) and not isinstance(v, bool)]
    assume(found)
    path, then = data.draw(st.sampled_from(found))
    assume(then != now and sum(p == path for p, _ in leaves(document)) == 1)
    changed = json.loads(json.dumps(document))
    put(changed, path, now)
    assert compare_leaves(document, changed) == ([Apart(path, then, now)], [])
    assert compare_leaves(changed, document) == ([Apart(path, now, then)], [])


def put(document, path: str, value) -> None:
    "Set a leaf by its path."
    import re
    steps = [int(n) if n else key for key, n in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path)]
    steps = [int(s[1:-1]) if isinstance(s, str) and s.startswith("[") else s for s in steps]
    for step in steps[:-1]: document = document[step]
    document[steps[-1]] = value


@given(documents, documents)
def test_documents_are_apart_just_if_they_are_unequal(a, b):
    found, others = compare_leaves(a, b)
    equal = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    if equal: assert not found and not others
    if found or others: assert not equal
    back = compare_leaves(b, a)
    assert {n.path for n in back[0]} == {n.path for n in found} and set(back[1]) == set(others)


@given(*[st.floats(-1e6, 1e6)] * 2, *[st.floats(0, 1)] * 2)
def test_a_wider_tolerance_allows_no_less(then, now, small, more):
    assume(then != now)
    apart = Apart("a.b", then, now)
    narrow, wide = Tolerance("a.*", relative=small), Tolerance("a.*", relative=small + more)
    assert wide.allows(apart) or not narrow.allows(apart)
    assert not Tolerance("b.*", relative=9, absolute=1e9).allows(apart)
    assert Tolerance("a.b", absolute=apart.absolute).allows(apart)


@pytest.mark.parametrize("text", ["a", "a: b", "a: -1", "a: nan", "a: 1 percent", ": ,", "a:inf"])
def test_a_tolerance_that_cannot_be_read_is_refused(text):
    with pytest.raises(BadInput, match="not a tolerance"): parse_tolerances(text)


@given(st.lists(st.binary(max_size=3), max_size=30), st.data())
def test_rows_that_go_come_or_change_are_named(rows, data):
    n = data.draw(st.integers(0, len(rows)))
    new = b"a row that isn't there"
    assert rows_apart(rows, [*rows[:n], new, *rows[n:]]) == f"row {n + 1} is new"
    assert rows_apart([*rows[:n], new, *rows[n:]], rows) == f"row {n + 1} is gone"
    if n < len(rows):
        assert rows_apart(rows, [*rows[:n], new, *rows[n + 1:]]) == f"row {n + 1} differs"


def test_columns_of_rows_are_named_and_not_shown():
    rows = [json.dumps({"text": f"secret {n}", "label": n, "id": n}).encode() for n in range(9)]
    other = json.dumps({"text": "hidden", "label": 3, "id": 3}).encode()
    assert rows_apart(rows, [*rows[:3], other, *rows[4:]]) == "row 4 differs in text"
    assert rows_apart(rows, [*rows[:3], other, *rows[4:-1], b"{}"]) == \
        "row 4 differs in text and 1 more of 9"
    assert rows_apart(rows, rows[:2] + rows[5:]) == "rows 3 to 5 are gone"
    assert rows_apart(rows, [*rows[:3], b"x", b"y", *rows[4:]]) == "rows 4 to 4 are others (1 → 2)"


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_the_first_byte(a, b):
    assume(a != b)
    n = first_difference(a, b)
    assert a[:n] == b[:n] and a[n:n + 1] != b[n:n + 1]


@given(st.lists(st.text(max_size=5), max_size=8), st.lists(st.text(max_size=5), max_size=8))
def test_lines(a, b):
    assume(a != b)
    said = lines_apart(a, b)
    n = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    if n is None: assert said == f"{len(a)} lines → {len(b)}"
    else: assert said.startswith(f"line {n + 1}:")


@pytest.mark.parametrize("name, then, now, said", [
    ("a.json", b'{"a": 1, "b": [1, 2]}', b'{"a": 1, "b": [1, 3]}', "b[1] 2 → 3 (3.3e-01 relative)"),
    ("a.json", b'{"a": "x"}', b'{"a": "y", "c": 1}', "a; c differ"),
    ("a.json", b'{"a": 1}', b'{ "a": 1}', "only as text"),
    ("a.json", b'{"a": 1', b'{"a": 2', "from byte 6 on, of 7 and 7"),
    ("a.txt", b"a\nb\n", b"a\nc\n", "line 2: b → c"), ("a.txt", b"a\n", b"a\r\n", "in line ends"),
    ("a.bin", b"\xff\0\1", b"\xff\0\2", "from byte 2 on, of 3 and 3"),
    ("a.jsonl", b'{"a": 1}\n', b'{"a": 2}\n', "row 1 differs in a"), ("a.txt", b"a", b"a", "")])
def test_files_are_described_by_kind(tmp_path, name, then, now, said):
    for side, content in (("then", then), ("now", now)):
        (tmp_path/side).mkdir()
        (tmp_path/side/name).write_bytes(content)
    assert describe(tmp_path/"then"/name, tmp_path/"now"/name) == said
    (tmp_path/"then"/"gone.txt").touch()
    assert ("gone.txt is missing" in describe(tmp_path/"then", tmp_path/"now"))


def test_tensors(tmp_path):
    weights = {f"layer.{n}": np.full((3, 4), n, "float32") for n in range(5)}
    def save(name, **changed): save_file(weights | changed, tmp_path/name)
    save("then.safetensors")
    cases: list[tuple[str, dict, str]] = [
        ("near", {"layer.3": np.full((3, 4), 3.0000002, "float32")},
         "1 of 5 tensors, at most 2.4e-07 (layer.3)"),
        ("shape", {"layer.1": np.ones((4, 3), "float32")}, "1 of 5 tensors, another shape"),
        ("nan", {"layer.1": np.full((3, 4), np.nan, "float32")}, "1 of 5 tensors, another shape"),
        ("new", {"head": np.ones(1, "float32")}, "tensors head in one only")]
    for name, changed, said in cases:
        save(f"{name}.safetensors", **changed)
        found = describe(tmp_path/"then.safetensors", tmp_path/f"{name}.safetensors")
        assert found.startswith(said)
    (tmp_path/"cut.safetensors").write_bytes((tmp_path/"then.safetensors").read_bytes()[:-9])
    assert "from byte" in describe(tmp_path/"then.safetensors", tmp_path/"cut.safetensors")


def a_notebook(*cells, injected=False):
    made = [{"cell_type": "code", "source": source, "metadata": {}, "outputs": [
        {"output_type": "stream", "name": "stdout", "text": text}]} for source, text in cells]
    if injected: made[1]["metadata"]["tags"] = ["injected-parameters"]
    return {"cells": [{"cell_type": "markdown", "source": "# T", "metadata": {}}, *made]}


@given(st.lists(st.tuples(st.text("xyz", max_size=3), st.text("12\n", max_size=4)),
                min_size=1, max_size=6, unique_by=lambda c: c[0]), st.data())
def test_the_cell_that_differs_is_named(cells, data):
    n = data.draw(st.integers(0, len(cells) - 1))
    then, here = a_notebook(*cells), list(cells)
    assert compare_notebooks(then, a_notebook(*cells)) == []
    here[n] = (cells[n][0], cells[n][1] + "9")
    assert compare_notebooks(then, a_notebook(*here))[0].startswith(f"code cell {n + 1}: output 1")
    here[n] = (cells[n][0] + "w", cells[n][1])
    assert compare_notebooks(then, a_notebook(*here)) == [f"code cell {n + 1} is another one"]
    here[n:n + 1] = []
    assert compare_notebooks(then, a_notebook(*here)) == [f"code cell {n + 1} is gone"]


def test_what_was_injected_is_no_cell_of_its_own():
    cells = [("a = 1", ""), ("a = 2", ""), ("a", "2")]
    then, now = a_notebook(*cells, injected=True), a_notebook(*cells, injected=True)
    now["cells"][3]["outputs"][0]["text"] = "3"
    now["cells"][2]["source"] = "a = 3"
    assert compare_notebooks(then, now) == ["the injected parameters is another one",
                                            "code cell 2: output 1: 2 → 3"]


@pytest.fixture
def pair(tmp_path):
    "The same version twice, on two sites."
    sides = []
    for name in ("then", "now"):
        (tmp_path/name).mkdir()
        site = empty_site(tmp_path/name)
        version = build_version(site)
        write_json(version.folder/"metrics.json", METRICS)
        sides.append(Side(version.folder, site.store/"versions"/"toy"/"1"))
    return sides


METRICS = {"schema": "ftnb/metrics/1", "stages": {
    "evaluate": {"accuracy": {"estimate": .9, "low": .8, "high": .95}, "rows": 200,
                 "sentence": "0.900 of 200 rows", "comparisons": [
                     {"gain": {"estimate": .02, "low": .001, "high": .04}, "verdict": "better"}]},
    "release": {"decision": {"verdict": "ship", "criteria": [{"outcome": "met"}]}}}}


def test_equal_versions_are_identical(pair):
    assert compare(*pair) == [] and sameness(*pair).rung == "identical"


@pytest.mark.parametrize("path, value, rung, kind", [
    ("evaluate.accuracy.estimate", .90000001, "conclusion holds", "beyond"),
    ("evaluate.rows", 201, "conclusion holds", "beyond"),
    ("evaluate.comparisons[0].gain.low", -.001, "differs", "concluded"),
    ("evaluate.comparisons[0].verdict", "worse", "differs", "concluded"),
    ("release.decision.verdict", "don't ship", "differs", "concluded"),
    ("release.decision.criteria[0].outcome", "not met", "differs", "concluded"),
    ("evaluate.sentence", "0.901 of 200 rows", "within tolerance", "differences"),
    ("evaluate.sentence", "none of 200 rows", "conclusion holds", "words")])
def test_a_changed_fact_has_its_rung(pair, path, value, rung, kind):
    metrics = read_json(pair[1].folder/"metrics.json")
    put(metrics["stages"], path, value)
    write_json(pair[1].folder/"metrics.json", metrics)
    same = sameness(*pair)
    assert same.rung == rung and getattr(same, kind)
    assert [d.what for d in same.differences] == ["metrics.json"]
    if kind == "beyond":
        assert same.beyond[0].path == path
        assert sameness(pair[0], pair[1], [Tolerance("evaluate.*", absolute=1.)]).rung == RUNGS[1]


def test_a_stage_can_declare_its_tolerance(pair):
    for side, accuracy in zip(pair, (.9, .9000001), strict=True):
        metrics = read_json(side.folder/"metrics.json")
        metrics["stages"]["evaluate"]["tolerances"] = {"accuracy.*": {"relative": 1e-6}}
        metrics["stages"]["evaluate"]["accuracy"]["estimate"] = accuracy
        write_json(side.folder/"metrics.json", metrics)
    assert sameness(*pair).rung == "within tolerance"


def test_no_conclusion_cannot_hold(pair):
    for side, n in zip(pair, (1, 2), strict=True):
        write_json(side.folder/"metrics.json", {"stages": {"evaluate": {"rows": n}}})
    assert sameness(*pair).rung == "differs"


@pytest.mark.parametrize("name", ["index.html", "front.json", "cards/data_card.md", "study.yaml",
                                  "parameters.json", "environment.json", "rows.txt",
                                  "notebooks/02-train.ipynb", "ro-crate-metadata.json"])
def test_one_changed_byte_of_every_kind_of_file_is_found_and_named(pair, name):
    file = pair[1].folder/name
    content = bytearray(file.read_bytes())
    at = next(n for n in range(len(content) // 2, len(content)) if chr(content[n]).isalnum())
    content[at] = ord("1") if content[at] != ord("1") else ord("2")
    file.write_bytes(content)
    same = sameness(*pair)
    assert [d.what for d in same.differences] == [name] and same.rung == "within tolerance"
    described = name in ("index.html", "environment.json", "ro-crate-metadata.json")
    assert sameness(pair[0], pair[1], described=True).rung == RUNGS[0 if described else 1]


def other(tmp_path, name, **changed):
    (tmp_path/name).mkdir()
    site = empty_site(tmp_path/name)
    version = build_version(site, **changed)
    return Side(version.folder, site.store/"versions"/"toy"/"1")


def test_a_changed_row_is_traced_from_the_data_on(pair, tmp_path):
    rows = {"train": [ROWS["train"][0], {"text": "start three machines", "label": "ec2"}],
            "test": ROWS["test"]}
    now = other(tmp_path, "rows", rows=rows)
    found = [str(d) for d in compare(pair[0], now)]
    assert found[0] == "prepare.examples: train.jsonl: row 2 differs in text"
    assert found[1].startswith("train.model: weights.json: [0] differs")
    assert any(d.startswith("rows.txt: train: row 2 differs") for d in found)
    shutil.rmtree(pair[0].kept)                                # the store keeps nothing of then
    found = [str(d) for d in compare(pair[0], now)]
    assert found[0] == "prepare.examples: train: row 2 differs"
    assert found[1].startswith("train.model: another content, of ")


def test_outputs_that_come_and_go(pair):
    facts = read_json(pair[1].folder/"version.json")
    facts["stages"]["train"]["outputs"]["extra"] = facts["stages"]["train"]["outputs"].pop("model")
    write_json(pair[1].folder/"version.json", facts)
    assert [str(d) for d in compare(*pair)] == ["train.model: isn't handed on any more",
                                                "train.extra: is handed on, and wasn't"]


def test_files_that_come_and_go(pair):
    facts = read_json(pair[1].folder/"version.json")
    del facts["files"]["cards/data_card.md"]
    (pair[1].folder/"figures").mkdir()
    (pair[1].folder/"figures"/"train-01.svg").write_text("<svg/>")
    facts["files"]["figures/train-01.svg"] = sha256(pair[1].folder/"figures"/"train-01.svg")
    write_json(pair[1].folder/"version.json", facts)
    assert [(d.stage, str(d)) for d in compare(*pair)] == [
        ("report", "cards/data_card.md: is missing"), ("train", "figures/train-01.svg: was added")]


def test_another_fingerprint_alone_is_no_difference(pair):
    for file in pair[1].folder.rglob("*"):
        if file.is_file():
            text = file.read_bytes().replace(pair[0].facts["fingerprint"].encode(), b"e" * 64)
            file.write_bytes(text)
    now = Side(pair[1].folder, pair[1].kept)
    assert now.facts["fingerprint"] == "e" * 64 and compare(pair[0], now) == []


SHARED = [HealthCheck.function_scoped_fixture]


@settings(max_examples=25, deadline=None, suppress_health_check=SHARED)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, .2))
def test_more_tolerance_never_leads_down_the_ladder(pair, then, now, size):
    for side, estimate in zip(pair, (then, now), strict=True):
        metrics = json.loads(json.dumps(METRICS))
        metrics["stages"]["evaluate"]["accuracy"]["estimate"] = estimate
        write_json(side.folder/"metrics.json", metrics)
    a_side, b_side = (Side(s.folder, s.kept) for s in pair)
    rungs = [RUNGS.index(sameness(a_side, b_side, [Tolerance("*", absolute=a)]).rung)
             for a in (0, size, 2 * size)]
    assert rungs == sorted(rungs, reverse=True)


def test_conclusions_of_the_committed_quickstart():
    report = Path(__file__).resolve().parent.parent/"reports"/"quickstart"
    newest = max((p for p in report.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    found = conclusions(read_json(newest/"metrics.json")["stages"])
    assert found["release.decision.verdict"] and any(p.endswith(".gain") for p in found)
    assert any(p.startswith("bias.") and p.endswith("verdict") for p in found)
