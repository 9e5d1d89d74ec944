"Nothing that acts comes into a page; identical runs give identical notebooks."

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import nbformat
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ftnb.study.clean import TAGS, clean_html, clean_svg, prose, said, tidy, typeset

PIECES = [
    "<script>",
    "</script>",
    "<ScRiPt\n>",
    "<svg onload=x()>",
    "<svg xmlns='http://www.w3.org/2000/svg'>",
    "</svg>",
    "<img src=x onerror=y()>",
    "<a href='javascript:x()'>",
    '<a href="java\tscript:x()">',
    "<style>*{}</style>",
    "<style>",
    "<table>",
    "<td",
    ">",
    "<",
    '"',
    "'",
    "&lt;script&gt;",
    "&#60;script>",
    "<!--",
    "-->",
    "<![CDATA[",
    "]]>",
    "<iframe srcdoc='<script>'>",
    "<math><mtext>",
    "<b style='background:url(https://example.org)'>",
    "<textarea>",
    "<title>",
    "<foreignObject>",
    "\ue0000\ue001",
    "\x00",
    "text",
    " ",
    "\n",
    "`",
    "|",
    "**",
    "[x](javascript:y())",
    "![x](https://example.org/x.png)",
    "<form action=/>",
    "</div></main>",
]
anything = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=12).map("".join)
SHAPES = {"svg", "g", "path", "rect", "circle", "text", "defs"}


class Strict(HTMLParser):
    "Fails on any tag or attribute that could act."

    def handle_starttag(self, tag, attrs):
        assert tag in TAGS | SHAPES, tag
        for name, value in attrs:
            assert not name.startswith("on") and name not in ("srcdoc", "action", "srcset", "id"), (
                tag,
                name,
            )
            if name == "href":
                assert re.match(r"https?://|mailto:|#", value or "")
            if name == "src":
                assert (value or "").startswith("data:image/")
            if name == "style":
                assert "url" not in value and "position" not in value

    handle_startendtag = handle_starttag


@settings(max_examples=300, deadline=None)
@given(anything)
def test_nothing_acts_in_html(fragment):
    Strict().feed(clean_html(fragment))


@settings(max_examples=200, deadline=None)
@given(anything)
def test_nothing_acts_in_prose(source):
    Strict().feed(
        re.sub(r'(<h[1-6]) id="[^"]*"|<div class="scroll"[^>]*>', r"\1", prose(source, "stage-"))
    )


@settings(max_examples=200, deadline=None)
@given(anything)
def test_what_was_printed_is_text(text):
    Strict().feed(said(text))


@settings(max_examples=200, deadline=None)
@given(anything)
def test_svg_is_shapes_or_nothing(inside):
    svg = clean_svg(f"<svg xmlns='http://www.w3.org/2000/svg'>{inside}</svg>")
    if svg:
        for element in ElementTree.fromstring(svg).iter():
            assert element.tag.split("}")[-1] in SHAPES | {"image"}


def test_entities_do_not_grow():
    bomb = '<!DOCTYPE s [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;">]>'
    bomb += '<svg xmlns="http://www.w3.org/2000/svg"><text>&b;</text></svg>'
    assert clean_svg(bomb) == ""


def test_matplotlib_survives():
    from report_examples import curve

    before, after = curve().svg, clean_svg(curve().svg)
    count = lambda s, what: len(re.findall(what, s))
    for what in ("<path", "<use", "<text", "clip-path=", "<clipPath", "currentColor"):
        assert count(before, what) == count(after, what) > 0, what
    assert "viewBox" in after and "aria-label" in after and "<style" not in after
    assert (
        clean_html(curve()._repr_mimebundle_()["text/html"])
        == f'<figure class="picture">{after}</figure>'
    )


@given(st.text(max_size=60))
def test_typesetting_changes_no_words(text):
    plain = lambda s: s.replace("\u00a0", " ").replace("≥", ">=").replace("≤", "<=")
    assert plain(typeset(text)) == plain(text)


outputs = st.lists(
    st.one_of(
        st.builds(
            lambda t, n: new_output("stream", name=n, text=t),
            st.text(max_size=20),
            st.sampled_from(["stdout", "stderr"]),
        ),
        st.builds(
            lambda t: new_output("execute_result", {"text/plain": t}, execution_count=9),
            st.text(max_size=20),
        ),
        st.builds(
            lambda: new_output(
                "display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}}
            )
        ),
    ),
    max_size=5,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(outputs, max_size=4), st.integers(0, 10**6), st.integers(0, 10**6))
def test_identical_runs_give_identical_notebooks(cells, one, two):
    def run(n):
        made = [
            new_code_cell(
                f"step({i})",
                id=f"c{i}",
                outputs=[nbformat.from_dict(dict(o)) for o in shown],
                execution_count=n + i,
                metadata={"papermill": {"duration": n}, "tags": ["parameters"] if not i else []},
            )
            for i, shown in enumerate(cells)
        ]
        injected = new_code_cell(
            "seed = 1", id=f"r{n}", metadata={"tags": ["injected-parameters"]}, execution_count=n
        )
        return new_notebook(
            cells=[new_markdown_cell("# T", id="t"), *made, injected],
            metadata={"papermill": {"start_time": n}, "language_info": {"name": f"python{n}"}},
        )

    first = nbformat.writes(tidy(run(one)))
    assert first == nbformat.writes(tidy(run(two))) == nbformat.writes(tidy(tidy(run(one))))
    assert "stderr" not in first and "papermill" not in first and "widget-view" not in first


def test_tidy_leaves_its_argument_alone():
    nb = new_notebook(
        cells=[
            new_code_cell(
                "x", execution_count=7, outputs=[new_output("stream", name="stderr", text="x")]
            )
        ]
    )
    before = nbformat.writes(nb)
    tidy(nb)
    assert nbformat.writes(nb) == before
