"""What a user can get wrong, and what the front door says of it.

Every case goes through `ftnb run` on a site of its own, where a good report stands already. Each
must end with exit code 1 or 2 and a message that names what is wrong, must show no traceback, and
must leave the report that stands untouched.
"""
import gzip
import json
import os
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from typer.testing import CliRunner

from ftnb.cli import app
from ftnb.foundation.files import sha256
from ftnb.foundation.settings import settings
from ftnb.study.plan import BadStudy, read_study

ROOT = Path(__file__).resolve().parent.parent
ROWS = "text,label\n" + "".join(
    f"please {verb} the {noun} of shop {i},{label}\n" for i in range(30)
    for verb, noun, label in [("open", "door", "doors"), ("pay", "bill", "money")])


def reading(path: Path) -> str:
    "A study that only prepares this file."
    return ("study: bad\nstages: [prepare]\n"
            f"prepare: {{source: files, path: {path}, text_column: text, label_column: label, "
            "group_column: '', keep_columns: [], split: stratified, languages: false, "
            "label_noise: 'off', dataset_name: bad}\n")


@pytest.fixture
def shop(tmp_path, monkeypatch):
    "A site with a report that must survive, and a folder for bad files."
    for name in ("reports", "data_cards", "store", "workbench"):
        monkeypatch.setenv(f"FTNB_{name.upper()}", str(tmp_path/name))
    monkeypatch.setenv("FTNB_TRACKING_URI", "")
    good = tmp_path/"reports"/"bad"/"1"
    good.mkdir(parents=True)
    (good/"version.json").write_text(json.dumps({"fingerprint": "0" * 64}))
    (good/"index.html").write_text("a report that stands")
    (tmp_path/"good.csv").write_text(ROWS)
    return tmp_path


def ftnb(*arguments: str | Path):
    terminal = {"COLUMNS": "200", "NO_COLOR": "1"}
    return CliRunner().invoke(app, [str(a) for a in arguments], env=terminal)


def refused(shop: Path, text: str | bytes, *words: str, codes=(2,), options=()):
    "Run a study that can't work; check code, message, no traceback, and that nothing was lost."
    study = shop/"bad.yaml"
    study.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = sha256(shop/"reports")
    result = ftnb("run", study, *options)
    said = result.output
    assert result.exit_code in codes, said
    for word in words: assert word.lower() in said.lower(), f"{word!r} is not in: {said}"
    assert "Traceback" not in said and "unexpected" not in said, said
    assert sha256(shop/"reports") == before, "an earlier report was touched"
    return said


# What the YAML can get wrong: all of it is said before anything runs.
STUDIES: dict[str, tuple[Any, ...]] = {
    "unknown parameter": ("study: bad\ntrain: {learnig_rate: 0.1}\n", "learnig_rate",
                          "did you mean 'learning_rate'"),
    "unknown stage": ("study: bad\ntrian: {epochs: 1}\n", "trian", "did you mean 'train'"),
    "unknown stage in the list": ("study: bad\nstages: [prepare, tune]\n", "tune", "stages are"),
    "text for a number": ("study: bad\ntrain: {epochs: six}\n", "epochs", "'six' is text"),
    "quoted number": ("study: bad\ntrain: {learning_rate: '3e-4'}\n", "without quotes"),
    "truth value for a number": ("study: bad\ntrain: {epochs: true}\n", "epochs", "truth value"),
    "fraction for a whole number": ("study: bad\ntrain: {epochs: 2.5}\n", "epochs", "2.5"),
    "out of range": ("study: bad\nprepare: {test_share: 1.5}\n", "test_share", "out of range"),
    "not a number": ("study: bad\ntrain: {learning_rate: .nan}\n", "learning_rate"),
    "infinite": ("study: bad\ntrain: {learning_rate: .inf}\n", "learning_rate"),
    "no such choice": ("study: bad\nprepare: {source: file}\n", "source", "did you mean 'files'"),
    "text for a list": ("study: bad\nprepare: {keep_columns: register}\n", "keep_columns",
                        "list[str]"),
    "number in a list of texts": ("study: bad\nprepare: {keep_columns: [1]}\n", "keep_columns",
                                  "item 1"),
    "section is a list": ("study: bad\ntrain: [epochs]\n", "train", "mapping"),
    "no name": ("question: what?\n", "study", "not a name"),
    "name goes outside": ("study: ../bad\n", "not a name"),
    "name with blanks": ("study: my study\n", "not a name"),
    "key twice": ("study: bad\nstudy: good\n", "YAML", "line 2"),
    "broken YAML": ("study: [bad\ntrain: {\n", "YAML", "line"),
    "a tab in YAML": ("study: bad\ntrain:\n\tepochs: 1\n", "YAML", "line 3"),
    "a list instead of a mapping": ("- study\n", "mapping"),
    "empty study": ("", "mapping"),
    "not UTF-8": (b"study: bad\nquestion: \xff\xfe\n", "can't read"),
    "unknown criterion": ("study: bad\nrelease: {criteria: [acuracy lower >= 0.8]}\n", "acuracy"),
    "criterion without number": ("study: bad\nrelease: {criteria: [accuracy lower >= high]}\n",
                                 "can't read the criterion"),
    "a secret in a parameter": ("study: bad\nrelease: {limitations: AKIAIOSFODNN7EXAMPLE}\n",
                                "secret"),
    "hub model not pinned": ("study: bad\ntrain: {base_model: owner/name}\n", "pinned", "40 hex"),
    "hub model at main": ("study: bad\ntrain: {base_model: owner/name, base_revision: main}\n",
                          "pinned"),
    "no such model folder": ("study: bad\ntrain: {base_model: ./models/none}\n", "models/none"),
    "no file named": ("study: bad\nprepare: {source: files}\n", "path"),
    "no such file": ("study: bad\nprepare: {source: files, path: data/none.csv}\n", "none.csv"),
}


