"Lineage both ways, against a search through everything; its index under damage; its picture."
import io
import json
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree

import networkx as nx
import pytest
from hypothesis import given, strategies
from hypothesis import settings as examples
from version_folders import MODULES, PACKAGES, ROWS, build_version, empty_site

from ftnb.foundation.errors import BadInput
from ftnb.foundation.files import sha256, write_text
from ftnb.study.crate import StageFacts, stage_facts
from ftnb.study.provenance import (
    HEIGHT,
    boxes_and_arrows,
    depths,
    ordered,
    places,
    provenance_picture,
    reached,
    reduced,
    with_passages,
)
from ftnb.study.rows import row_digest, row_line
from ftnb.study.versions import kept_files, open_version
from ftnb.versions.index import index_file, known, open_index, said_by, sayings
from ftnb.versions.lineage import examples_of, lineage, picture, row_names, uses

ROOT = Path(__file__).resolve().parent.parent
EXTRA = {"text": "stop it", "label": "ec2"}


@pytest.fixture
def site(tmp_path):
    "Two studies; toy@2 has a row more, toy@3 a newer torch, other@1 another seed and module."
    site = empty_site(tmp_path)
    build_version(site)
    build_version(site, number=2, rows={**ROWS, "test": [*ROWS["test"], EXTRA]})
    build_version(site, number=3, packages={**PACKAGES, "torch": "2.14.0"})
    build_version(site, "other", seed=2, modules={**MODULES, "ftnb.data.splits": "a" * 64})
    return site


# -- forward ------------------------------------------------------------------------------------

def test_a_file_is_what_it_holds(site):
    assert uses(site.root/"data.csv", site).versions == ["other@1", "toy@1", "toy@2", "toy@3"]
    moved = site.root/"else"/"name.txt"
    moved.parent.mkdir()
    shutil.copy(site.root/"data.csv", moved)
    assert len(uses(moved, site).versions) == 4
    changed = write_text(site.root/"else"/"data.csv", "text,label \n")
    answer = uses(changed, site)
    assert not answer.found and "other content went into other@1, toy@1" in answer.sheets()[0].title
    model = kept_files(open_version(site.reports/"toy"/"1"), site)/"workbench"/"train"/"model"
    assert [(u.version, u.stage) for u in uses(model, site).found] == [
        ("toy@1", "train"), ("toy@1", "evaluate"), ("toy@3", "train"), ("toy@3", "evaluate")]
    with pytest.raises(BadInput, match="no such file"): uses(site.root/"none", site)


def test_a_hash_finds_what_read_received_and_made_it(site):
    rows = sha256(examples_of(open_version(site.reports/"toy"/"2"), site))
    found = uses(rows[:10], site, "sha256").found
    assert [(u.version, u.stage, u.how) for u in found] == [
        ("toy@2", "prepare", "handed on examples"), ("toy@2", "train", "received prepare.examples"),
        ("toy@2", "evaluate", "received prepare.examples")]
    assert {u.how for u in uses("8" * 64, site, "sha256").found} == {
        "read notes.txt, which no parameter names"}
    page = sha256(site.reports/"toy"/"3"/"index.html")
    assert [u.how for u in uses(page.upper(), site, "sha256").found] == ["holds index.html"]
    for bad in ("12345", "not hex at all", "0" * 65):
        with pytest.raises(BadInput, match="isn't a SHA-256"): uses(bad, site, "sha256")


def test_packages_modules_and_base_models(site):
    assert uses("torch==2.14.0", site, "package").versions == ["toy@3"]
    assert uses("torch >= 2.14, < 3", site, "package").versions == ["toy@3"]
    for bad in ("torch=2", "", "==1"):
        with pytest.raises(BadInput, match="isn't a package"): uses(bad, site, "package")
    assert uses("Torch", site, "package").versions == ["other@1", "toy@1", "toy@2", "toy@3"]
    missing = uses("torch==9", site, "package")
    assert not missing.found and missing.note == "; others used 2.13.0, 2.14.0"
    assert "did you mean 'torch'" in uses("tourch", site, "package").note
    assert uses("ftnb.data.splits==aaaa", site, "module").versions == ["other@1"]
    assert uses("ftnb.data.splits==5555", site, "module").versions == [
        "other@1", "toy@1", "toy@2", "toy@3"]      # other@1's train still ran the old one
    assert uses("ftnb.study.report", site, "module").found[0].stage == ""
    assert len(uses("a-model", site, "base model").versions) == 4
    with pytest.raises(BadInput, match="did you mean 'package'"): uses("x", site, "packge")


