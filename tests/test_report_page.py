"The page: complete or not there, the same twice, loading nothing, obeying nothing."

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import nbformat
import pytest
from nbformat.v4 import new_output
from report_examples import CRITERIA, HOSTILE, version

from ftnb.foundation.errors import BadInput, StudyFailed
from ftnb.study.report import check_metrics, page, read_version, render

VOID = set("area base br col embed hr img input link meta source track wbr".split())


class Outline(HTMLParser):
    "Every start tag with its attributes, and whether tags close in order."

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.scripts = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return version(tmp_path_factory.mktemp("study") / "1")


@pytest.fixture(scope="module")
def html(folder):
    return render(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def outline(html):
    return Outline(html)


def test_the_same_twice_and_elsewhere(folder, html, tmp_path):
    assert render(folder).read_text(encoding="utf-8") == html
    assert render(version(tmp_path / "another" / "7")).read_text(encoding="utf-8") == html
    assert str(folder) not in html


def test_tags_are_balanced_and_ids_unique(outline):
    assert not outline.open
    ids = [a["id"] for _, a in outline.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_every_link_inside_arrives(outline):
    ids = {a["id"] for _, a in outline.tags if "id" in a}
    inside = [
        a["href"][1:] for t, a in outline.tags if t == "a" and a.get("href", "").startswith("#")
    ]
    assert len(inside) > 20 and set(inside) <= ids


def test_nothing_is_loaded(html, outline):
    for tag, attributes in outline.tags:
        for name, value in attributes.items():
            if name in ("src", "srcset", "data", "poster", "action", "background"):
                assert value.startswith("data:"), (tag, value)
            if name in ("href", "xlink:href") and tag != "a":
                assert value.startswith(("#", "data:")), (tag, value)
            assert not name.startswith("on"), (tag, name)
    styles = re.findall(r"<style>(.*?)</style>", html, re.S)
    assert len(styles) == 1 and not re.search(r"url\(|@import", styles[0])
    assert not {"iframe", "object", "embed", "base", "form"} & {t for t, _ in outline.tags}


def test_one_script_and_the_policy_names_it(html, outline):
    digest = base64.b64encode(hashlib.sha256(outline.scripts[0].encode()).digest()).decode()
    assert len(outline.scripts) == 1
    policy = next(
        a["content"]
        for t, a in outline.tags
        if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_hostile_words_are_shown(html):
    assert "alert('x')" not in html.replace("&lt;script&gt;alert('x')", "").replace(
        "&lt;script&gt;alert(&#39;x&#39;)", ""
    ).replace("&lt;script&gt;alert(&#x27;x&#x27;)", "")
    assert html.count("&lt;script&gt;alert(") >= 4
    assert HOSTILE not in html


def test_pictures_are_described(outline):
    drawn = [a for t, a in outline.tags if t == "svg" and a.get("class") != "line"]
    assert len(drawn) == 4 and all(a["role"] == "img" and len(a["aria-label"]) > 20 for a in drawn)
    assert all(a.get("alt") for t, a in outline.tags if t == "img")


def test_the_decision_stands_first(html):
    assert (
        html.index('id="decision"')
        < html.index('id="found"')
        < html.index('id="rests-on"')
        < html.index('id="stage-prepare"')
    )
    decision = html[html.index('id="decision"') : html.index('id="found"')]
    assert "don't ship" in decision.replace("&#39;", "'") and decision.count(
        'class="outcome'
    ) == len(CRITERIA)
    assert (
        "0.071 [0.036, 0.106]" in decision and "✕" not in decision
    )  # the mark comes from the style


def test_changed_parameters_are_marked(html):
    changed = html[html.index('id="parameters"') : html.index("All parameters")]
    assert (
        "2 of 8 parameters differ" in changed
        and "<code>learning_rate</code>" in changed
        and "epochs" not in changed
    )


def test_code_is_folded_and_nothing_hides_without_script(html):
    assert '<details class="code" open' not in html and html.count('<details class="code">') > 10
    assert re.findall(r"<[^>]* hidden[ >]", html) == ['<button type="button" id="all-code" hidden>']


def test_tables_scroll_inside_themselves(html):
    stage = html[html.index('id="stage-evaluate"') :]
    assert stage.count("<table") == stage.count('class="scroll"') > 2
    assert '<td class="interval">0.800 [0.770, 0.830]</td>' in stage


def test_a_stages_parameters_are_folded(html):
    stage = html[html.index('id="stage-prepare"'):]
    folded = stage[stage.index('<details class="card"><summary>Parameters</summary>'):]
    assert "<td>seed</td>" in folded[:folded.index("Rows in, rows out")]


def test_figures_are_files_of_their_own(folder, html):
    from xml.etree import ElementTree

    names = sorted(p.name for p in (folder / "figures").iterdir())
    assert names == ["evaluate-01.svg", "train-01.svg"]
    assert all(
        ElementTree.parse(folder / "figures" / n).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        for n in names
    )
    assert "currentColor" not in (folder / "figures" / names[0]).read_text()


def change(folder, stage, do):
    "Rewrite a stage's notebook."
    file = next((folder / "notebooks").glob(f"*-{stage}.ipynb"))
    nb = nbformat.read(file, 4)
    do(nb)
    nbformat.write(nb, file)


def fail(nb):
    code = [c for c in nb.cells if c.cell_type == "code"][-1]
    code.outputs = [new_output("error", ename="ValueError", evalue="no rows", traceback=[])]


def stop(nb):
    nb.cells[1].execution_count = None


def empty(nb):
    nb.cells = []


@pytest.mark.parametrize("do", [fail, stop, empty])
def test_no_page_for_a_stage_that_did_not_finish(tmp_path, do):
    folder = version(tmp_path / "1")
    change(folder, "train", do)
    with pytest.raises(StudyFailed, match="train"):
        render(folder)
    assert not (folder / "index.html").exists() and not (folder / "figures").exists()


@pytest.mark.parametrize("name", ["front.json", "metrics.json"])
@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_no_page_without_its_files(tmp_path, name, content):
    folder = version(tmp_path / "1")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises((BadInput, StudyFailed)):
        render(folder)
    assert not (folder / "index.html").exists()


def test_no_page_without_a_stage(tmp_path):
    folder = version(tmp_path / "1")
    (folder / "notebooks/02-train.ipynb").unlink()
    with pytest.raises(StudyFailed, match="train"):
        render(folder)


def test_no_page_that_is_too_large(tmp_path):
    folder = version(tmp_path / "1")
    with pytest.raises(StudyFailed, match="bytes"):
        render(folder, limit=10_000)
    assert not (folder / "index.html").exists()


@pytest.mark.parametrize(
    "criteria", [[], ["accuracy >= 0.9"], ["auc lower >= 0.9"], ["accuracy lower >= 0.8"]]
)
def test_any_decision_has_a_page(tmp_path, criteria):
    html = render(version(tmp_path / "1", criteria)).read_text(encoding="utf-8")
    assert not Outline(html).open
    word = (
        {0: "undecided", 1: "don't ship"}.get(len(criteria))
        if criteria != ["accuracy lower >= 0.8"]
        else "ship"
    )
    assert f'<span class="word">{word}</span>' in html.replace("&#39;", "'")


def test_a_study_that_ends_early_has_no_decision(tmp_path):
    folder = version(tmp_path / "1")
    front, metrics = (json.loads((folder / f"{n}.json").read_text()) for n in ("front", "metrics"))
    front["stages"], metrics["stages"] = front["stages"][:1], {}
    for name, content in [("front", front), ("metrics", metrics)]:
        (folder / f"{name}.json").write_text(json.dumps(content))
    for stage in ("train", "evaluate", "release"):
        next((folder / "notebooks").glob(f"*-{stage}.ipynb")).unlink()
    for card in (folder / "cards").iterdir():
        card.unlink()
    html = page(read_version(folder))
    assert 'id="decision"' not in html and 'id="cards"' not in html and "Stage 1 of 1" in html


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"schema": "ftnb/metrics/2"},
        {"stages": []},
        {"stages": {"train": 3}},
        {"stages": {"Train it": {}}},
        {"more": 1},
        {
            "stages": {
                "evaluate": {"metrics": {"model": {"accuracy": {"estimate": 0.9, "low": 0.8}}}}
            }
        },
        {
            "stages": {
                "evaluate": {"comparisons": [{"gain": {"estimate": "0.1", "low": 0, "high": 1}}]}
            }
        },
    ],
)
def test_metrics_have_a_schema(wrong):
    right = {
        "schema": "ftnb/metrics/1",
        "study": "s",
        "fingerprint": "f",
        "stages": {"evaluate": {"n": 3, "auc": None}},
    }
    assert check_metrics(right) == right
    with pytest.raises(BadInput):
        check_metrics(right | wrong if wrong else {})


def test_seventy_seven_classes_stay_small(tmp_path):
    folder = version(tmp_path / "1")
    rows = "".join(f"<tr>{'<td>0.1</td>' * 77}</tr>" for _ in range(77))
    wide = new_output("display_data", {"text/html": f"<table>{rows}</table>"})
    change(folder, "train", lambda nb: nb.cells[1].outputs.append(wide))
    assert render(folder).stat().st_size < 1_000_000