@pytest.mark.parametrize("case", STUDIES)
def test_a_wrong_study(shop, case):
    text, *words = STUDIES[case]
    refused(shop, text, *words)


def test_every_problem_is_said_at_once(shop):
    text = ("study: Bad\ntrain:\n  epochs: six\n  learnig_rate: 1\n"
            "prepare:\n  test_share: 2\nrelase: {}\n")
    said = refused(shop, text, "line 3", "line 4", "line 6", "line 7")
    assert len([line for line in said.splitlines() if line.startswith("error")]) == 5


@pytest.mark.parametrize("option, word", [
    ("epochs=3", "stage.name=value"), ("train.epochs", "stage.name=value"),
    ("train.epoch=3", "did you mean 'epochs'"), ("trains.epochs=3", "did you mean 'train'"),
    ("train.epochs=many", "'many' is text"), ("train.epochs=[", "YAML")])
def test_a_wrong_override(shop, option, word):
    refused(shop, "study: bad\n", word, options=("-p", option))


def test_a_path_that_the_command_line_replaces_need_not_be_there(shop):
    study = shop/"elsewhere.yaml"
    study.write_text(reading(Path("data/none.csv")))
    with pytest.raises(BadStudy, match="data/none.csv"): read_study(study)
    assert read_study(study, [f"prepare.path={shop}/good.csv"]).given["prepare"]["path"]
    with pytest.raises(BadStudy, match="data/other.csv"):
        read_study(study, ["prepare.path=data/other.csv"])


def test_no_such_study(shop):
    result = ftnb("run", ROOT/"params"/"quickstrat.yaml")
    assert result.exit_code == 2
    assert "did you mean 'quickstart.yaml'" in result.output + result.stderr


def test_errors_are_json_on_request(shop):
    (shop/"bad.yaml").write_text("study: bad\ntrain: {epochs: six}\n")
    result = ftnb("run", shop/"bad.yaml", "--json")
    answer = json.loads(result.stdout)
    assert result.exit_code == answer["exit_code"] == 2 and answer["problems"][0]["line"] == 2


@pytest.mark.parametrize("arguments", [
    ("show", "nothing"), ("show", "quickstart@999"), ("reports", "nothing"), ("params", "trian")])
def test_other_commands_with_wrong_names(shop, arguments):
    shutil.rmtree(shop/"reports")
    assert ftnb(*arguments).exit_code == 2


def test_a_misspelt_setting(shop, monkeypatch, tmp_path):
    root = tmp_path/"site"
    (root/"nbs").mkdir(parents=True)
    (root/"settings.ini").write_text("[ftnb]\nreport = x\n")
    monkeypatch.setenv("FTNB_ROOT", str(root))
    result = ftnb("settings")
    assert result.exit_code == 2 and "did you mean 'reports'" in result.output + result.stderr


def test_an_unwritable_folder(shop, monkeypatch):
    "Root may write anywhere, so the folder's place is taken by a file."
    (shop/"taken").write_text("a file")
    monkeypatch.setenv("FTNB_REPORTS", str(shop/"taken"/"reports"))
    refused(shop, reading(shop/"good.csv"), "can't write", codes=(1, 2))


# What a file can be like that it can't be used at all.
def empty(p): p.write_text("")
def header_only(p): p.write_text("text,label\n")
def zipped(p):
    with zipfile.ZipFile(p, "w") as z: z.writestr("rows.csv", ROWS)
def pdf(p): p.write_bytes(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + os.urandom(200))
def other_columns(p): p.write_text(ROWS.replace("text,label", "texts,labels", 1))
def same_column_twice(p): p.write_text(ROWS.replace("text,label", "text,text", 1))
def one_class(p):
    p.write_text("text,label\n" + "".join(f"open the door of shop {i},doors\n" for i in range(30)))
def all_bad(p): p.write_text("text,label\n" + ",doors\n" * 30)
def no_labels(p): p.write_text("text,label\n" + "".join(f"open door {i},\n" for i in range(30)))
def label_fractions(p):
    p.write_text("text,label\n" + "".join(f"open the door {i},{i}.5\n" for i in range(30)))