def test_a_row_by_line_by_name_and_by_text(site):
    line = row_line(EXTRA)
    other = '{"text":"stop it",  "label": "ec2"}'
    for asked in (line, line + "\n", other, row_digest(line), "stop it"):
        answer = uses(asked, site, "row")
        assert [(u.version, u.stage, u.how) for u in answer.found] == [
            ("toy@2", "prepare", "in the split test, row 2")]
        assert answer.silent == []
    assert len(uses("où est mon bucket ?", site, "row").versions) == 4
    assert uses("stop", site, "row").found == []           # a part of a text is another text
    with pytest.raises(BadInput, match="not a row's JSON line"): uses("{text: 1}", site, "row")


def test_what_can_t_be_asked_is_said(site):
    shutil.rmtree(kept_files(open_version(site.reports/"toy"/"2"), site))
    assert uses(row_line(EXTRA), site, "row").versions == ["toy@2"]     # by name, without the rows
    assert uses("stop it", site, "row").silent == ["toy@2"]             # by text, not
    (site.reports/"toy"/"2"/"rows.txt").unlink()
    assert uses(row_line(EXTRA), site, "row").silent == ["toy@2"]
    (site.reports/"toy"/"1"/"rows.txt").unlink()                        # its rows are kept
    assert "toy@1" in uses(row_line(ROWS["train"][0]), site, "row").versions
    shutil.rmtree(site.store/"versions")
    with pytest.raises(BadInput, match="no version here has its rows"): uses("stop it", site, "row")


@examples(max_examples=8, deadline=None)
@given(seed=strategies.integers(0, 10**6))
def test_rows_are_found_as_by_a_search_through_everything(tmp_path_factory, seed):
    draw, site = random.Random(seed), empty_site(tmp_path_factory.mktemp("s"))
    pool = [{"text": f"t{n % 7}", "label": "ab"[n % 2], "id": n} for n in range(9)]
    drawn = {}
    for number in range(1, 4):
        rows = {split: draw.choices(pool, k=draw.randint(1, 5)) for split in ("train", "test")}
        drawn[f"toy@{number}"] = rows
        build_version(site, number=number, rows=rows)
    for row in pool:
        expected = sorted((v, f"in the split {split}, row {n}")
                          for v, rows in drawn.items() for split, some in rows.items()
                          for n, r in enumerate(some, 1) if r == row)
        found = uses(row_line(row), site, "row").found
        assert sorted((u.version, u.how) for u in found) == expected
        said = {v for v, rows in drawn.items()
                if row["text"] in {r["text"] for some in rows.values() for r in some}}
        assert set(uses(str(row["text"]), site, "row").versions) == said


# -- backward -----------------------------------------------------------------------------------

def test_a_version_s_lineage(site):
    first = open_version(site.reports/"toy"/"1")
    found = lineage(first, site)
    assert found.sources == {("ftnb/data/names.json", "7" * 64): ["prepare"],
                             ("data.csv", sha256(site.root/"data.csv")): ["prepare"],
                             ("notes.txt", "8" * 64): ["train"], ("a-model", ""): ["train"]}
    assert found.shared == {"prepare": ["toy@3"], "train": [], "evaluate": ["toy@3"]}
    assert found.rows == {s: [row_digest(row_line(r)) for r in rows] for s, rows in ROWS.items()}
    told = json.loads(json.dumps(found.to_dict()))
    assert told["rows"] == {"train": 2, "test": 1}
    assert told["stages"][1]["packages"] == PACKAGES and told["stages"][0]["modules"] == MODULES
    assert found._repr_html_().count("<table") == 3 and "<svg" in found._repr_html_()


def test_rows_come_back_whole_or_not_at_all(site):
    version = open_version(site.reports/"toy"/"2")
    kept = examples_of(version, site)
    assert [json.loads(line) for line in (kept/"test.jsonl").open(encoding="utf-8")][-1] == EXTRA
    (version.folder/"rows.txt").unlink()
    assert row_names(version, site)["test"][-1] == row_digest(row_line(EXTRA))
    write_text(kept/"test.jsonl", row_line(EXTRA) + "\n")
    with pytest.raises(BadInput, match="aren't those that it recorded"): examples_of(version, site)
    assert row_names(version, site) == {}
    shutil.rmtree(kept)
    with pytest.raises(BadInput, match="aren't in this store"): examples_of(version, site)


def test_answers_show_themselves_everywhere(site):
    from rich.console import Console
    rows = {"train": [{"text": "<script>", "label": "[bold]"}]}
    hostile = build_version(site, "hostile", rows=rows, base="[bold]<b>")
    for answer in (lineage(hostile, site), uses("<script>", site, "row"),
                   uses("[bold]<b>", site, "base model"), uses("torch", site, "package")):
        assert "<script>" not in answer._repr_html_() and "<b>" not in answer._repr_html_()
        written = io.StringIO()
        Console(width=60, file=written, force_jupyter=False).print(answer)
        assert "hostile@1" in written.getvalue()
        json.dumps(answer.to_dict())