def not_utf8(p):
    rows = (b"\x80\x81\xfe\xff %d,a\n" % i for i in range(30))
    p.write_bytes(b"text,label\n" + b"".join(rows))
def long_line(p): p.write_text("text,label\n" + "x" * 50_000_000 + ",doors\n")
def cut_gzip(p): p.write_bytes(gzip.compress(ROWS.encode())[:-20])
def too_few(p): p.write_text("text,label\nopen the door,doors\npay the bill,money\n")


BAD_FILES = {
    empty: ("data.csv", "empty"), header_only: ("data.csv", ""), zipped: ("data.csv", "zip"),
    pdf: ("data.csv", "pdf"), other_columns: ("data.csv", "did you mean 'texts'"),
    same_column_twice: ("data.csv", "more than once"), one_class: ("data.csv", "class"),
    all_bad: ("data.csv", ""), no_labels: ("data.csv", ""), label_fractions: ("data.csv", "label"),
    not_utf8: ("data.csv", ""), long_line: ("data.csv", ""), cut_gzip: ("data.csv.gz", ""),
    too_few: ("data.csv", ""),
}


READ = (header_only, all_bad, no_labels, label_fractions, long_line)   # a kernel reads them first


@pytest.mark.parametrize("make", [
    pytest.param(f, marks=pytest.mark.slow if f in READ else ()) for f in BAD_FILES],
    ids=lambda f: f.__name__)
def test_a_file_that_is_no_use(shop, make):
    name, word = BAD_FILES[make]
    make(shop/name)
    refused(shop, reading(shop/name), word)


@pytest.mark.parametrize("name, content, word", [
    ("data.jsonl", '{"text": "a", "label": "b"}\n{"text": \n', ""),
    ("data.json", '{"data": 3}', ""), ("data.json", "[1, 2", ""),
    ("data.parquet", "PAR1 and nothing else", ""), ("data.docx", "text", "file")])
def test_other_kinds_of_files(shop, name, content, word):
    (shop/name).write_text(content)
    refused(shop, reading(shop/name), word)


# What a model can be like that training can't start from it: said before the data is even read.
def model(folder: Path) -> Path:
    from ftnb.train.encoders import local_encoder
    shutil.copytree(local_encoder("embedded"), folder)
    return folder


def no_tokenizer(m):
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (m/name).unlink(missing_ok=True)
def cut_off(m):
    weights = m/"model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1_000_000])
def only_a_pickle(m): (m/"model.safetensors").rename(m/"pytorch_model.bin")
def no_config(m): (m/"config.json").unlink()
def own_code(m):
    config = json.loads((m/"config.json").read_text())
    (m/"config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "x.Y"}}))


@pytest.mark.parametrize("damage, word", [
    (no_tokenizer, "tokenizer"), (cut_off, "safetensors"), (only_a_pickle, "pickled"),
    (no_config, "config.json"), (own_code, "code")], ids=lambda x: getattr(x, "__name__", x))
def test_a_model_that_is_no_use(shop, damage, word):
    damage(model(shop/"model"))
    refused(shop, f"study: bad\ntrain: {{base_model: {shop/'model'}}}\n", word)


def test_a_notebook_that_raises(shop, monkeypatch):
    shutil.copytree(ROOT/"nbs"/"stages", shop/"stages")
    nb = nbformat.read(shop/"stages"/"prepare.ipynb", as_version=4)
    nb.cells.insert(3, nbformat.v4.new_code_cell("{}['missing']"))
    nbformat.write(nb, shop/"stages"/"prepare.ipynb")
    monkeypatch.setenv("FTNB_STAGES", str(shop/"stages"))
    refused(shop, "study: bad\nstages: [prepare]\n", "KeyError", "stage prepare, cell", "notebook",
            codes=(1,))


def test_a_kernel_that_dies(shop, monkeypatch):
    shutil.copytree(ROOT/"nbs"/"stages", shop/"stages")
    nb = nbformat.read(shop/"stages"/"prepare.ipynb", as_version=4)
    dies = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    nb.cells.insert(3, nbformat.v4.new_code_cell(dies))
    nbformat.write(nb, shop/"stages"/"prepare.ipynb")
    monkeypatch.setenv("FTNB_STAGES", str(shop/"stages"))
    refused(shop, "study: bad\nstages: [prepare]\n", "kernel died", codes=(1,))


def test_a_stage_that_has_not_run(shop):
    refused(shop, "study: bad\nstages: [evaluate]\n", "needs what prepare hands on")


def test_the_traceback_is_there_on_request(shop):
    (shop/"bad.yaml").write_text("study: bad\ntrain: {epochs: six}\n")
    result = ftnb("run", shop/"bad.yaml", "--debug")
    assert result.exception is not None and type(result.exception).__name__ == "BadStudy"


def test_a_file_that_cannot_be_read(shop):
    "A folder where a file should be; permissions don't stop root."
    (shop/"data.csv").mkdir()
    refused(shop, reading(shop/"data.csv"), "no data file")
    assert settings().reports.stat().st_mode & stat.S_IWUSR