# -- committed versions of schema 1 ---------------------------------------------------------------

COMMITTED = sorted((ROOT/"reports").glob("*/*/version.json"))


@pytest.mark.parametrize("file", COMMITTED, ids=lambda p: "/".join(p.parts[-3:-1]))
def test_committed_versions_answer(file, tmp_path):
    site = empty_site(tmp_path)
    shutil.copytree(file.parent, site.reports/file.parent.parent.name/file.parent.name)
    version = open_version(site.reports/file.parent.parent.name/file.parent.name)
    found = lineage(version, site)
    assert [s.name for s in found.stages][:2] == ["prepare", "train"]
    model = next(s for s in found.stages if s.name == "train").outputs["model"]["sha256"]
    assert uses(model, site, "sha256").versions == [version.name]
    assert uses("torch==2.13.0", site, "package").versions == [version.name]
    requests = ROOT/"ftnb"/"data"/"requests.jsonl"
    said = sayings(version.folder, version.facts)
    if sha256(requests) in {s.value for s in said}:
        assert uses(requests, site).versions == [version.name]
    assert "train leads to model" in picture(version).alt


# -- the index ----------------------------------------------------------------------------------

def everything(site):
    with closing(open_index(site)) as db: return said_by(db)


def through_everything(site):
    return sorted(s for file in site.reports.glob("*/*/version.json")
                  for s in sayings(file.parent, json.loads(file.read_text())) if s.role != "state")


def test_the_index_says_what_versions_say_and_follows_them(site):
    assert everything(site) == through_everything(site)
    build_version(site, "late")
    assert everything(site) == through_everything(site)
    shutil.rmtree(site.reports/"toy"/"2")
    assert everything(site) == through_everything(site)
    shutil.rmtree(site.reports/"late")                 # another version takes the number
    build_version(site, "late", base="b-model")
    assert everything(site) == through_everything(site)
    assert uses("b-model", site, "base model").versions == ["late@1"]
    with closing(open_index(site)) as db: assert len(known(db)) == 4


@pytest.mark.parametrize("damage", ["no database", "cut", "noise", "another format", "empty"])
def test_a_damaged_index_is_made_again(site, damage, caplog):
    expected, file = everything(site), index_file(site)
    content = bytearray(file.read_bytes())
    if damage == "no database": content = bytearray(b"words " * 2000)
    if damage == "cut": content = content[:len(content) // 2]
    if damage == "noise": content[8192:12288] = random.Random(1).randbytes(4096)
    if damage == "another format": content[60:64] = b"\0\0\0\7"     # user_version, see sqlite.org
    if damage == "empty": content = bytearray()
    file.write_bytes(content)
    assert everything(site) == expected
    assert damage == "empty" or "is made again" in caplog.text


def test_a_store_that_can_t_be_written_is_no_hindrance(site, monkeypatch):
    expected = everything(site)
    connect = sqlite3.connect
    def refuse(place, **options):
        if place != ":memory:": raise sqlite3.OperationalError("unable to open database file")
        return connect(place, **options)
    monkeypatch.setattr(sqlite3, "connect", refuse)
    assert everything(site) == expected


def test_many_may_ask_at_once(site):
    code = ("import sys; from pathlib import Path; from ftnb.versions.lineage import uses; "
            "from ftnb.foundation.settings import Settings, Stated; "
            "site = Settings(Path(sys.argv[1]), Stated(tracking_uri='')); "
            "print(uses('torch', site, 'package').versions)")
    asked = [subprocess.Popen([sys.executable, "-c", code, str(site.root)], cwd=ROOT, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    told = [p.communicate() for p in asked]
    assert told == [("['other@1', 'toy@1', 'toy@2', 'toy@3']\n", "")] * 4
    assert everything(site) == through_everything(site)


def many_versions(site, count: int, different_rows: int) -> None:
    "Versions of six stages, 60 packages and 40 modules each, as a sweep leaves them."
    packages = {f"package-{n}": "1.0" for n in range(60)}
    modules = {f"ftnb.area.module{n}": f"{n:064x}" for n in range(40)}
    for number in range(1, count + 1):
        folder, group = site.reports/"many"/str(number), number % different_rows
        folder.mkdir(parents=True)
        rows = "".join(f"train\t{(group << 24) + n:012x}\n" for n in range(8000))
        stages = {}
        for stage in ("prepare", "train", "evaluate", "bias", "explain", "release"):
            own = number if stage != "prepare" else group
            stages[stage] = {
                "key": f"{own:064x}", "receipt": "9" * 16, "reads": {}, "notebook": f"{own:064x}",
                "inputs": {} if stage == "prepare" else {"prepare.examples": f"{group:064x}"},
                "outputs": {"out": {"sha256": f"a{own:063x}", "about": {}}},
                "made": {"packages": packages | {"torch": f"2.{own % 3}"}, "modules": modules,
                         "parameters": {"path": "a.csv"}, "contents": {"path": f"d{group:063x}"}}}
        facts = {"schema": "ftnb/version/2", "study": "many", "fingerprint": "",
                 "order": list(stages), "stages": stages,
                 "files": {"rows.txt": f"{group:064x}", "index.html": f"{number:064x}"}}
        (folder/"version.json").write_text(json.dumps(facts))
        (folder/"rows.txt").write_text(rows)


def test_a_thousand_versions_are_asked_in_less_than_a_second(tmp_path):
    site = empty_site(tmp_path)
    many_versions(site, 1000, 50)
    began = time.process_time()
    uses("torch", site, "package")                       # the index is made
    assert time.process_time() - began < 20
    took = {}
    for what, kind, count in [(f"d{7:063x}", "sha256", 20), ("torch==2.1", "package", None),
                              ("torch", "package", 1000), ("ftnb.area.module3", "module", 1000),
                              (f"{(7 << 24) + 5000:012x}", "row", 20)]:
        began = time.process_time()
        found = uses(what, site, kind).versions
        took[what] = time.process_time() - began
        assert len(found) == count or count is None and 300 < len(found)
    assert max(took.values()) < 1, took


# -- the picture --------------------------------------------------------------------------------

@strategies.composite
def studies(draw):
    "Stages that take in from any before them, and read files that others may read, too."
    names = [f"stage{n}" for n in range(draw(strategies.integers(1, 9)))]
    files = strategies.dictionaries(strategies.sampled_from(["a.csv", "b/c.json", "<d>.txt"]),
                                    strategies.just("d" * 64), max_size=2)
    stages = []
    for n, name in enumerate(names):
        earlier = strategies.sampled_from(names[:n] or names)
        before = sorted(draw(strategies.sets(earlier, max_size=3 if n else 0)))
        kind = draw(strategies.sampled_from(["toy/model/1", "toy/rows/1"]))
        output = {"path": "x", "kind": kind, "sha256": f"{n:064x}", "bytes": 1,
                  "about": draw(strategies.sampled_from([{}, {"base": "m"}]))}
        inputs = {f"{b}.out": "0" * 64 for b in before}
        stages.append(StageFacts(name, "", f"{n:064x}", inputs, {"out": output}, {},
                                 contents=draw(files)))
    return stages


@examples(max_examples=60, deadline=None)
@given(studies())
def test_arrows_are_networkx_s_reduction_and_boxes_don_t_meet(stages):
    boxes, arrows = boxes_and_arrows(stages, "f" * 64)
    graph = nx.DiGraph(sorted(arrows))
    drawn = reduced(arrows)
    assert drawn == set(nx.transitive_reduction(graph).edges)
    assert reached(drawn) == {n: nx.descendants(graph, n) for n in graph if graph.out_degree(n)}
    row = depths(boxes, drawn)
    assert all(row[a] < row[b] for a, b in drawn) and min(row.values()) == 0
    rows, steps = with_passages(row, drawn)
    at = places(ordered(rows, steps), boxes)
    for r in rows:
        spans = sorted((at[i][0] - at[i][2] / 2, at[i][0] + at[i][2] / 2) for i in r)
        assert spans[0][0] >= 0
        assert all(a[1] < b[0] for a, b in zip(spans, spans[1:], strict=False))
    ways = {(a, b): 0 for a, b in drawn}      # an arrow is a way of steps from its box to the other
    for a, b in steps:
        if b in boxes: ways[a.partition(" → ")[0] if " → " in a else a, b] += 1
    assert set(ways.values()) == {1}


@examples(max_examples=25, deadline=None)
@given(studies())
def test_a_picture_is_well_formed_described_and_inside_its_frame(stages):
    seen = provenance_picture(stages, "f" * 64, "toy@1")
    assert seen.svg == provenance_picture(list(stages), "f" * 64, "toy@1").svg
    svg = ElementTree.fromstring(seen.svg)
    assert svg.get("role") == "img" and svg.get("aria-label") == seen.alt
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    for box in svg.iter("{http://www.w3.org/2000/svg}rect"):
        x, y, w = (float(box.attrib[name]) for name in ("x", "y", "width"))
        assert 0 <= x and x + w <= width and 0 <= y and y + HEIGHT <= height
    for stage in stages: assert stage.name in seen.alt
    words = ["".join(t.itertext()) for t in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {s.name for s in stages} <= set(words)
    assert not re.search(r"\d{2}:\d{2}", seen.svg)


def test_a_picture_of_a_built_version(site):
    version = open_version(site.reports/"toy"/"1")
    seen = picture(version)
    assert "a-model leads to train" in seen.alt and "train leads to model" in seen.alt
    assert len(stage_facts(version.folder, version.facts)) == 3
    assert len(seen.svg) < 10_000
